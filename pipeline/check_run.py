"""One check of a run for validate, plan, generate and nightly validate: what one refuses, all refuse.

`check_run` is all of it, and writes nothing. `generate` makes the same checks in this order, each where it can be made:
settings before a cluster is asked for, the output on a worker, which has the checkpoint, and shards on the driver,
which then rebuilds what follows from their tars.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from labelmill.pipeline.dataset.claim import check_claim, check_labeler_claim, claimed_identity
from labelmill.pipeline.dataset.existing_shards import check_strangers, existing_records
from labelmill.pipeline.dataset.splits import check_splits, empty_splits
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.generator.sampling import Sampler, check_memory
from labelmill.pipeline.instances.run_labeler import check_instances, instance_inputs, open_run_labeler
from labelmill.pipeline.labelers.base import FittedLabeler
from labelmill.pipeline.labelers.fitted_file import FittedLabelerError
from labelmill.pipeline.labelers.methods import method_of
from labelmill.pipeline.process.log import log
from labelmill.pipeline.promise.calibrate import check_promise, promise_inputs
from labelmill.pipeline.promise.standing import standing_promise
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.fingerprint import fingerprint, identity
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.manifest import CheckpointSource
from labelmill.schemas.promise import Promise
from labelmill.schemas.shard import ShardRecord


@dataclass(frozen=True)
class OutputLabeler:
    """The fitted labeler that an output holds, read once."""

    sha256: str
    opened: FittedLabeler


@dataclass(frozen=True)
class CheckedOutput:
    """An output that goes together with generator and labeler."""

    identity: dict[str, Any]
    """What the run is to the output (labelmill.schemas.fingerprint.identity)."""
    labeler: OutputLabeler | None
    """None where `generate` has yet to fit one."""
    promise: Promise | None
    """None where the run makes none, or `generate` has yet to calibrate it."""


@dataclass(frozen=True)
class CheckedRun:
    """A run that `generate` would not refuse."""

    sampler: Sampler
    checkpoint: CheckpointSource
    labeler: FittedLabeler | None
    """The output's; None where `generate` has yet to fit one."""
    promise: Promise | None
    """The output's; None where the run makes none, or `generate` has yet to calibrate it."""
    records: list[ShardRecord]
    """Of the shards that are there, by index."""


def check_run(config: RunConfig) -> CheckedRun:
    """Everything that can be known before work. Raises LabelmillError kinds as `generate` would; writes nothing."""
    Store.open(config.output)
    check_settings(config)
    return check_opened_run(config, *open_sampler(config))


def check_opened_run(config: RunConfig, sampler: Sampler, checkpoint: CheckpointSource) -> CheckedRun:
    """The rest of `check_run`, once the generator is open."""
    warn_of_empty_splits(config)
    output = check_output(config, sampler, checkpoint.sha256)
    if output.labeler is None:
        return CheckedRun(sampler, checkpoint, None, None, [])
    fitted = output.labeler.opened
    check_strength(config, fitted.findings)
    origin = ShardOrigin(
        fingerprint(output.identity, output.labeler.sha256),
        checkpoint.sha256,
        tuple(fitted.labeler.classes),
        sampler.generator.spec.image_shape,
        config.dataset.image_format,
        fitted.labeler.optional_files,
    )
    records = existing_records(Store.open(config.output), config, origin, repair=False)
    return CheckedRun(sampler, checkpoint, fitted, output.promise, records)


def check_settings(config: RunConfig) -> None:
    """What the run file alone tells. Raises ConfigError."""
    method_of(config.labeler).check_rules(config.labeler, config.quality)
    check_splits(config.dataset)


def warn_of_empty_splits(config: RunConfig) -> None:
    """Warns of splits that were asked for and get no shard."""
    empty = empty_splits(config.dataset)
    if empty:
        log(
            f"dataset.splits: one shard of {config.dataset.samples} samples is all in one split; "
            f"{', '.join(empty)} stays empty. A smaller dataset.samples_per_shard makes more shards",
            level="warning",
        )


def check_output(config: RunConfig, sampler: Sampler, checkpoint_sha256: str) -> CheckedOutput:
    """Whether generator, labeler and output go together, and what `fit` reads is there where it has yet to run.

    Writes nothing. Raises LabelmillError kinds.
    """
    config = config.computing(sampler.numerics)
    check_memory(sampler)
    method = method_of(config.labeler)
    method.check(config.labeler, sampler)
    check_instances(config, sampler)
    store = Store.open(config.output)
    run_identity = claimed_identity(store, identity(config, checkpoint_sha256, read_inputs(config)))
    check_claim(store, run_identity)
    path = labeler_path(config)
    try:
        fitted = store.read(path)
    except FileNotFoundError:
        method.check_inputs(config.labeler, sampler, checkpoint_sha256)
        check_promise(config, checkpoint_sha256)
        check_strangers(store, config)
        return CheckedOutput(run_identity, None, None)
    labeler_sha256 = hashlib.sha256(fitted).hexdigest()
    check_labeler_claim(store, run_identity, path, labeler_sha256)
    opened = open_output_labeler(config, sampler, fitted, checkpoint_sha256)
    promise = standing_promise(store, config)
    if promise is None:
        check_promise(config, checkpoint_sha256)
    return CheckedOutput(run_identity, OutputLabeler(labeler_sha256, opened), promise)


def read_inputs(config: RunConfig) -> dict[str, str]:
    """Content hashes of what the run reads beside its generator, by name. Raises LabelmillError kinds."""
    return {**method_of(config.labeler).inputs(config.labeler), **instance_inputs(config), **promise_inputs(config)}


def open_output_labeler(config: RunConfig, sampler: Sampler, fitted: bytes, checkpoint_sha256: str) -> FittedLabeler:
    """The labeler that the output holds. Raises OutputError naming its file where it cannot be used."""
    try:
        return open_run_labeler(config, sampler, fitted, checkpoint_sha256)
    except FittedLabelerError as error:
        raise OutputError(
            f"{config.output}/{labeler_path(config)}: {error}; or delete it and run `labelmill generate` again"
        ) from error


def check_strength(config: RunConfig, findings: LabelerFindings) -> None:
    """Raises ConfigError for a labeler that found nothing, unless the run allows it; warns where it is doubtful."""
    if findings.verdict == "sound":
        return
    if findings.verdict == "weak" and not config.quality.allow_weak_labeler:
        remedy = "To label with it anyway, set quality.allow_weak_labeler: true"
        raise ConfigError(
            "\n  ".join(["labeler: what `fit` found is too weak to label with:", *findings.words, remedy])
        )
    for line in findings.words:
        log(f"labeler: {line}", level="warning")


def labeler_path(config: RunConfig) -> str:
    """Where an output keeps the run's fitted labeler."""
    return f"labeler/{config.labeler.method}.safetensors"
