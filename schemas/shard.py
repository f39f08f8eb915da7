"""A shard to make (ShardTask, driver to worker) and a finished shard (ShardRecord, worker to driver)."""

from pydantic import BaseModel, ConfigDict, Field

from labelmill.schemas.sample import ChannelValues, OptionalFile


class ShardTask(BaseModel):
    """One shard to make. Any worker can make any shard, as often as needed, with the same bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    name: str
    """File name without its ending, `<run name>-000012`."""
    num_samples: int
    first_seed: int
    num_seeds: int
    """The shard owns the seeds first_seed to first_seed + num_seeds - 1."""


class Kind(BaseModel):
    """Everything that decides the bits of a shard besides the run's fingerprint: the kind of machine and the
    libraries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    """`cpu`, or the name of the GPU."""
    processor: str
    """Architecture, maker, and the instructions that PyTorch uses, such as `x86_64 GenuineIntel AVX512`."""
    libraries: dict[str, str]
    """Versions of the libraries that compute."""
    settings: dict[str, str]
    """Environment variables that make these libraries choose other instructions; only those that are set."""

    def __str__(self) -> str:
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        return f"{self.device} on {self.processor}, {libraries}{settings}"


class ShardRecord(BaseModel):
    """`records/000012.json`: the content of a shard. Derived from the tar; the fields from `seconds_by_stage` on are
    known only to the process that made the shard, and all but the last are null after a repair.

    The file ends with a checksum of the record (pipeline/shards/sealed.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    name: str
    num_samples: int
    num_candidates: int
    dropped_by_reason: dict[str, int]
    sha256: str
    """SHA-256 of the tar."""
    num_bytes: int
    """Size of the tar."""
    class_pixels: dict[str, int]
    """Pixels per class over all masks; `ignore` counts value 255."""
    channel_means: ChannelValues
    """Mean of each channel in [0, 1] over all samples."""
    channel_square_means: ChannelValues
    """Mean of the squared channel values."""
    fingerprint: str
    seconds_by_stage: dict[str, float] | None
    attempts: int | None
    host: str | None
    device: str | None
    created: str | None
    """UTC time of publication, ISO 8601."""
    kind: Kind | None = None
    """Kind of the machine and the libraries; also null in records of earlier versions."""
    parquet_sha256: str | None = None
    """SHA-256 of the parquet file beside the tar; null in records of earlier versions."""
    optional_files: tuple[OptionalFile, ...] = Field((), exclude_if=lambda endings: not endings)
    """Endings of the files that samples have besides image, mask and metadata; absent if there are none."""


def shard_name(run_name: str, index: int) -> str:
    return f"{run_name}-{index:06d}"
