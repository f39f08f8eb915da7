"""What a run will do and cost: measured on a small shard of it that is thrown away, then multiplied."""

import time
from collections import Counter

from pipeline.generator.sampling import Sampler
from pipeline.make_shard import make_shard
from pipeline.output_claim import check_claim, shard_splits
from pipeline.plan import check_extension, held_out_first_seed, remaining_tasks, shard_tasks
from pipeline.quality import check_rules
from pipeline.shard_publisher import read_record, tar_path
from pipeline.store import Store
from schemas.config import RunConfig
from schemas.fingerprint import identity
from schemas.shard import ShardTask
from workers.preview import labeler_for, unpublished_worker
from workers.shard_worker import open_sampler

TRIAL_BATCHES = 2


def estimate(config: RunConfig) -> list[str]:
    """Lines that say what the run will make and what that will take. Writes nothing.

    Raises what `generate` would raise for this configuration.
    """
    check_rules(config)
    tasks = shard_tasks(config)
    store = Store.open(config.output)
    sampler, checkpoint = open_sampler(config)
    check_claim(store, identity(config, checkpoint.sha256))
    tars = {file.path for file in store.list("shards")}
    existing = [read_record(store, task.index) for task in tasks if tar_path(task.name) in tars]
    records = [record for record in existing if record is not None]
    check_extension(config.dataset, records)
    missing = remaining_tasks(tasks, records)
    num_missing = sum(task.num_samples for task in missing)
    seconds_to_fit, seconds, num_bytes, kept_share = _measure(config, sampler, checkpoint.sha256)
    return [
        f"{config.output}: {config.dataset.samples} samples in {len(tasks)} shards ({_splits(store, config, tasks)})",
        f"seeds {tasks[0].first_seed} to {tasks[-1].first_seed + tasks[-1].num_seeds - 1}, "
        f"{config.dataset.seeds_per_shard} a shard; a dataset to score on, of other images: dataset.first_seed: "
        f"{held_out_first_seed(config.dataset)}",
        f"there already: {len(tasks) - len(missing)} shards; to make: {len(missing)} shards, {num_missing} samples",
        f"measured on this machine: {1000 * seconds:.1f} ms and {num_bytes / 1000:.1f} kB a sample, "
        f"{kept_share:.0%} of the candidates kept",
        f"estimate: {_duration(seconds_to_fit + num_missing * seconds)} "
        f"({_duration(seconds_to_fit)} of it to fit the labeler), {num_missing * num_bytes / 1e6:.1f} MB",
    ]


def _measure(config: RunConfig, sampler: Sampler, checkpoint_sha256: str) -> tuple[float, float, float, float]:
    """Seconds to fit; seconds and bytes a sample; the share of candidates kept."""
    start = time.perf_counter()
    fitted = labeler_for(config, sampler, checkpoint_sha256)
    seconds_to_fit = time.perf_counter() - start
    first = shard_tasks(config)[0]
    num_samples = min(TRIAL_BATCHES * config.numerics.batch_size, first.num_samples)
    trial = first.model_copy(update={"num_samples": num_samples})
    with unpublished_worker(config, sampler, checkpoint_sha256, fitted) as worker:
        start = time.perf_counter()
        made = make_shard(trial, worker.mill)
        seconds = time.perf_counter() - start
    return (
        seconds_to_fit,
        seconds / num_samples,
        len(made.tar) / num_samples,
        num_samples / made.num_candidates,
    )


def _splits(store: Store, config: RunConfig, tasks: list[ShardTask]) -> str:
    samples: Counter[str] = Counter(dict.fromkeys(config.dataset.splits, 0))
    for task, split in zip(tasks, shard_splits(store, len(tasks), config.dataset.splits), strict=True):
        samples[split] += task.num_samples
    return ", ".join(f"{name} {count}" for name, count in samples.items())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
