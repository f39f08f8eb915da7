"""A cluster of pretend workers on a virtual clock: the pool's loop runs as with Ray, and an hour takes a moment."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from helpers.records import make_record

from labelmill.schemas.shard import ShardTask, shard_name
from labelmill.workers.supervisor import Event, Failed, Limits, Loaded, Lost, Made, Placed


def make_tasks(count: int) -> list[ShardTask]:
    return [
        ShardTask(index=i, name=shard_name("run", i), num_samples=5, first_seed=20 * i, num_seeds=20)
        for i in range(count)
    ]


class VirtualClock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


@dataclass
class PretendCluster:
    """What becomes of a shard is asked of `fate`: seconds and one of made, raise, die, node, hang, store."""

    clock: VirtualClock
    limit: int
    fate: Callable[[ShardTask, int, int], tuple[float, str]] = lambda task, worker, attempt: (1.0, "made")
    start_fate: Callable[[int], tuple[float, str]] = lambda worker: (1.0, "ok")
    error: Exception = field(default_factory=lambda: ValueError("no such thing"))
    shard_seconds: float = 100.0
    start_seconds: float = 60.0
    starts: int = 0
    most_alive: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    made: list[int] = field(default_factory=list)
    alone: set[tuple[int, int]] = field(default_factory=set)
    """(shard, attempt) of shards that had their worker for themselves from start to end."""

    def __post_init__(self) -> None:
        self._heap: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._alive: dict[int, str] = {}
        self._in_flight: dict[int, dict[int, int]] = {}

    def limits(self) -> Limits:
        return Limits(self.limit, self.shard_seconds, self.start_seconds)

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self._heap, (self.clock.time + seconds, next(self._order), event))

    def start(self, worker: int) -> None:
        assert worker not in self._alive
        self.starts += 1
        seconds, how = self.start_fate(worker)
        self._alive[worker], self._in_flight[worker] = "starting", {}
        self.most_alive = max(self.most_alive, len(self._alive))
        if how == "ok":
            self._later(seconds, Placed(worker))
        elif how == "lost":
            self._later(seconds, Lost(worker, "node went away", blame=False))
        elif how in ("slow load", "raises"):
            self._alive[worker] = how
            self._later(seconds, Placed(worker))
        else:
            assert how == "never"

    def load(self, worker: int) -> None:
        if self._alive[worker] == "raises":
            self._later(0.1, Lost(worker, "could not load", blame=True, error=self.error))
        elif self._alive[worker] != "slow load":
            self._alive[worker] = "loaded"
            self._later(0.5, Loaded(worker))

    def make(self, worker: int, task: ShardTask, attempt: int) -> None:
        assert self._alive[worker] == "loaded"
        flying = self._in_flight[worker]
        assert len(flying) < 2 and task.index not in flying
        self.attempts[task.index] += 1
        assert attempt == self.attempts[task.index]
        flying[task.index] = attempt
        if len(flying) == 1:
            self.alone.add((task.index, attempt))
        else:
            self.alone -= set(flying.items())
        seconds, how = self.fate(task, worker, attempt)
        seconds *= len(flying)
        if how == "made":
            self._later(seconds, Made(worker, make_record(task.index, task.num_samples, {})))
        elif how in ("raise", "store"):
            self._later(seconds, Failed(worker, task.index, self.error))
        elif how in ("die", "node"):
            self._later(seconds, Lost(worker, "killed", blame=how == "die"))
        else:
            assert how == "hang"

    def kill(self, worker: int) -> None:
        del self._alive[worker]

    def wait(self, seconds: float) -> list[Event]:
        deadline = self.clock.time + seconds
        while self._heap and self._heap[0][0] <= deadline:
            self.clock.time, _, event = heapq.heappop(self._heap)
            if event.worker not in self._alive:
                continue
            if isinstance(event, Lost):
                del self._alive[event.worker]
            elif isinstance(event, Made):
                del self._in_flight[event.worker][event.record.index]
                self.made.append(event.record.index)
            elif isinstance(event, Failed):
                del self._in_flight[event.worker][event.index]
            return [event]
        self.clock.time = deadline
        return []
