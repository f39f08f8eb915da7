"""A run from its configuration to its manifest: prepare on a worker, make what is missing, finish."""

import os

from labelmill.pipeline.check_run import check_settings, check_strength, warn_of_empty_splits
from labelmill.pipeline.dataset.existing_shards import existing_records
from labelmill.pipeline.dataset.finish import DatasetContext, finish_dataset
from labelmill.pipeline.dataset.plan import remaining_tasks, shard_tasks
from labelmill.pipeline.dataset.splits import check_splits
from labelmill.pipeline.labelers.methods import method_of
from labelmill.pipeline.process.log import log, log_context
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.shard import ShardRecord
from labelmill.workers.pool import AwakeClock, Cluster, make_shards
from labelmill.workers.prepare import PreparedRun
from labelmill.workers.progress import RunProgress
from labelmill.workers.supervisor import Supervisor

# Staging files of killed writers older than this are nobody's: a put takes seconds.
ORPHAN_SECONDS = 3600.0


def open_cluster(config: RunConfig) -> Cluster:
    """The executor that the configuration names."""
    if config.execution.executor == "ray":
        # Ray ends a process with status 1 once it believes that its raylet died. Unless told, before its import, whose
        # life to look at, it takes init as a driver's parent, as under systemd or tini, for a sign of that.
        os.environ["RAY_RAYLET_PID"] = str(os.getpid())
        from labelmill.workers.ray_cluster import (
            RayCluster,  # Ray takes a second to import, and the local executor needs none
        )

        return RayCluster(config)
    from labelmill.workers.local import LocalCluster

    return LocalCluster(config)


def fit(config: RunConfig) -> PreparedRun:
    """Claim the output and publish the fitted labeler, where `generate` will find it.

    Refuses what `generate` would, but for quality rules that need classes: those of clusters get their names from what
    `fit` shows.
    """
    Store.open(config.output)
    check_splits(config.dataset)
    with log_context(config.name), open_cluster(config) as cluster:
        return cluster.prepare()


def generate(config: RunConfig) -> list[ShardRecord]:
    """Make the dataset, or what is missing of it, and write its manifest last. Returns every shard's record.

    Raises LabelmillError for what a person must mend. That, an interruption or a kill at any moment leaves an output
    that the same command finishes.
    """
    store = Store.open(config.output)
    with log_context(config.name), _settled_cluster(config) as cluster:
        subject = method_of(config.labeler).describe(config.labeler)
        log(f"preparing: the generator, and {subject} unless it is fitted")
        run = cluster.prepare()
        check_strength(config, run.findings)
        store.sweep_orphans(ORPHAN_SECONDS)
        done = existing_records(store, config, run.origin(config), repair=True)
        records = sorted([*done, *_make_missing(config, cluster, store, done)], key=lambda record: record.index)
        assert len(records) == config.dataset.num_shards
        context = DatasetContext(
            config=config.computing(run.numerics),
            checkpoint=run.checkpoint,
            labeler_sha256=run.labeler_sha256,
            fingerprint=run.fingerprint,
            classes=run.classes,
            image_shape=run.image_shape,
            optional_files=run.optional_files,
            findings=run.findings,
            promise=run.promise,
        )
        manifest = finish_dataset(store, records, context)
        if len(manifest.kinds) > 1:
            several = "; ".join(map(str, manifest.kinds))
            log(f"the dataset was made by several kinds of machines or libraries: {several}", level="warning")
    return records


def _settled_cluster(config: RunConfig) -> Cluster:
    check_settings(config)
    warn_of_empty_splits(config)
    return open_cluster(config)


def _make_missing(config: RunConfig, cluster: Cluster, store: Store, done: list[ShardRecord]) -> list[ShardRecord]:
    clock = AwakeClock()
    supervisor = Supervisor(remaining_tasks(shard_tasks(config), done), cluster.limits(), clock.now(), len(done))
    made = []
    samples = config.dataset.samples
    with RunProgress(store, supervisor, total_samples=samples, done=done, show=cluster.show) as progress:
        for record in make_shards(cluster, supervisor, clock, progress.tick):
            progress.add(record)
            made.append(record)
    return made
