"""What a dataset holds, in numbers: what `labelmill stats --json` prints."""

from pydantic import BaseModel, ConfigDict


class ClassStatistics(BaseModel):
    """A class in the kept samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: int
    """Its value in masks."""
    share: float
    """Of all pixels, those to be ignored included, in [0, 1]."""
    images: int
    """Samples in which it has a pixel."""
    weight: float
    """Suggested for a loss; 0 for a class without a pixel.

    Median frequency balancing (Eigen and Fergus, ICCV 2015, on semantic labels): the median of all classes' frequencies
    by that of this one, where a class's frequency is its share of the pixels of the images that contain it."""


class DatasetStatistics(BaseModel):
    """The kept samples of a dataset or of one of its splits, and what was dropped on the way to them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: str | None
    """None: all of them."""
    samples: int
    candidates: int
    samples_by_split: dict[str, int]
    classes: list[ClassStatistics]
    """In the order of mask values."""
    ignore_share: float
    """Of all pixels, those that belong to no class (255)."""
    ignore_images: int
    """Samples with such a pixel."""
    confidence_bounds: list[float]
    """Bounds of the bins of the next two: bin i reaches from bound i to bound i + 1, the last one included."""
    confidence_kept: list[int]
    """Kept samples by confidence."""
    confidence_dropped: list[int]
    """Dropped candidates by confidence."""
    dropped_by_reason: dict[str, int]
