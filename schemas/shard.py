"""A shard as asked for (ShardTask, driver to worker) and as made (ShardRecord, worker to driver)."""

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from schemas.sample import ChannelValues


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


class ShardRecord(BaseModel):
    """`records/000012.json`: what is in a shard. Derived from the tar; the last five fields are known only to
    the process that made it and are null after a repair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    name: str
    num_samples: int
    num_candidates: int
    dropped_by_reason: dict[str, int]
    sha256: str
    """Of the tar."""
    num_bytes: int
    """Of the tar."""
    class_pixels: dict[str, int]
    """Pixels a class over all masks; `ignore` counts value 255."""
    channel_means: ChannelValues
    """Mean of each channel in [0, 1] over all samples."""
    channel_square_means: ChannelValues
    """Mean of their squares."""
    fingerprint: str
    seconds_by_stage: dict[str, float] | None
    attempts: int | None
    host: str | None
    device: str | None
    created: str | None
    """UTC time of publication, ISO 8601."""


def shard_name(run_name: str, index: int) -> str:
    return f"{run_name}-{index:06d}"


def split_of(index: int, splits: Mapping[str, float]) -> str:
    """The split that shard `index` belongs to: by a hash of the index, so that growth never moves a shard."""
    position = int.from_bytes(hashlib.sha256(f"shard {index}".encode()).digest()[:8], "big") / 2**64
    upper = 0.0
    for name, share in splits.items():
        upper += share
        if position < upper:
            return name
    return name  # the shares may sum to a hair less than 1
