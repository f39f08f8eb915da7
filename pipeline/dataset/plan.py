"""What is to be done: the shards of a run, those that exist already, and whether the two fit together."""

from collections.abc import Iterable

from labelmill.schemas.config import DatasetConfig, RunConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.shard import ShardRecord, ShardTask, shard_name

HELD_OUT_FIRST_SEED = 2_000_000_000
"""Far from where runs begin by default, and below the seeds that labelers learn from."""


def shard_tasks(config: RunConfig) -> list[ShardTask]:
    """Every shard of a run, in order. The last one holds the remainder; each owns a block of seeds of its own."""
    dataset = config.dataset
    return [
        ShardTask(
            index=index,
            name=shard_name(config.name, index),
            num_samples=min(dataset.samples_per_shard, dataset.samples - index * dataset.samples_per_shard),
            first_seed=dataset.first_seed + index * dataset.seeds_per_shard,
            num_seeds=dataset.seeds_per_shard,
        )
        for index in range(dataset.num_shards)
    ]


def held_out_first_seed(dataset: DatasetConfig) -> int:
    """The dataset.first_seed of a run of the same checkpoint that shares no seed with this one, also once both grow."""
    if dataset.first_seed >= HELD_OUT_FIRST_SEED:
        return 0
    return max(HELD_OUT_FIRST_SEED, dataset.first_seed + dataset.num_shards * dataset.seeds_per_shard)


def remaining_tasks(tasks: Iterable[ShardTask], records: Iterable[ShardRecord]) -> list[ShardTask]:
    """The tasks whose shard does not exist yet."""
    done = {record.index for record in records}
    return [task for task in tasks if task.index not in done]


def check_extension(dataset: DatasetConfig, records: Iterable[ShardRecord]) -> None:
    """Refuse a sample count that the existing shards cannot be part of.

    A shard is never rewritten: a dataset may grow by whole shards, but neither shrink nor refill a short one.
    Raises OutputError with the counts that work.
    """
    by_index = {record.index: record for record in records}
    if not by_index:
        return
    per_shard, last = dataset.samples_per_shard, max(by_index)
    for record in by_index.values():
        if record.num_samples > per_shard or (record.num_samples < per_shard and record.index != last):
            raise OutputError(
                f"shards/{record.name}.tar: holds {record.num_samples} samples instead of {per_shard}. Delete it and "
                f"run `labelmill generate` again, which makes it again"
            )
    short = by_index[last]
    if short.num_samples < per_shard:
        works = short.index * per_shard + short.num_samples
        if dataset.samples != works:
            raise OutputError(
                f"dataset.samples: {dataset.samples} does not fit the shards that exist: shard {short.name} is the "
                f"short last one of a run of {works} samples and is never rewritten. {works} works; to grow "
                f"further, delete shards/{short.name}.tar, shards/{short.name}.parquet and "
                f"records/{short.index:06d}.json first, or write to a new output"
            )
        return
    held = (last + 1) * per_shard
    if dataset.samples < held:
        raise OutputError(
            f"dataset.samples: {dataset.samples} is less than the output holds: its shards reach {held} samples. "
            f"{held} or more works, or a new output"
        )
