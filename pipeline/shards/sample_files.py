"""The files of a sample: a row per file. Whoever writes, checks, reads or describes samples loops over these rows.

In a shard the files of a sample are called `{key}.{ending}` and stand in the order of the rows.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import get_args

from labelmill.schemas.sample import IGNORE, OptionalFile


@dataclass(frozen=True)
class SampleFile:
    """A file that every sample of a dataset has, or none."""

    ending: str
    """After the key and a dot."""
    field: str
    """Of Sample: where its content comes from."""
    meaning: str
    """What the file holds, in a few words."""
    labels_field: str = ""
    """Of Labels; empty for what is not labeled."""
    bit_depths: tuple[int, ...] = ()
    """Of a gray PNG: those that it may have, the least that holds the sample's values. None for what is no gray PNG."""
    holds_indices: bool = False
    """Its pixels are numbers of things, which have no values between them."""
    is_per_class: bool = False
    """It holds a map per class, one below the other in the order of mask values (pipeline/pictures/class_maps.py)."""
    is_optional: bool = False
    """Only datasets that declare it have it."""

    @property
    def name(self) -> str:
        """`mask` of `mask_HW`."""
        return self.field.partition("_")[0]

    def member(self, key: str) -> str:
        """What a sample's file is called in a shard."""
        return f"{key}.{self.ending}"


IMAGE = SampleFile("", "image_HWC", "the image")
"""Its ending is the dataset's image format: `image_file`."""
MASK = SampleFile(
    "mask.png",
    "mask_HW",
    f"8-bit gray: the class of each pixel, {IGNORE} ignore",
    labels_field="masks_BHW",
    bit_depths=(8,),
    holds_indices=True,
)
METADATA = SampleFile("json", "metadata", "seed, scores, provenance")
ALPHA = SampleFile(
    "alpha.png",
    "alpha_HW",
    "8-bit gray: how opaque the foreground is, 255 fully",
    labels_field="alpha_BHW",
    bit_depths=(8,),
    is_optional=True,
)
INSTANCES = SampleFile(
    "instances.png",
    "instances_HW",
    "8-bit gray, or 16-bit where there are more than 255: the instance of each pixel, 0 none",
    labels_field="instances_BHW",
    bit_depths=(8, 16),
    holds_indices=True,
    is_optional=True,
)
PROBABILITIES = SampleFile(
    "probabilities.png",
    "probabilities_KHW",
    "8-bit gray: 255 times the probability of each class, the classes' maps one below the other; they sum to 255 at "
    "each pixel",
    labels_field="probabilities_BKHW",
    bit_depths=(8,),
    is_per_class=True,
    is_optional=True,
)
SAMPLE_FILES = (IMAGE, MASK, METADATA, ALPHA, INSTANCES, PROBABILITIES)
OPTIONAL_FILES = tuple(file for file in SAMPLE_FILES if file.is_optional)


def sample_files(image_format: str, optional_files: Collection[str]) -> tuple[SampleFile, ...]:
    """The files of a dataset's samples, in the order in which they stand in a shard."""
    files = (image_file(image_format) if file is IMAGE else file for file in SAMPLE_FILES)
    return tuple(file for file in files if not file.is_optional or file.ending in optional_files)


def image_file(image_format: str) -> SampleFile:
    return replace(IMAGE, ending=image_format)


def optional_endings(endings: Collection[str]) -> tuple[OptionalFile, ...]:
    """The optional files among some endings, in the order of the rows."""
    return tuple(ending for ending in get_args(OptionalFile) if ending in endings)
