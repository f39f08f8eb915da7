"""Whether an alpha network found a foreground, judged by what was seen of its masks without a true one."""

from labelmill.pipeline.labelers.alpha_network.fitted import AlphaProvenance
from labelmill.schemas.labeler_findings import LabelerFindings

WEAK_EDGES, DOUBTFUL_EDGES = 1.3, 1.8
"""Strength of the images' edges along boundaries below which masks show nothing, or may be wrong."""

_TRY = (
    "look at `labelmill preview`; a generator that is trained further, other labeler.layers, or labeler.method: "
    "style_mixing may do better"
)


def alpha_findings(provenance: AlphaProvenance) -> LabelerFindings:
    """What `fit` found, in words, and whether it is worth anything."""
    look = next(look for look in provenance.attempts[-1].looks if look.step == provenance.step)
    words = [
        f"classes: background, foreground; on average {look.coverage:.0%} of an image is foreground; backgrounds by "
        f"{provenance.background}",
        f"images' edges are {look.edges:.2f} times as strong along the masks' boundaries as elsewhere (1: they lie "
        f"anywhere); the network of step {provenance.step} was taken",
        *(f"a training collapsed: {attempt.words}" for attempt in provenance.attempts if attempt.collapse is not None),
    ]
    if look.edges < WEAK_EDGES:
        nothing = f"no foreground was found that differs from the background: masks would mean nothing; {_TRY}"
        return LabelerFindings(verdict="weak", words=[*words, f"weak: {nothing}"])
    if look.edges < DOUBTFUL_EDGES:
        return LabelerFindings(verdict="doubtful", words=[*words, f"doubtful: many masks may be wrong; {_TRY}"])
    return LabelerFindings(verdict="sound", words=words)
