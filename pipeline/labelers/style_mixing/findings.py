"""Whether style mixing found a foreground, judged by what `fit` measured without a true mask.

Separation is how far apart the evidence of foreground's and background's clusters lies (foreground.py). Over settings
of the method, untrained generators of 32 and 64 px gave .12 to .31, and the bundled one .63 to .77. Agreement, between
the masks of the read-out and those of the clusters, gave .58 to .89 and .95 to .99: it tells less, because a read-out
of many features learns noise too.
"""

from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing
from labelmill.pipeline.labelers.style_mixing.foreground import separation_of
from labelmill.pipeline.labelers.style_mixing.labeler import mixing_classes
from labelmill.schemas.labeler_findings import LabelerFindings

WEAK_SEPARATION = 0.4
"""Below it nothing was found: half as much again as untrained generators give, two thirds of the bundled one."""
DOUBTFUL_SEPARATION, DOUBTFUL_AGREEMENT = 0.55, 0.9

_TRY = (
    "look at `labelmill preview`; a generator that is trained further, a lower generator.truncation_psi, more "
    "labeler.variants, or labeler.method: feature_clusters may do better"
)


def mixing_findings(fitted: FittedStyleMixing) -> LabelerFindings:
    """What `fit` found, in words, and whether it is worth anything."""
    provenance = fitted.provenance
    separation = separation_of(fitted.foreground.sharpness)
    share = 1 - float(fitted.foreground.background_HW.cpu().mean())
    agreement = provenance.readout_agreement
    classes = ", ".join(mixing_classes(provenance.config.parts))
    found = f"classes: {classes}; on average {share:.0%} of an image is foreground"
    sure = (
        f"foreground and background are {separation:.2f} apart (untrained generators: 0.1 to 0.3, the bundled one: 0.6 "
        f"to 0.8), and two ways to the masks agree with a mean IoU of {agreement:.2f}"
    )
    if separation < WEAK_SEPARATION:
        nothing = f"no foreground was found that differs from the background: masks would mean nothing; {_TRY}"
        return LabelerFindings(verdict="weak", words=[found, sure, f"weak: {nothing}"])
    if separation < DOUBTFUL_SEPARATION or agreement < DOUBTFUL_AGREEMENT:
        return LabelerFindings(verdict="doubtful", words=[found, sure, f"doubtful: many masks may be wrong; {_TRY}"])
    return LabelerFindings(verdict="sound", words=[found, sure])
