"""The local executor: a cluster of one worker, in this process."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from types import TracebackType
from typing import Self

from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.process.interruption import Interrupted, result_of
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import EXIT_RESUMABLE
from labelmill.schemas.progress import RunState
from labelmill.schemas.shard import ShardRecord, ShardTask
from labelmill.workers.prepare import OpenRun, PreparedRun, prepare, worker_of
from labelmill.workers.shard_worker import ShardWorker
from labelmill.workers.supervisor import Event, Failed, Limits, Loaded, Made, Placed
from labelmill.workers.watchdog import Watchdog

# Time limit for the shard that is being published when the run is interrupted; a store that is down may take minutes
# to fail.
_LAST_PUT_SECONDS = 5.0
_LAST_WORDS = "interrupted, and the output does not answer; rerun the same command to resume"


def _limited_last_put() -> AbstractContextManager[None]:
    """Ends the process if the last put takes longer than _LAST_PUT_SECONDS."""
    return Watchdog().limit(_LAST_PUT_SECONDS, exit_code=EXIT_RESUMABLE, last_words=_LAST_WORDS)


class LocalCluster:
    """Makes one shard in the main thread while a second thread publishes the one before it."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._sampler, self._checkpoint = open_sampler(config)
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._opened: OpenRun | None = None
        self._worker: ShardWorker | None = None
        self._news: list[Event] = []
        self._to_make: deque[tuple[int, ShardTask, int]] = deque()
        self._publishing: deque[tuple[int, ShardTask, Future[ShardRecord]]] = deque()

    def prepare(self) -> PreparedRun:
        """Claim the output and fit the labeler."""
        self._opened = prepare(self._config, self._sampler, self._checkpoint)
        return self._opened.run

    def limits(self) -> Limits:
        """One worker, which cannot be ended."""
        return Limits(workers=1, shard_seconds=float("inf"), start_seconds=float("inf"))

    def start(self, worker: int) -> None:
        self._news.append(Placed(worker))

    def load(self, worker: int) -> None:
        assert self._opened is not None
        self._worker = worker_of(self._config, self._opened, self._sampler)
        self._news.append(Loaded(worker))

    def make(self, worker: int, task: ShardTask, attempt: int) -> None:
        self._to_make.append((worker, task, attempt))

    def kill(self, worker: int) -> None:
        raise AssertionError("the local worker has no deadlines")

    def show(self, state: RunState) -> None:
        """A local run has no cluster that shows its state."""

    def wait(self, seconds: float) -> list[Event]:
        """Synthesise the next shard, if any, and collect what has been published meanwhile."""
        if self._to_make:
            self._synthesise(*self._to_make.popleft())
        # With nothing else to do, wait for the oldest; else take only what is ready.
        while self._publishing and (self._publishing[0][2].done() or not (self._to_make or self._news)):
            self._collect(*self._publishing.popleft())
        news, self._news = self._news, []
        return news

    def _synthesise(self, number: int, task: ShardTask, attempt: int) -> None:
        assert self._worker is not None
        try:
            drawn = self._worker.synthesise(task)
        except Exception as error:
            self._news.append(Failed(number, task.index, error))
            return
        future = self._publisher.submit(copy_context().run, self._worker.publish, task, drawn, attempt)
        self._publishing.append((number, task, future))

    def _collect(self, number: int, task: ShardTask, future: Future[ShardRecord]) -> None:
        try:
            self._news.append(Made(number, result_of(future)))
        except Exception as error:
            self._news.append(Failed(number, task.index, error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _limited_last_put() if isinstance(error, Interrupted) else nullcontext():
            self._publisher.shutdown(wait=True, cancel_futures=True)
        if self._worker is not None:
            self._worker.__exit__(kind, error, trace)
