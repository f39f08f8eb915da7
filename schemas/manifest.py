"""Files that describe a whole dataset: run.json (written first), index.json, manifest.json (written last)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.promise import Promise
from labelmill.schemas.sample import ChannelValues, ImageShape, OptionalFile, with_image_shape
from labelmill.schemas.shard import Kind


class RunFile(BaseModel):
    """`run.json`: claims an output for one identity, before any shard. It is create-only, so two drivers agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "labelmill-run"
    identity: dict[str, Any]
    """Everything that decides the bytes of shards (labelmill.schemas.fingerprint.identity)."""


class Claim(BaseModel):
    """`fingerprint.json`: claims an output for one fitted labeler, before any shard, as run.json does for one identity.

    The file ends with a checksum (pipeline/shards/sealed.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "labelmill-fingerprint"
    fingerprint: str
    labeler_sha256: str
    claimed_on: Kind
    """The kind of the first machine that used the labeler: the one that fitted it, unless that machine died during the
    fit."""
    num_hashed_shards: int = 0
    """Number of leading shards that earlier versions assigned to splits by their own rule
    (pipeline/dataset/splits.py)."""


class IndexedShard(BaseModel):
    """One shard in index.json, in the field names of wids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    """URL relative to the dataset's root, `shards/<name>.tar`."""
    nsamples: int
    filesize: int
    sha256: str
    split: str


class Index(BaseModel):
    """`index.json`: the shard list that loaders read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wids_version: int = 1
    name: str
    shardlist: list[IndexedShard]
    splits: dict[str, list[str]]
    """URLs per split."""


class CheckpointSource(BaseModel):
    """The checkpoint that a dataset was drawn from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    """Reference in the run file."""
    sha256: str
    format: str
    licence: str
    attribution: str | None


class Manifest(BaseModel):
    """`manifest.json`: written last. If it exists, the dataset is complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "labelmill-dataset"
    format_version: int
    name: str
    fingerprint: str
    config: dict[str, Any]
    """The run file as resolved, without `output` and `execution`."""
    classes: list[str]
    """Class names in the order of mask values; 255 is ignore."""
    image_shape: ImageShape
    """Shape of the images; masks have the same height and width."""
    image_format: str
    optional_files: tuple[OptionalFile, ...] = Field((), exclude_if=lambda endings: not endings)
    """Endings of the files that every sample has beside image, mask and metadata; absent if there are none, as in
    manifests of earlier versions."""
    num_samples: int
    num_candidates: int
    num_shards: int
    num_bytes: int
    samples_by_split: dict[str, int]
    dropped_by_reason: dict[str, int]
    class_pixels: dict[str, int]
    mean: ChannelValues
    """Mean of each channel over all pixels, in [0, 1]."""
    std: ChannelValues
    checkpoint: CheckpointSource
    labeler_sha256: str
    labeler: LabelerFindings | None = None
    """Findings of `fit`; null in manifests of earlier versions."""
    promise: Promise | None = Field(None, exclude_if=lambda promise: promise is None)
    """How a promise about the samples' masks is kept; absent where the run makes none."""
    versions: dict[str, str]
    """Python and library versions of the process that finished the dataset."""
    kinds: list[Kind] = []
    """Kinds of machines and libraries known to have fitted the labeler and made shards. With more than one kind, no
    single kind can make the dataset again to the bit."""

    @model_validator(mode="before")
    @classmethod
    def _read_former(cls, values: Any) -> Any:
        return with_image_shape(values)
