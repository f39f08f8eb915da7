"""The pool's loop: what the supervisor decides, a cluster does, and tells what became of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from labelmill.pipeline.process.log import log
from labelmill.schemas.progress import RunState
from labelmill.schemas.shard import ShardRecord, ShardTask
from labelmill.workers.prepare import PreparedRun
from labelmill.workers.supervisor import Action, Event, Failed, Kill, Limits, Load, Lost, Made, Make, Start, Supervisor

WAIT_SECONDS = 0.5
"""Between looks at deadlines, and at most between a signal and its effect."""
_CAPACITY_SECONDS = 5.0
# A loop that comes back later than this was frozen, with the whole machine perhaps, and no deadline counts that time.
_LONGEST_STEP = 10.0


class Cluster(AbstractContextManager["Cluster"], Protocol):
    """Where workers run. Only `wait` and `prepare` take long."""

    def prepare(self) -> PreparedRun:
        """Claim the output and fit the labeler, on a worker."""

    def limits(self) -> Limits:
        """How many workers there may be now, and how long things may take."""

    def start(self, worker: int) -> None:
        """Ask for a worker; Placed or Lost follows."""

    def load(self, worker: int) -> None:
        """Loaded or Lost follows."""

    def make(self, worker: int, task: ShardTask, attempt: int) -> None:
        """Made, Failed or Lost follows."""

    def kill(self, worker: int) -> None:
        """End a worker; nothing follows."""

    def show(self, state: RunState) -> None:
        """Show how far the run is to those who watch the cluster."""

    def wait(self, seconds: float) -> list[Event]:
        """What has happened; comes back after about `seconds` when nothing does."""


class AwakeClock:
    """Seconds that this process was awake: being stopped or suspended uses up nobody's time."""

    def __init__(self) -> None:
        self._now = 0.0
        self._last = time.monotonic()

    def now(self) -> float:
        current = time.monotonic()
        self._now += min(current - self._last, _LONGEST_STEP)
        self._last = current
        return self._now


def make_shards(
    cluster: Cluster, supervisor: Supervisor, clock: AwakeClock, tick: Callable[[], None]
) -> Iterator[ShardRecord]:
    """Make every shard of the supervisor's, whatever dies, and give each record as it comes.

    `tick` is called after every look at the cluster, twice a second at least while workers are idle or remote.

    Raises ShardError at the end when some shards cannot be made, and what else the supervisor gives up for.
    """
    looked_at = clock.now()
    while not supervisor.finished:
        for action in supervisor.decide(clock.now()):
            _perform(cluster, action)
        for event in cluster.wait(WAIT_SECONDS):
            _report(event, supervisor)
            supervisor.on(event, clock.now())
            if isinstance(event, Made):
                yield event.record
        tick()
        if clock.now() - looked_at > _CAPACITY_SECONDS:
            looked_at = clock.now()
            supervisor.limit_workers(cluster.limits().workers)
    supervisor.raise_failures()


def _perform(cluster: Cluster, action: Action) -> None:
    match action:
        case Start(worker):
            cluster.start(worker)
        case Load(worker):
            cluster.load(worker)
        case Make(worker, task, attempt):
            cluster.make(worker, task, attempt)
        case Kill(worker):
            cluster.kill(worker)


def _report(event: Event, supervisor: Supervisor) -> None:
    match event:
        case Lost(worker, reason):
            log(f"worker {worker} is gone: {reason}", level="warning", worker=worker)
        case Failed(worker, index, error):
            name = supervisor.name_of(index)
            log(f"shard {name} failed: {type(error).__name__}: {error}", level="warning", shard=name, worker=worker)
