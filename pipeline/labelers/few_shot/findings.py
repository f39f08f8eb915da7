"""What a person should know of a fit before using it: what the annotations show, and how far they can be trusted."""

from collections.abc import Iterator

from labelmill.pipeline.labelers.few_shot.fitted import FewShotProvenance
from labelmill.schemas.labeler_findings import LabelerFindings

FEW_PIXELS = 8
"""Fewer annotated pixels of a class teach nothing."""
WEAK_IOU, DOUBTFUL_IOU = 0.5, 0.7


def few_shot_findings(provenance: FewShotProvenance) -> LabelerFindings:
    """What `fit` found, in words, and whether it is worth anything."""
    shown = [f"{name} ({count})" for name, count in zip(provenance.classes, provenance.class_images, strict=True)]
    plural = "s" * (provenance.num_images != 1)
    words = [f"{provenance.num_images} annotated image{plural}, by class: {', '.join(shown)}", _foreground(provenance)]
    words.append(_held_out(provenance))
    doubts = list(_doubts(provenance))
    iou = provenance.held_out_iou
    if iou is not None and iou < WEAK_IOU:
        weak = (
            f"weak: masks of left-out images have a weighted IoU below {WEAK_IOU:.0%}: check that the annotations fit"
        )
        return LabelerFindings(verdict="weak", words=[*words, *doubts, weak])
    if doubts or (iou is not None and iou < DOUBTFUL_IOU):
        remedy = "doubtful: some masks will be wrong; annotate more images, above all of the classes with few"
        return LabelerFindings(verdict="doubtful", words=[*words, *doubts, remedy])
    return LabelerFindings(verdict="sound", words=words)


def _foreground(provenance: FewShotProvenance) -> str:
    agreed = provenance.foreground_agreement
    if provenance.config.foreground == "learned":
        return "the annotations alone decide what is background"
    measured = "could not be compared with the annotations" if agreed is None else f"agrees by {agreed:.1%} with them"
    used = "is used" if provenance.mixing is not None else "is not used"
    return f"the foreground that style mixing finds without labels {measured} and {used}"


def _held_out(provenance: FewShotProvenance) -> str:
    iou = provenance.held_out_iou
    if iou is None:
        return "how good masks are was not measured: that takes 3 annotated images, left out in turn"
    return f"masks of annotated images that were left out in turn have a mean weighted IoU of {iou:.1%}"


def _doubts(provenance: FewShotProvenance) -> Iterator[str]:
    rare = [
        f"{name} ({count})"
        for name, count in zip(provenance.classes, provenance.class_pixels, strict=True)
        if count < FEW_PIXELS
    ]
    if rare:
        yield f"classes with fewer than {FEW_PIXELS} annotated pixels, which masks will hardly show: {', '.join(rare)}"
