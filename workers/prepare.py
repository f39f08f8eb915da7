"""What happens once before the shards: claim the output, fit the labeler."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.check_run import check_output, labeler_path, open_output_labeler
from pipeline.generator.sampling import Sampler
from pipeline.labelers import fit_labeler, guide_marker, labeler_findings, labeler_guide
from pipeline.machine_kind import machine_kind
from pipeline.output_claim import check_labeler_claim, claim_fingerprint, claim_output
from pipeline.shard_check import ShardOrigin
from pipeline.store import Store
from schemas.config import RunConfig
from schemas.errors import ConfigError, OutputError
from schemas.fingerprint import fingerprint, identity
from schemas.labeler_findings import LabelerFindings
from schemas.manifest import CheckpointSource
from schemas.sample import ImageShape, OptionalFile
from schemas.secrets import plain_address
from workers.shard_worker import ShardWorker, open_sampler


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


def prepare(config: RunConfig, sampler: Sampler, checkpoint: CheckpointSource) -> PreparedRun:
    """Claim the output for this configuration and publish the fitted labeler, or load the one that is there.

    Raises OutputError where the output is another run's, or its labeler is not the one that it was claimed for.
    """
    store = Store.open(config.output)
    run_identity = identity(config, checkpoint.sha256)
    fitted = check_output(config, sampler, checkpoint.sha256)
    claim_output(store, run_identity)
    path = labeler_path(config)
    if fitted is None:
        _publish_labeler(store, run_identity, path, fit_labeler(config.labeler, sampler, checkpoint.sha256))
        fitted = store.read(path)
    labeler_sha256 = hashlib.sha256(fitted).hexdigest()
    labeler = open_output_labeler(config, sampler, fitted, checkpoint.sha256)
    claim_fingerprint(store, run_identity, path, labeler_sha256, machine_kind(sampler.device))
    _publish_guide(config, store, sampler, fitted)
    return PreparedRun(
        checkpoint=checkpoint,
        labeler_sha256=labeler_sha256,
        fingerprint=fingerprint(run_identity, labeler_sha256),
        classes=labeler.classes,
        image_shape=sampler.generator.spec.image_shape,
        optional_files=labeler.optional_files,
        findings=labeler_findings(config.labeler, fitted),
    )


def _publish_labeler(store: Store, run_identity: Mapping[str, Any], path: str, fitted: bytes) -> None:
    """The first one published wins: fits on other devices may differ in a bit."""
    try:
        check_labeler_claim(store, run_identity, path, hashlib.sha256(fitted).hexdigest())
    except OutputError:
        if not store.exists(path):  # where another driver has claimed the output meanwhile, its labeler is there
            raise
    else:
        store.create(path, fitted)


def _publish_guide(config: RunConfig, store: Store, sampler: Sampler, fitted: bytes) -> None:
    """Put what a person looks at beside the fitted labeler, unless it is there."""
    marker = guide_marker(config.labeler)
    if marker is None or store.exists(f"labeler/{marker}"):
        return
    for name, content in labeler_guide(config.labeler, sampler, fitted).items():
        store.create(f"labeler/{name}", content)


def open_prepared_worker(config: RunConfig, run: PreparedRun) -> ShardWorker:
    """A worker of a run that was prepared elsewhere. Raises ConfigError where this machine sees other files."""
    sampler, checkpoint = open_sampler(config)
    if checkpoint.sha256 != run.checkpoint.sha256:
        raise ConfigError(
            f"generator.checkpoint: {plain_address(config.generator.checkpoint)} holds other content on this machine "
            f"than where the run was prepared (sha256 {checkpoint.sha256[:12]} instead of "
            f"{run.checkpoint.sha256[:12]}); give every node the same file, or a URL"
        )
    return worker_of(config, run, sampler)


def worker_of(config: RunConfig, run: PreparedRun, sampler: Sampler) -> ShardWorker:
    """A worker with a generator that is open already. Raises as `read_labeler` does."""
    return ShardWorker(
        config,
        sampler,
        checkpoint_sha256=run.checkpoint.sha256,
        fitted=read_labeler(config, run),
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
