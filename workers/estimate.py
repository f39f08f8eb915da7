"""What a run will do and cost: measured on a small shard of it that is thrown away, then multiplied."""

import time
from collections import Counter

from labelmill.pipeline.check_run import CheckedRun, check_run, check_strength
from labelmill.pipeline.dataset.claim import shard_splits
from labelmill.pipeline.dataset.plan import held_out_first_seed, remaining_tasks, shard_tasks
from labelmill.pipeline.instances.run_labeler import fit_run_to_bytes, open_run_labeler
from labelmill.pipeline.make_shard import make_shard
from labelmill.pipeline.process.machine_kind import machine_kind
from labelmill.pipeline.promise.calibrate import calibrate
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.shard import ShardTask
from labelmill.workers.preview import unpublished_worker

TRIAL_BATCHES = 2


def estimate(config: RunConfig) -> list[str]:
    """Lines that describe what the run will make, in what time and how many bytes. Writes nothing.

    Raises what `generate` would raise for this configuration.
    """
    checked, tasks = check_run(config), shard_tasks(config)
    missing = remaining_tasks(tasks, checked.records)
    num_missing = sum(task.num_samples for task in missing)
    seconds_to_fit, seconds, num_bytes, kept_share = _measure(config, checked)
    return [
        f"{config.output}: {config.dataset.samples} samples in {len(tasks)} shards ({_splits(config, tasks)})",
        f"seeds {tasks[0].first_seed} to {tasks[-1].first_seed + tasks[-1].num_seeds - 1}, "
        f"{config.dataset.seeds_per_shard} per shard; for a dataset of other images to score on, set "
        f"dataset.first_seed: {held_out_first_seed(config.dataset)}",
        f"existing: {len(tasks) - len(missing)} shards; to make: {len(missing)} shards, {num_missing} samples",
        f"numerics.precision: {checked.sampler.numerics.precision} on this machine's device, "
        f"{machine_kind(checked.sampler.device).device}",
        f"measured on this machine: {1000 * seconds:.1f} ms and {num_bytes / 1000:.1f} kB per sample, "
        f"{kept_share:.0%} of the candidates kept",
        f"estimate: {_duration(seconds_to_fit + num_missing * seconds)} "
        f"({_duration(seconds_to_fit)} of it to fit the labeler), {num_missing * num_bytes / 1e6:.1f} MB",
    ]


def _measure(config: RunConfig, checked: CheckedRun) -> tuple[float, float, float, float]:
    """Seconds to fit; seconds and bytes per sample; the share of candidates kept."""
    start = time.perf_counter()
    sampler, sha256, fitted = checked.sampler, checked.checkpoint.sha256, checked.labeler
    if fitted is None:
        fitted = open_run_labeler(config, sampler, fit_run_to_bytes(config, sampler, sha256), sha256)
        check_strength(config, fitted.findings)
    first = shard_tasks(config)[0]
    num_samples = min(TRIAL_BATCHES * config.numerics.batch_size, first.num_samples)
    trial = first.model_copy(update={"num_samples": num_samples})
    promise = checked.promise or calibrate(config, sampler, fitted.labeler, sha256)
    with unpublished_worker(config.keeping(promise), sampler, sha256, fitted.labeler) as worker:
        seconds_to_fit, start = time.perf_counter() - start, time.perf_counter()
        made = make_shard(trial, worker.loaded).finish()
        seconds = time.perf_counter() - start
    return (
        seconds_to_fit,
        seconds / num_samples,
        len(made.tar) / num_samples,
        num_samples / made.num_candidates,
    )


def _splits(config: RunConfig, tasks: list[ShardTask]) -> str:
    samples: Counter[str] = Counter(dict.fromkeys(config.dataset.splits, 0))
    assigned = shard_splits(Store.open(config.output), len(tasks), config.dataset.splits)
    for task, split in zip(tasks, assigned, strict=True):
        samples[split] += task.num_samples
    return ", ".join(f"{name} {count}" for name, count in samples.items())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
