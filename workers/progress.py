"""How far a run is: a bar on a terminal, lines in a log, and `progress.json` in the output for other shells."""

import json
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.store import Store
from schemas.shard import ShardRecord

LINE_SECONDS = 10.0


def say(text: str) -> None:
    """Tell whoever watches, on stderr, what takes a while now."""
    print(text, file=sys.stderr, flush=True)


class RunProgress:
    """Counts finished shards and says so, on stderr: bars where a person watches, a line every 10 s elsewhere."""

    def __init__(self, store: Store, *, total_samples: int, done: list[ShardRecord]) -> None:
        self._store, self._total = store, total_samples
        self._num_done = sum(record.num_samples for record in done)
        self._num_before = self._num_done
        self._dropped: Counter[str] = Counter()
        for record in done:
            self._dropped.update(record.dropped_by_reason)
        self._start = self._last_line = time.monotonic()
        self._bar = _bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("samples", total=self._total, completed=self._num_done, detail="")
        self._save(finished=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is None:
            self._save(finished=True)

    def add(self, record: ShardRecord) -> None:
        """Count a finished shard."""
        self._num_done += record.num_samples
        self._dropped.update(record.dropped_by_reason)
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._num_done, detail=f"{self._rate():.1f} images/s")
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or self._num_done == self._total:
            self._last_line = now
            self._save(finished=False)
            if self._bar is None:
                say(self._line())

    def _rate(self) -> float:
        return (self._num_done - self._num_before) / max(time.monotonic() - self._start, 1e-9)

    def _eta_seconds(self) -> float | None:
        return (self._total - self._num_done) / self._rate() if self._rate() > 0 else None

    def _line(self) -> str:
        eta = self._eta_seconds()
        remaining = "unknown" if eta is None else f"{eta:.0f} s"
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(self._dropped.items())) or "none"
        return (
            f"{self._num_done}/{self._total} samples, {self._rate():.1f} images/s, {remaining} left, dropped: {dropped}"
        )

    def _save(self, *, finished: bool) -> None:
        state = {
            "done": self._num_done,
            "total": self._total,
            "images_per_second": round(self._rate(), 2),
            "eta_seconds": self._eta_seconds(),
            "dropped_by_reason": dict(sorted(self._dropped.items())),
            "finished": finished,
            "unix_time": round(time.time(), 1),
        }
        self._store.replace("progress.json", json.dumps(state, indent=1).encode())


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
    )
