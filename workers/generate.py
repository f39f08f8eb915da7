"""A run from its configuration to its manifest: claim the output, fit, make what is missing, finish."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.generator.sampling import Sampler
from pipeline.labelers import fit_labeler
from pipeline.manifest import DatasetContext, claim_output, finish_dataset
from pipeline.plan import check_extension, remaining_tasks, shard_tasks
from pipeline.shard_publisher import load_records
from pipeline.store import Store
from schemas.config import RunConfig
from schemas.fingerprint import fingerprint, identity
from schemas.manifest import CheckpointSource
from schemas.shard import ShardRecord
from workers.local import run_locally
from workers.progress import RunProgress, say
from workers.shard_worker import ShardWorker, labeler_path, open_sampler

# Staging files of killed writers older than this are nobody's: a put takes seconds.
ORPHAN_SECONDS = 3600.0


@dataclass(frozen=True)
class PreparedRun:
    """A run whose output is claimed and whose labeler is fitted."""

    store: Store
    sampler: Sampler
    checkpoint: CheckpointSource
    fitted: bytes
    fingerprint: str

    @property
    def labeler_sha256(self) -> str:
        return hashlib.sha256(self.fitted).hexdigest()

    def open_worker(self, config: RunConfig) -> ShardWorker:
        return ShardWorker(
            config,
            self.sampler,
            checkpoint_sha256=self.checkpoint.sha256,
            fitted=self.fitted,
            fingerprint=self.fingerprint,
        )


def prepare(config: RunConfig) -> PreparedRun:
    """Claim the output for this configuration and publish the fitted labeler, or load the one that is there."""
    store = Store.open(config.output)
    sampler, checkpoint = open_sampler(config)
    run_identity = identity(config, checkpoint.sha256)
    claim_output(store, run_identity)
    path = labeler_path(config)
    if not store.exists(path):
        say(f"fitting the labeler on {config.labeler.fit_samples} images")
        # The first one published wins: fits on other devices may differ in a bit.
        store.create(path, fit_labeler(config.labeler, sampler, checkpoint.sha256))
    fitted = store.read(path)
    labeler_sha256 = hashlib.sha256(fitted).hexdigest()
    return PreparedRun(store, sampler, checkpoint, fitted, fingerprint(run_identity, labeler_sha256))


def generate(config: RunConfig) -> list[ShardRecord]:
    """Make the dataset, or what is missing of it, and write its manifest last. Returns every shard's record.

    Raises LabelmillError for what a person must mend. That, an interruption or a kill at any moment leaves an output
    that the same command finishes.
    """
    run = prepare(config)
    run.store.sweep_orphans(ORPHAN_SECONDS)
    done = load_records(run.store)
    check_extension(config.dataset, done)
    with run.open_worker(config) as worker:
        records = sorted([*done, *_make_missing(config, worker, run.store, done)], key=lambda record: record.index)
        classes = worker.mill.labeler.classes
    assert len(records) == config.dataset.num_shards
    context = DatasetContext(
        config=config,
        checkpoint=run.checkpoint,
        fitted=run.fitted,
        fingerprint=run.fingerprint,
        classes=classes,
        resolution=run.sampler.generator.spec.resolution,
    )
    finish_dataset(run.store, records, context)
    return records


def _make_missing(
    config: RunConfig, worker: ShardWorker, store: Store, done: list[ShardRecord]
) -> Iterator[ShardRecord]:
    tasks = remaining_tasks(shard_tasks(config), done)
    with RunProgress(store, total_samples=config.dataset.samples, done=done) as progress:
        for record in run_locally(worker, tasks, store):
            progress.add(record)
            yield record
