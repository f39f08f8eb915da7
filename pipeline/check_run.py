"""One check of a run for validate, plan, generate and nightly validate: what one refuses, all refuse.

`check_run` is all of it, and writes nothing. `generate` makes the same checks in this order, each where it can be made:
settings before a cluster is asked for, the output on a worker, which has the checkpoint, and shards on the driver,
which then rebuilds what follows from their tars.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.existing_shards import check_strangers, existing_records
from pipeline.generator.sampling import Sampler
from pipeline.labelers import (
    FittedLabelerError,
    Labeler,
    check_labeler,
    check_prompts,
    labeler_findings,
    open_labeler,
)
from pipeline.output_claim import check_claim, check_labeler_claim
from pipeline.quality import check_rules
from pipeline.shard_check import ShardOrigin
from pipeline.speech import say
from pipeline.splits import check_splits, empty_splits
from pipeline.store import Store
from schemas.config import RunConfig
from schemas.errors import ConfigError, OutputError
from schemas.fingerprint import fingerprint, identity
from schemas.labeler_findings import LabelerFindings
from schemas.manifest import CheckpointSource
from schemas.shard import ShardRecord


@dataclass(frozen=True)
class CheckedRun:
    """A run that `generate` would not refuse."""

    sampler: Sampler
    checkpoint: CheckpointSource
    fitted: bytes | None
    """The output's fitted labeler; None where `generate` has yet to fit one."""
    records: list[ShardRecord]
    """Of the shards that are there, by index."""


def check_run(config: RunConfig, open_sampler: Callable[[RunConfig], tuple[Sampler, CheckpointSource]]) -> CheckedRun:
    """Everything that can be known before work. Raises LabelmillError kinds as `generate` would; writes nothing."""
    check_settings(config)
    sampler, checkpoint = open_sampler(config)
    fitted = check_output(config, sampler, checkpoint.sha256)
    store = Store.open(config.output)
    if fitted is None:
        check_prompts(config.labeler, sampler)
        check_strangers(store, config)
        return CheckedRun(sampler, checkpoint, None, [])
    labeler = open_output_labeler(config, sampler, fitted, checkpoint.sha256)
    check_strength(config, labeler_findings(config.labeler, fitted))
    origin = ShardOrigin(
        fingerprint(identity(config, checkpoint.sha256), hashlib.sha256(fitted).hexdigest()),
        checkpoint.sha256,
        tuple(labeler.classes),
        sampler.generator.spec.image_shape,
        config.dataset.image_format,
        labeler.optional_files,
    )
    return CheckedRun(sampler, checkpoint, fitted, existing_records(store, config, origin, repair=False))


def check_settings(config: RunConfig) -> None:
    """What the run file alone tells. Raises ConfigError; warns of splits that stay empty."""
    check_rules(config)
    check_splits(config.dataset)
    empty = empty_splits(config.dataset)
    if empty:
        say(
            f"dataset.splits: one shard of {config.dataset.samples} samples is all in one split; "
            f"{', '.join(empty)} stays empty. A smaller dataset.samples_per_shard makes more shards",
            level="warning",
        )
    Store.open(config.output)


def check_output(config: RunConfig, sampler: Sampler, checkpoint_sha256: str) -> bytes | None:
    """Whether generator, labeler and output go together. The output's fitted labeler; None if it has none yet.

    Raises ConfigError, OutputError or FittedLabelerError.
    """
    check_labeler(config.labeler, sampler)
    store = Store.open(config.output)
    run_identity = identity(config, checkpoint_sha256)
    check_claim(store, run_identity)
    path = labeler_path(config)
    try:
        fitted = store.read(path)
    except FileNotFoundError:
        return None
    check_labeler_claim(store, run_identity, path, hashlib.sha256(fitted).hexdigest())
    return fitted


def open_output_labeler(config: RunConfig, sampler: Sampler, fitted: bytes, checkpoint_sha256: str) -> Labeler:
    """The labeler that the output holds. Raises OutputError naming its file where it cannot be used."""
    try:
        return open_labeler(config.labeler, sampler, fitted, checkpoint_sha256)
    except FittedLabelerError as error:
        raise OutputError(
            f"{config.output}/{labeler_path(config)}: {error}; or delete it and run `labelmill generate` again"
        ) from error


def check_strength(config: RunConfig, findings: LabelerFindings) -> None:
    """Raises ConfigError for a labeler that found nothing, unless the run allows it; warns where it is doubtful."""
    if findings.verdict == "sound":
        return
    if findings.verdict == "weak" and not config.quality.allow_weak_labeler:
        remedy = "To label with it all the same, set quality.allow_weak_labeler: true"
        raise ConfigError(
            "\n  ".join(["labeler: what `fit` found is too weak to label with:", *findings.words, remedy])
        )
    for line in findings.words:
        say(f"labeler: {line}", level="warning")


def labeler_path(config: RunConfig) -> str:
    """Where an output keeps the run's fitted labeler."""
    return f"labeler/{config.labeler.method}.safetensors"
