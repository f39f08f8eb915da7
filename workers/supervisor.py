"""What a pool of workers does next: decisions alone, without Ray, clocks or pixels.

Events go in through `on`, actions come out of `decide`. Workers are numbers that are never used twice, so that what a
dead one still says finds nobody to blame.

A shard is not to blame for a lost node; it may be for a worker that died while making it. Workers make one shard while
they publish another, so a death leaves two suspects. Suspects are made last, each alone on its worker: an innocent one
is finished then, and a third death on the same shard quarantines it.
"""

import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from labelmill.schemas.errors import LabelmillError, OutputError, ShardError, StalledError
from labelmill.schemas.shard import ShardRecord, ShardTask

DEATHS_PER_SHARD = 3
"""Deaths of workers on one shard that quarantine it; also how often a shard that the store refused is tried."""
LOSSES_PER_SHARD = 10
"""Workers lost with a shard, through no fault of its own as it seemed each time, that make it suspicious after all."""
SHARDS_IN_FLIGHT = 2
"""One in synthesis and one in publication."""
ALIKE = 3
"""Shards that fail in the same way before the run may be given up."""
_CHECK_SECONDS = 1.0
_LONGEST_BACKOFF = 30.0
_LISTED = 10


@dataclass(frozen=True)
class Limits:
    """How many workers, and how long things may take, in seconds."""

    workers: int
    shard_seconds: float
    start_seconds: float


@dataclass(frozen=True)
class Placed:
    """A worker's process runs."""

    worker: int


@dataclass(frozen=True)
class Loaded:
    """A worker is ready to make shards."""

    worker: int


@dataclass(frozen=True)
class Made:
    """A shard is published."""

    worker: int
    record: ShardRecord


@dataclass(frozen=True)
class Failed:
    """A shard raised; its worker lives on."""

    worker: int
    index: int
    error: Exception


@dataclass(frozen=True)
class Lost:
    """A worker is gone, or could not start."""

    worker: int
    reason: str
    blame: bool
    """Whether what it was making may be the cause; not so for a lost node."""
    error: Exception | None = None
    """What loading raised, if it raised."""


Event = Placed | Loaded | Made | Failed | Lost


@dataclass(frozen=True)
class Start:
    """Ask for a new worker."""

    worker: int


@dataclass(frozen=True)
class Load:
    """Have a placed worker load generator and labeler."""

    worker: int


@dataclass(frozen=True)
class Make:
    """Send a shard to a worker."""

    worker: int
    task: ShardTask
    attempt: int


@dataclass(frozen=True)
class Kill:
    """End a worker, which may be frozen."""

    worker: int


Action = Start | Load | Make | Kill


@dataclass
class _Worker:
    since: float
    """When its present phase, or the oldest shard it works on, began."""
    placed: bool = False
    loaded: bool = False
    in_flight: list[int] = field(default_factory=list)
    """Indices of shards, oldest first."""
    alone: bool = False
    """It has a suspect and gets nothing beside it."""


class Supervisor:
    """The state of a pool. `now` is seconds on any clock that never goes back."""

    def __init__(self, tasks: Sequence[ShardTask], limits: Limits, now: float, num_done: int = 0) -> None:
        """tasks: what is missing. num_done: shards that earlier runs have made."""
        self._tasks = {task.index: task for task in tasks}
        self._limits = limits
        self._queue = deque(task.index for task in tasks)
        self._suspects: deque[int] = deque()
        self._num_open = len(tasks)
        self._workers: dict[int, _Worker] = {}
        self._idle: dict[int, None] = {}
        self._half_idle: dict[int, None] = {}
        self._next_worker = 0
        self._to_load: list[int] = []
        self._to_kill: list[int] = []
        self._attempts: Counter[int] = Counter()
        self._deaths: Counter[int] = Counter()
        self._losses: Counter[int] = Counter()
        self._refusals: Counter[int] = Counter()
        self._failures_alike: Counter[str] = Counter()
        self._refused_in_a_row: set[int] = set()
        self._dead_in_a_row: set[int] = set()
        self._num_made = num_done
        self._ever_loaded = False
        self._failed_starts = 0
        self._last_start_error: Lost | None = None
        self._next_start = self._alive_at = self._checked_at = now
        self._verdict: LabelmillError | None = None
        self._failures: dict[int, str] = {}
        self.num_retries = 0
        """Shards sent out again, whatever for."""

    @property
    def finished(self) -> bool:
        """Nothing is left to do or to hope for."""
        return self._num_open == 0 or self._verdict is not None

    @property
    def num_ready(self) -> int:
        """Workers that make shards or could."""
        return sum(worker.loaded for worker in self._workers.values())

    def name_of(self, index: int) -> str:
        """A shard's name."""
        return self._tasks[index].name

    def named_failures(self) -> dict[str, str]:
        """Why each shard that is given up failed, by its name."""
        return {self._tasks[index].name: reason for index, reason in sorted(self._failures.items())}

    def raise_failures(self) -> None:
        """Raises ShardError when shards failed, StalledError or OutputError when the run was given up."""
        if self._verdict is not None:
            raise self._verdict
        if self._failures:
            raise ShardError(failure_report(self.named_failures()))

    def limit_workers(self, workers: int) -> None:
        """Have so many workers from now on; those that work are never ended early."""
        self._limits = Limits(workers, self._limits.shard_seconds, self._limits.start_seconds)

    def on(self, event: Event, now: float) -> None:
        """Take note of what happened."""
        worker = self._workers.get(event.worker)
        if worker is None:
            return  # the last words of one that was given up
        match event:
            case Placed():
                worker.placed, worker.since = True, now
                self._to_load.append(event.worker)
            case Loaded():
                worker.loaded, worker.since, self._alive_at = True, now, now
                self._ever_loaded, self._failed_starts = True, 0
                self._idle[event.worker] = None
            case Made():
                self._returned(event.worker, worker, event.record.index, now)
                self._made(event.record.index)
            case Failed():
                self._returned(event.worker, worker, event.index, now)
                self._failed(event.index, event.error)
            case Lost():
                self._lost(event, worker, now)

    def decide(self, now: float) -> list[Action]:
        """What to do now."""
        if now - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = now
            self._check_deadlines(now)
        actions: list[Action] = [Kill(number) for number in self._to_kill]
        actions += [Load(number) for number in self._to_load if number in self._workers]
        self._to_kill, self._to_load = [], []
        if self.finished:
            return actions
        return [*actions, *self._dispatch(now), *self._staff(now)]

    def _dispatch(self, now: float) -> list[Action]:
        actions: list[Action] = []
        while self._queue and self._idle:
            actions.append(self._send(self._idle.popitem()[0], self._queue.popleft(), now))
        # A second shard hides the publication of the first; the last shards are rather spread over the workers.
        while len(self._queue) > len(self._workers) and self._half_idle:
            actions.append(self._send(next(iter(self._half_idle)), self._queue.popleft(), now))
        while self._suspects and not self._queue and self._idle:
            number = self._idle.popitem()[0]
            self._workers[number].alone = True
            actions.append(self._send(number, self._suspects.popleft(), now))
        return actions

    def _send(self, number: int, index: int, now: float) -> Make:
        worker = self._workers[number]
        if not worker.in_flight:
            worker.since = now
        worker.in_flight.append(index)
        self._half_idle.pop(number, None)
        if len(worker.in_flight) < SHARDS_IN_FLIGHT and not worker.alone:
            self._half_idle[number] = None
        self._attempts[index] += 1
        self.num_retries += self._attempts[index] > 1
        return Make(number, self._tasks[index], self._attempts[index])

    def _staff(self, now: float) -> list[Action]:
        wanted = min(self._limits.workers, self._num_open)
        unplaced = [number for number, worker in self._workers.items() if not worker.placed]
        surplus = unplaced[: max(0, len(self._workers) - wanted)]
        for number in surplus:
            del self._workers[number]
        if surplus or now < self._next_start:
            return [Kill(number) for number in surplus]
        numbers = range(self._next_worker, self._next_worker + max(0, wanted - len(self._workers)))
        self._next_worker = numbers.stop
        self._workers.update((number, _Worker(now)) for number in numbers)
        return [Start(number) for number in numbers]

    def _returned(self, number: int, worker: _Worker, index: int, now: float) -> None:
        worker.in_flight.remove(index)
        worker.since, worker.alone = now, False
        if worker.in_flight:
            self._half_idle[number] = None
        else:
            self._half_idle.pop(number, None)
            self._idle[number] = None

    def _made(self, index: int) -> None:
        self._num_open -= 1
        self._num_made += 1
        self._refused_in_a_row.clear()
        self._dead_in_a_row.clear()
        self._attempts.pop(index)

    def _failed(self, index: int, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}" if not isinstance(error, LabelmillError) else str(error)
        if isinstance(error, OutputError):
            self._refused(index, error)
            return
        self._give_up(index, text)
        # A shard's number, seeds and counts are its own; what remains says whether two failed alike.
        kind = re.sub(r"\d+", "#", text)
        self._failures_alike[kind] += 1
        alike = self._failures_alike[kind]
        if alike >= ALIKE and alike > self._num_made and self._num_open:
            count = f"{alike} shards failed in the same way, {self._num_made} are made"
            self._end(ShardError(f"{count}; the remaining shards were not tried: {text}"))

    def _refused(self, index: int, error: OutputError) -> None:
        """The store refused a shard: not the shard's fault, but no reason to try for ever."""
        self._refusals[index] += 1
        self._refused_in_a_row.add(index)
        if len(self._refused_in_a_row) >= min(ALIKE, self._num_open) or self._refusals[index] >= DEATHS_PER_SHARD:
            self._end(error)
        else:
            self._queue.append(index)

    def _lost(self, event: Lost, worker: _Worker, now: float) -> None:
        self._forget(event.worker)
        if not worker.loaded:
            self._failed_starts += 1
            self._next_start = now + min(_LONGEST_BACKOFF, 0.5 * 2 ** min(self._failed_starts, 10))
            self._last_start_error = event
            if event.error is not None and not self._ever_loaded and self._failed_starts >= ALIKE:
                unknown = ShardError(f"no worker can load: {event.reason}")
                self._end(event.error if isinstance(event.error, LabelmillError) else unknown)
            return
        self._alive_at = now
        for index in worker.in_flight:
            self._died_on(index, event)

    def _died_on(self, index: int, event: Lost) -> None:
        self._losses[index] += not event.blame
        if not event.blame and self._losses[index] < LOSSES_PER_SHARD:
            (self._suspects if self._deaths[index] else self._queue).appendleft(index)
            return
        self._deaths[index] += 1
        if self._deaths[index] >= DEATHS_PER_SHARD:
            self._give_up(index, f"{DEATHS_PER_SHARD} workers died on it, the last one: {event.reason}")
            return
        self._suspects.append(index)
        self._dead_in_a_row.add(index)
        if len(self._dead_in_a_row) >= max(2 * ALIKE, SHARDS_IN_FLIGHT * ALIKE * len(self._workers)):
            shards = len(self._dead_in_a_row)
            why = f"workers died on {shards} shards in a row"
            self._end(ShardError(f"{why}, so the remaining shards were not tried: {event.reason}"))

    def _check_deadlines(self, now: float) -> None:
        for number, worker in list(self._workers.items()):
            if worker.in_flight and now - worker.since > self._limits.shard_seconds:
                self._overdue(number, worker, now)
            elif worker.placed and not worker.loaded and now - worker.since > self._limits.start_seconds:
                self._to_kill.append(number)
                reason = f"loading took longer than execution.start_timeout_s, {self._limits.start_seconds:g} s"
                self._lost(Lost(number, reason, blame=False), worker, now)
        if any(worker.loaded for worker in self._workers.values()):
            self._alive_at = now
        # Twice: one that hangs while it loads leaves time for another.
        if now - self._alive_at > 2 * self._limits.start_seconds:
            last = f"; the last one that tried: {self._last_start_error.reason}" if self._last_start_error else ""
            self._end(
                StalledError(
                    f"no worker started in {2 * self._limits.start_seconds:g} s (2 execution.start_timeout_s){last}. "
                    "Does the cluster have a live node with what execution.gpus_per_worker, cpus_per_worker and "
                    "node_labels ask for? Finished work is kept"
                )
            )

    def _overdue(self, number: int, worker: _Worker, now: float) -> None:
        """The oldest shard is late; what waits behind it is not to blame."""
        self._to_kill.append(number)
        self._forget(number)
        self._alive_at = now
        late, *waiting = worker.in_flight
        reason = f"it took longer than execution.shard_timeout_s, {self._limits.shard_seconds:g} s"
        self._died_on(late, Lost(number, reason, blame=True))
        for index in waiting:
            self._died_on(index, Lost(number, reason, blame=False))

    def _forget(self, number: int) -> None:
        del self._workers[number]
        self._idle.pop(number, None)
        self._half_idle.pop(number, None)

    def _give_up(self, index: int, reason: str) -> None:
        self._failures[index] = reason
        self._num_open -= 1

    def _end(self, verdict: LabelmillError) -> None:
        if not self.finished:
            self._verdict = verdict


def failure_report(failures: dict[str, str]) -> str:
    """What failed and why, for a person."""
    count = len(failures)
    lines = [f"  {name}: {reason}" for name, reason in list(failures.items())[:_LISTED]]
    if count > _LISTED:
        lines.append(f"  and {count - _LISTED} more")
    shards = "1 shard" if count == 1 else f"{count} shards"
    heading = f"{shards} failed; all others are finished. Rerun the same command to retry only the failed ones:"
    return "\n".join([heading, *lines])
