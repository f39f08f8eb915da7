"""What a labeling method is: classes, the layers it taps, and masks for a batch.

Shape suffixes: B batch, H height, W width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pipeline.generator.sampling import Batch
from schemas.sample import OptionalFile


@dataclass(frozen=True)
class Labels:
    """Masks of a batch, on the device."""

    masks_BHW: Tensor
    """uint8 class indices at the images' resolution; 255 is ignore."""
    confidence_B: Tensor
    """float32 in [0, 1]: how sure the labeler is of each mask."""
    alpha_BHW: Tensor | None = None
    """float32 in [0, 1]: how opaque the foreground is; None where the method gives none."""
    instances_BHW: Tensor | None = None
    """int64: index of each pixel's instance from 1, 0 for none; None where the method gives none."""


class Labeler(Protocol):
    """A method with its fitted state, ready to label batches."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the mask values 0, 1, ...; index 0 is background."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Convolutions whose features `label` needs in the batch."""

    @property
    def optional_files(self) -> tuple[OptionalFile, ...]:
        """Files that samples have for the optional fields of Labels which `label` fills, each always or never."""

    def label(self, batch: Batch) -> Labels:
        """Label 1 or more samples. Each mask depends on its own sample alone, to the bit."""
