"""Scores of predicted masks against true masks, as `labelmill evaluate --json` prints them."""

from pydantic import BaseModel, ConfigDict


class BandScores(BaseModel):
    """Agreement near the true boundaries alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou: dict[str, float | None]
    """By class, within the band; null for a class that occurs there in neither truth nor prediction."""
    miou: float | None
    """Mean over the classes that are not null."""
    num_pixels: int
    """Pixels of the band that were counted."""


class Scores(BaseModel):
    """Every figure but `image_miou` comes from one confusion matrix summed over all masks.

    With TP, FP and FN of a class, and all pixels whose truth is a class:
    A class that occurs in neither truth nor prediction has no score (null) and is left out of every mean. One that is
    predicted but never true, or true but never predicted, scores 0 and counts. Pixels whose truth is 255 (ignore) are
    left out altogether. A prediction of 255 where the truth is a class is wrong: it adds to that class's FN, and to no
    class's FP. null where nothing was counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iou: dict[str, float | None]
    """By class, TP / (TP + FP + FN)."""
    miou: float | None
    """Mean of iou over classes."""
    f1: float | None
    """Mean over classes of 2 TP / (2 TP + FP + FN)."""
    precision: float | None
    """Mean over classes of TP / (TP + FP)."""
    recall: float | None
    """Mean over classes of TP / (TP + FN)."""
    accuracy: float | None
    """Mean over classes of (TP + TN) / all pixels, each class against the rest. With two classes, and no 255 in the
    prediction, this is the share of pixels that are right."""
    fwiou: float | None
    """iou weighted by each class's share of the true pixels."""
    trimap_3px: BandScores
    """The same counts, within the band around true boundaries (pipeline/segmentation/metrics.py)."""
    image_miou: float | None
    """Mean over images of each image's own miou."""
    num_images: int
    num_pixels: int
    """Pixels whose truth is a class."""
