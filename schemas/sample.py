"""One labeled image, and the record that every candidate leaves whether it is kept or not."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

IGNORE = 255
"""Mask value of pixels that belong to no class."""


def sample_key(seed: int) -> str:
    """A seed, zero-padded: WebDataset splits names at dots, so keys are digits only."""
    return f"{seed:010d}"


class Candidate(BaseModel):
    """What became of one seed: a row of the shard's parquet file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    class_id: int | None
    """Class that a conditional generator was asked for."""
    drop_reason: str | None
    """Name of the quality rule that dropped it; null if kept."""
    confidence: float
    """Labeler's confidence in [0, 1]."""
    largest_component: float
    """Share of the foreground in its largest connected piece, in [0, 1]."""
    class_pixels: dict[str, int]
    """Pixels that carry each class, in the order of mask values; `ignore` counts value 255."""

    @property
    def kept(self) -> bool:
        return self.drop_reason is None


class SampleMetadata(BaseModel):
    """`{key}.json` of a kept sample: enough to make it again, and to account for what was dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    candidate: Candidate
    dropped_before: tuple[Candidate, ...]
    """Candidates dropped since the previous kept sample, so that the tar alone accounts for every seed."""
    channel_means: tuple[float, float, float]
    """Mean of red, green and blue in [0, 1], before encoding."""
    channel_square_means: tuple[float, float, float]
    """Mean of their squares."""
    truncation_psi: float
    truncation_cutoff: int | None
    noise: str
    method: str
    checkpoint_sha256: str
    fingerprint: str
    synthetic: bool = True
    """The image was made by a trained algorithm (IPTC trainedAlgorithmicMedia)."""


@dataclass(frozen=True)
class Sample:
    """A kept sample on its way into a shard."""

    key: str
    image_HWC: NDArray[np.uint8]
    """RGB, 0 to 255."""
    mask_HW: NDArray[np.uint8]
    """Class index of each pixel; 255 is ignore."""
    metadata: SampleMetadata
