"""Shard records made up for tests of what only counts them."""

from collections.abc import Mapping

from labelmill.schemas.shard import ShardRecord, shard_name


def make_record(index: int, num_samples: int, dropped_by_reason: Mapping[str, int]) -> ShardRecord:
    """A record of shard `index` of a run called `run`."""
    return ShardRecord(
        index=index,
        name=shard_name("run", index),
        num_samples=num_samples,
        num_candidates=num_samples + sum(dropped_by_reason.values()),
        dropped_by_reason=dict(dropped_by_reason),
        sha256="",
        num_bytes=0,
        class_pixels={},
        channel_means=(0, 0, 0),
        channel_square_means=(0, 0, 0),
        fingerprint="",
        seconds_by_stage=None,
        attempts=None,
        host=None,
        device=None,
        created=None,
        kind=None,
        parquet_sha256=None,
    )
