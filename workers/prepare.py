"""What happens once before the shards: claim the output, fit the labeler."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labelmill.pipeline.check_run import OutputLabeler, check_output, labeler_path, open_output_labeler
from labelmill.pipeline.dataset.claim import check_labeler_claim, claim_fingerprint, claim_output
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.instances.run_labeler import fit_run_labeler
from labelmill.pipeline.labelers.base import FittedLabeler, Labeler
from labelmill.pipeline.labelers.methods import method_of
from labelmill.pipeline.process.log import log
from labelmill.pipeline.process.machine_kind import machine_kind
from labelmill.pipeline.promise.calibrate import calibrate
from labelmill.pipeline.promise.standing import keep_promise, standing_promise
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import NumericsConfig, RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.fingerprint import fingerprint
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.manifest import CheckpointSource
from labelmill.schemas.promise import Promise
from labelmill.schemas.sample import ImageShape, OptionalFile
from labelmill.schemas.secrets import plain_address
from labelmill.workers.fit_folder import fit_folder, forget_fit
from labelmill.workers.shard_worker import ShardWorker


@dataclass(frozen=True)
class PreparedRun:
    """A run whose output is claimed and whose labeler is fitted and published.

    Small enough to travel within Ray's messages: its object store goes down with a node, and takes the driver along.
    """

    checkpoint: CheckpointSource
    labeler_sha256: str
    """Of the fitted labeler's file in the output."""
    fingerprint: str
    classes: tuple[str, ...]
    image_shape: ImageShape
    optional_files: tuple[OptionalFile, ...]
    """What the labeler gives beside masks."""
    findings: LabelerFindings
    promise: Promise | None
    """How the run's promise is kept; None where it makes none."""
    numerics: NumericsConfig
    """The run's, with the precision that `auto` means where it was prepared: all workers compute in it."""

    def origin(self, config: RunConfig) -> ShardOrigin:
        """What every shard of the run must say of itself."""
        return ShardOrigin(
            self.fingerprint,
            self.checkpoint.sha256,
            self.classes,
            self.image_shape,
            config.dataset.image_format,
            self.optional_files,
        )


@dataclass(frozen=True)
class OpenRun:
    """A prepared run in the process that prepared it, which has its labeler open."""

    run: PreparedRun
    labeler: Labeler


def prepare(config: RunConfig, sampler: Sampler, checkpoint: CheckpointSource) -> OpenRun:
    """Claim the output for this configuration and publish the fitted labeler, or load the one that is there.

    Raises OutputError where the output is another run's, or its labeler is not the one that it was claimed for.
    """
    store = Store.open(config.output)
    precision = sampler.numerics.precision
    if config.numerics.precision == "auto" and precision != "float32":
        log(f"numerics.precision: auto is {precision} on this device, {machine_kind(sampler.device).device}")
    output = check_output(config, sampler, checkpoint.sha256)
    claim_output(store, output.identity)
    if output.labeler is None:
        labeler = _fit(config, sampler, checkpoint.sha256, output.identity)
    else:
        labeler = output.labeler
        forget_fit(store, output.identity)
    claim_fingerprint(store, output.identity, labeler_path(config), labeler.sha256, machine_kind(sampler.device))
    _publish_guide(config, store, labeler.opened)
    promise = _promise(config, sampler, labeler.opened, checkpoint.sha256)
    run = PreparedRun(
        checkpoint=checkpoint,
        labeler_sha256=labeler.sha256,
        fingerprint=fingerprint(output.identity, labeler.sha256),
        classes=tuple(labeler.opened.labeler.classes),
        image_shape=sampler.generator.spec.image_shape,
        optional_files=labeler.opened.labeler.optional_files,
        findings=labeler.opened.findings,
        promise=promise,
        numerics=sampler.numerics,
    )
    return OpenRun(run, labeler.opened.labeler)


def _fit(config: RunConfig, sampler: Sampler, checkpoint_sha256: str, run_identity: Mapping[str, Any]) -> OutputLabeler:
    """Fit and publish, and open what is published then: another driver may have been faster."""
    store, path = Store.open(config.output), labeler_path(config)
    with fit_folder(store, run_identity) as work:
        fitted = fit_run_labeler(config, sampler, checkpoint_sha256, work)
        if not _publish_labeler(store, run_identity, path, fitted):
            fitted = store.read(path)
    opened = open_output_labeler(config, sampler, fitted, checkpoint_sha256)
    return OutputLabeler(hashlib.sha256(fitted).hexdigest(), opened)


def _publish_labeler(store: Store, run_identity: Mapping[str, Any], path: str, fitted: bytes) -> bool:
    """Whether it is published. The first one wins: fits on other devices may differ in a bit."""
    try:
        check_labeler_claim(store, run_identity, path, hashlib.sha256(fitted).hexdigest())
    except OutputError:
        if not store.exists(path):  # where another driver has claimed the output meanwhile, its labeler is there
            raise
        return False
    return store.create(path, fitted)


def _publish_guide(config: RunConfig, store: Store, fitted: FittedLabeler) -> None:
    """Put what a person looks at beside the fitted labeler, unless it is there."""
    last = method_of(config.labeler).guide_file
    if last is None or store.exists(f"labeler/{last.name}"):
        return
    for name, content in fitted.guide().items():
        store.create(f"labeler/{name}", content)


def _promise(config: RunConfig, sampler: Sampler, fitted: FittedLabeler, checkpoint_sha256: str) -> Promise | None:
    """The promise that stands in the output, or one that is calibrated now."""
    store = Store.open(config.output)
    standing = standing_promise(store, config)
    promise = standing or calibrate(config, sampler, fitted.labeler, checkpoint_sha256)
    if promise is None or standing is not None:
        return standing
    for line in promise.words:
        log(f"promise: {line}")
    return keep_promise(store, config, promise)


def open_prepared_worker(config: RunConfig, run: PreparedRun) -> ShardWorker:
    """A worker of a run that was prepared elsewhere. Raises ConfigError where this machine sees other files."""
    sampler, checkpoint = open_sampler(config.computing(run.numerics))
    if checkpoint.sha256 != run.checkpoint.sha256:
        raise ConfigError(
            f"generator.checkpoint: {plain_address(config.generator.checkpoint)} holds other content on this machine "
            f"than where the run was prepared (sha256 {checkpoint.sha256[:12]} instead of "
            f"{run.checkpoint.sha256[:12]}); give every node the same file, or a URL"
        )
    method_of(config.labeler).check(config.labeler, sampler)
    fitted = open_output_labeler(config, sampler, read_labeler(config, run), checkpoint.sha256)
    return worker_of(config, OpenRun(run, fitted.labeler), sampler)


def worker_of(config: RunConfig, opened: OpenRun, sampler: Sampler) -> ShardWorker:
    """A worker with a generator and a labeler that are open already."""
    run = opened.run
    return ShardWorker(
        config.keeping(run.promise),
        sampler,
        checkpoint_sha256=run.checkpoint.sha256,
        labeler=opened.labeler,
        fingerprint=run.fingerprint,
    )


def read_labeler(config: RunConfig, run: PreparedRun) -> bytes:
    """The run's fitted labeler. Raises ConfigError unless this machine finds it in the output."""
    store = Store.open(config.output)
    path = labeler_path(config)
    try:
        fitted = store.read(path)
    except FileNotFoundError:
        fitted = None
    if fitted is None or hashlib.sha256(fitted).hexdigest() != run.labeler_sha256:
        raise ConfigError(
            f"output: {config.output} is not the same place on every machine of the cluster: one has just written "
            f"{path} there, another does not find it. Use a bucket (s3://, gs://, az://) or a shared file system"
        )
    return fitted
