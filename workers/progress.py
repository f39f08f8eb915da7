"""How far a run is: a bar on a terminal, lines in a log, and `progress.json` in the output for other shells."""

import contextvars
import os
import queue
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from labelmill.pipeline.process.interruption import Interrupted
from labelmill.pipeline.process.log import log, logs_json
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.progress import RunState
from labelmill.schemas.shard import ShardRecord
from labelmill.workers.supervisor import Supervisor

LINE_SECONDS = 10.0
SHOW_SECONDS = 1.0
PROGRESS_PATH = "progress.json"
# A job that is asked to stop has 3 s.
_LAST_WRITE_SECONDS = 1.5


class RunProgress:
    """Counts finished shards and says so, on stderr: bars where a person watches, a line every 10 s elsewhere."""

    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        *,
        total_samples: int,
        done: list[ShardRecord],
        show: Callable[[RunState], None] = lambda state: None,
    ) -> None:
        """`show` gets the state at the start, every second and at the end."""
        self._supervisor, self._total, self._show = supervisor, total_samples, show
        self._file = _StateFile(store)
        self._num_shards = len(done)
        self._num_done = sum(record.num_samples for record in done)
        self._num_before = self._num_done
        self._dropped: Counter[str] = Counter()
        for record in done:
            self._dropped.update(record.dropped_by_reason)
        self._seconds: Counter[str] = Counter()
        self._start = self._last_line = self._last_shown = time.monotonic()
        self._bar = _bar() if sys.stderr.isatty() and not logs_json() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("samples", total=self._total, completed=self._num_done, detail="")
        self._save("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._save("finished" if error is None else "interrupted" if isinstance(error, Interrupted) else "failed")
        self._file.close()

    def add(self, record: ShardRecord) -> None:
        """Count a finished shard."""
        if logs_json():
            # People read how far it is, every few seconds; a line a shard is for those who look for one of them.
            log(f"shard {record.name} is finished", shard=record.name, details=record)
        self._num_shards += 1
        self._num_done += record.num_samples
        self._dropped.update(record.dropped_by_reason)
        self._seconds.update(record.seconds_by_stage or {})

    def tick(self) -> None:
        """Show how far it is, if it is time; called often."""
        if self._bar is not None:
            detail = f"{self._rate():.1f} images/s, {self._supervisor.num_ready} workers"
            self._bar.update(self._bar.task_ids[0], completed=self._num_done, detail=detail)
        now = time.monotonic()
        if now - self._last_shown >= SHOW_SECONDS:
            self._last_shown = now
            self._show(self._state("running"))
        if now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        self._save("running")
        if self._bar is None:
            state = self._state("running")
            log(state_line(state), details=state)

    def _rate(self) -> float:
        return (self._num_done - self._num_before) / max(time.monotonic() - self._start, 1e-9)

    def _state(self, state: str) -> RunState:
        rate = self._rate()
        return RunState(
            done=self._num_done,
            total=self._total,
            shards=self._num_shards,
            images_per_second=round(rate, 2),
            eta_seconds=round((self._total - self._num_done) / rate, 1) if rate > 0 else None,
            dropped_by_reason=dict(sorted(self._dropped.items())),
            seconds_by_stage={stage: round(seconds, 3) for stage, seconds in sorted(self._seconds.items())},
            workers=self._supervisor.num_ready,
            retries=self._supervisor.num_retries,
            failures=self._supervisor.named_failures(),
            state=state,
            host=socket.gethostname(),
            process=os.getpid(),
            unix_time=round(time.time(), 1),
        )

    def _save(self, state: str) -> None:
        now = self._state(state)
        self._show(now)
        self._file.write(now)


class _StateFile:
    """Writes `progress.json` beside the run: a store that is down for minutes must not hold the run up.

    A state that nothing follows is written anew, with the time: a shard may take minutes, and its driver lives.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._states: queue.SimpleQueue[RunState | None] = queue.SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="progress", daemon=True)
        self._thread.start()

    def write(self, state: RunState) -> None:
        """Have a state written soon, or a later one instead."""
        self._states.put(state)

    def close(self) -> None:
        """Wait a moment for the last state to be written."""
        self._states.put(None)
        self._thread.join(_LAST_WRITE_SECONDS)

    def _work(self) -> None:
        latest: RunState | None = None
        is_last = False
        while not is_last:
            states = self._news()
            is_last = None in states
            latest = next((state for state in reversed(states) if state is not None), latest)
            if latest is not None and states != [None]:
                self._replace(latest.model_copy(update={"unix_time": round(time.time(), 1)}))

    def _news(self) -> list[RunState | None]:
        """States that have come, None at the end; none after a while without any."""
        try:
            states = [self._states.get(timeout=LINE_SECONDS)]
        except queue.Empty:
            return []
        while not self._states.empty():
            states.append(self._states.get())
        return states

    def _replace(self, state: RunState) -> None:
        try:
            self._store.replace(PROGRESS_PATH, state.model_dump_json(indent=1).encode())
        except OutputError as error:
            # Whether the store takes shards decides over the run, not whether it takes this.
            log(f"progress is not written: {error}", level="warning")


def state_line(state: RunState) -> str:
    """A state in a line, for a log."""
    remaining = "unknown time" if state.eta_seconds is None else f"{state.eta_seconds:.0f} s"
    dropped = ", ".join(f"{reason} {count}" for reason, count in state.dropped_by_reason.items()) or "none"
    trouble = f", {state.retries} retries" if state.retries else ""
    trouble += f", {len(state.failures)} shards failed" if state.failures else ""
    return (
        f"{state.done}/{state.total} samples, {state.images_per_second:.1f} images/s by {state.workers} workers, "
        f"{remaining} left, dropped: {dropped}{trouble}"
    )


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
    )
