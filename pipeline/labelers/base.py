"""What a labeling method is: classes, the layers it taps, and masks for a batch.

Shape suffixes: B batch, H height, W width.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pipeline.generator.sampling import Batch


@dataclass(frozen=True)
class Labels:
    """Masks of a batch, on the device."""

    masks_BHW: Tensor
    """uint8 class indices at the images' resolution; 255 is ignore."""
    confidence_B: Tensor
    """float32 in [0, 1]: how sure the labeler is of each mask."""


class Labeler(Protocol):
    """A method with its fitted state, ready to label batches."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the mask values 0, 1, ...; index 0 is background."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Convolutions whose features `label` needs in the batch."""

    def label(self, batch: Batch) -> Labels:
        """Label 1 or more samples. Each mask depends on its own sample alone, to the bit."""
