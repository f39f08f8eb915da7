"""One labeled image, and the record that every candidate leaves whether it is kept or not."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_serializer, field_validator

from labelmill.schemas.instances import Instance

ChannelValues = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
"""One number per channel: red, green and blue, or gray."""
IGNORE = 255
"""Mask value of pixels that belong to no class."""
OptionalFile = Literal["alpha.png", "instances.png", "probabilities.png"]
"""Ending of a file that samples have where their labeler gives it (pipeline/shards/sample_files.py)."""


def sample_key(seed: int) -> str:
    """A seed, zero-padded: WebDataset splits names at dots, so keys are digits only."""
    return f"{seed:010d}"


class ImageShape(BaseModel):
    """Shape of all images of a dataset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: Literal[1, 3]
    """1: gray; 3: red, green, blue."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def num_pixels(self) -> int:
        return self.height * self.width

    @property
    def size_in_words(self) -> str:
        """`32 x 32 pixels`; a rectangle also names the order of width and height."""
        order = "" if self.height == self.width else " (width x height)"
        return f"{self.width} x {self.height} pixels{order}"

    @property
    def colours(self) -> str:
        return "gray" if self.channels == 1 else "RGB"


def with_image_shape(values: Any) -> Any:
    """A description as read, in its present form: former versions, which knew square RGB images alone, wrote
    `resolution` for `image_shape`."""
    if not isinstance(values, dict) or "resolution" not in values:
        return values
    shape = {"height": values["resolution"], "width": values["resolution"], "channels": 3}
    return {**{key: value for key, value in values.items() if key != "resolution"}, "image_shape": shape}


class Candidate(BaseModel):
    """The outcome of one seed: a row of the shard's parquet file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    class_id: int | None
    """Class requested from a conditional generator."""
    drop_reason: str | None
    """Name of the quality rule that dropped the candidate; null if it was kept."""
    confidence: float
    """Labeler's confidence in [0, 1]."""
    largest_component: float
    """Share of the foreground in its largest connected component, in [0, 1]."""
    class_pixels: dict[str, int]
    """Pixels per class, in the order of mask values; `ignore` counts value 255."""

    @property
    def kept(self) -> bool:
        return self.drop_reason is None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the mask values 0, 1, ..."""
        return tuple(name for name in self.class_pixels if name != "ignore")


_CANDIDATES = TypeAdapter(tuple[Candidate, ...])
_INSTANCES = TypeAdapter(tuple[Instance, ...])


class SampleMetadata(BaseModel):
    """`{key}.json` of a kept sample: enough to make it again and to account for dropped candidates."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    candidate: Candidate
    dropped_before: tuple[Candidate, ...]
    """Candidates dropped since the previous kept sample, so that the tar alone accounts for every seed. In JSON this
    is a string that holds JSON: an empty list has no type, so readers that infer types from the first samples, such
    as Hugging Face datasets, would refuse the first list that is not empty."""
    channel_means: ChannelValues
    """Mean of each channel in [0, 1], before encoding."""
    channel_square_means: ChannelValues
    """Mean of the squared channel values."""
    truncation_psi: float
    truncation_cutoff: int | None
    noise: str
    method: str
    checkpoint_sha256: str
    fingerprint: str
    synthetic: bool = True
    """The image was made by a trained algorithm (IPTC trainedAlgorithmicMedia)."""
    instances: tuple[Instance, ...] | None = Field(None, exclude_if=lambda instances: instances is None)
    """What its instances are: `id` (the pixels' value in instances.png), `class`, `score`, and `box` [x, y, width,
    height]. In JSON a string that holds JSON, for the reason above. Absent where a run finds none."""

    @field_serializer("instances", when_used="json")
    def _instances_as_text(self, instances: tuple[Instance, ...] | None) -> str | None:
        return None if instances is None else _INSTANCES.dump_json(instances, by_alias=True).decode()

    @field_validator("instances", mode="before")
    @classmethod
    def _instances_of_text(cls, value: object) -> object:
        return _INSTANCES.validate_json(value) if isinstance(value, str) else value

    @field_serializer("dropped_before", when_used="json")
    def _as_text(self, dropped: tuple[Candidate, ...]) -> str:
        return _CANDIDATES.dump_json(dropped).decode()

    @field_validator("dropped_before", mode="before")
    @classmethod
    def _of_text(cls, value: object) -> object:
        """Shards of format version 1 hold a list."""
        return _CANDIDATES.validate_json(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Sample:
    """A kept sample on its way into a shard."""

    key: str
    image_HWC: NDArray[np.uint8]
    """RGB, or gray with one channel, 0 to 255."""
    mask_HW: NDArray[np.uint8]
    """Class index of each pixel; 255 is ignore."""
    metadata: SampleMetadata
    alpha_HW: NDArray[np.uint8] | None = None
    """How opaque the foreground is, 255 fully; None where the labeler gives none."""
    instances_HW: NDArray[np.uint16] | None = None
    """Index of each pixel's instance from 1, 0 for none; None where the labeler gives none."""
    probabilities_KHW: NDArray[np.uint8] | None = None
    """255 times the probability of each class, in the order of mask values; they sum to 255 at each pixel. None where
    the labeler gives none."""
