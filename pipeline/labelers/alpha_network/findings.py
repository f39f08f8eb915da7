"""Whether an alpha network found a foreground, judged by what was seen of its masks without a true one."""

from labelmill.pipeline.labelers.alpha_network.fitted import AlphaProvenance
from labelmill.pipeline.labelers.alpha_network.given import GivenProvenance
from labelmill.pipeline.labelers.alpha_network.watch import Look, collapse_of
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.secrets import plain_address

WEAK_EDGES, DOUBTFUL_EDGES = 1.3, 1.8
"""Strength of the images' edges along boundaries below which masks show nothing, or may be wrong."""

_TRY = (
    "look at `labelmill preview`; a generator that is trained further, other labeler.layers, or labeler.method: "
    "style_mixing may do better"
)
_TRY_OTHERS = (
    "look at `labelmill preview`; the network that was trained on this very generator, a new one (without "
    "labeler.weights), or labeler.method: style_mixing may do better"
)


def alpha_findings(provenance: AlphaProvenance) -> LabelerFindings:
    """What `fit` found, in words, and whether it is worth anything."""
    look = next(look for look in provenance.attempts[-1].looks if look.step == provenance.step)
    words = [
        f"{_covered(look)}; backgrounds by {provenance.background}",
        f"{_agreeing(look)}; the network of step {provenance.step} was taken",
        *(f"a training collapsed: {attempt.words}" for attempt in provenance.attempts if attempt.collapse is not None),
    ]
    return _judged(words, look, _TRY)


def given_findings(provenance: GivenProvenance) -> LabelerFindings:
    """The same of a network that was trained before."""
    look = provenance.look
    weights = plain_address(provenance.config.weights or "")
    words = [f"{_covered(look)}; by the {provenance.part} of {weights}, nothing was trained", _agreeing(look)]
    collapse = collapse_of([look], look.step)
    if collapse is not None:
        return LabelerFindings(verdict="weak", words=[*words, f"weak: collapsed: {collapse.words}; {_TRY_OTHERS}"])
    return _judged(words, look, _TRY_OTHERS)


def _covered(look: Look) -> str:
    return f"classes: background, foreground; on average {look.coverage:.0%} of an image is foreground"


def _agreeing(look: Look) -> str:
    return (
        f"images' edges are {look.edges:.2f} times as strong along the masks' boundaries as elsewhere (1: they lie "
        f"anywhere)"
    )


def _judged(words: list[str], look: Look, advice: str) -> LabelerFindings:
    if look.edges < WEAK_EDGES:
        nothing = f"no foreground was found that differs from the background: masks would mean nothing; {advice}"
        return LabelerFindings(verdict="weak", words=[*words, f"weak: {nothing}"])
    if look.edges < DOUBTFUL_EDGES:
        return LabelerFindings(verdict="doubtful", words=[*words, f"doubtful: many masks may be wrong; {advice}"])
    return LabelerFindings(verdict="sound", words=words)
