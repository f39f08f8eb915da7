"""A worker: has the generator and the fitted labeler open, makes shards and publishes them."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.make_shard import DrawnShard, LoadedRun, make_shard
from labelmill.pipeline.process.machine_kind import machine_kind
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.shards.publisher import adopt_shard, publish_shard, tar_path
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import ExecutionConfig, RunConfig
from labelmill.schemas.shard import ShardRecord, ShardTask

_MOST_ENCODERS = 64


class ShardWorker:
    """Makes any shard of a run. A plain class: the local executor calls it, a Ray actor wraps it.

    `synthesise` is for one thread, which keeps the device busy; `publish` may run beside it in others.
    """

    def __init__(
        self, config: RunConfig, sampler: Sampler, *, checkpoint_sha256: str, labeler: Labeler, fingerprint: str
    ) -> None:
        self._store = Store.open(config.output)
        self._encoders = ThreadPoolExecutor(num_encoders(config.execution), thread_name_prefix="encode")
        self.loaded = LoadedRun(
            config=config,
            sampler=sampler,
            labeler=labeler,
            checkpoint_sha256=checkpoint_sha256,
            fingerprint=fingerprint,
            encoders=self._encoders,
        )
        self._kind = machine_kind(sampler.device)
        self._origin = ShardOrigin(
            fingerprint,
            checkpoint_sha256,
            tuple(self.loaded.labeler.classes),
            sampler.generator.spec.image_shape,
            config.dataset.image_format,
            self.loaded.labeler.optional_files,
        )

    def synthesise(self, task: ShardTask) -> DrawnShard | None:
        """The shard, whose last samples may still be encoded; None where another driver or worker has published it."""
        if self._store.exists(tar_path(task.name)):
            return None
        return make_shard(task, self.loaded)

    def publish(self, task: ShardTask, drawn: DrawnShard | None, attempt: int) -> ShardRecord:
        """Finish and publish what `synthesise` drew. Another worker may have been faster: the first one wins."""
        if drawn is None:
            return adopt_shard(self._store, task, self._origin)
        made = drawn.finish()
        if made.rejects_tar is not None:
            self._store.create(f"rejects/{task.name}.tar", made.rejects_tar)
        return publish_shard(
            self._store,
            task,
            made.tar,
            origin=self._origin,
            seconds_by_stage=made.seconds_by_stage,
            attempts=attempt,
            host=socket.gethostname(),
            kind=self._kind,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoders.shutdown(wait=True, cancel_futures=True)


def num_encoders(execution: ExecutionConfig) -> int:
    """Threads that a worker judges and encodes with: its cores without those that feed the device and publish."""
    if execution.encode_threads != "auto":
        return execution.encode_threads
    cores = execution.cpus_per_worker if execution.executor == "ray" else "auto"
    return max(2, min(_MOST_ENCODERS, (_cores_of_process() if cores == "auto" else cores) - 2))


def _cores_of_process() -> int:
    # Linux knows what a process may use of a machine.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
