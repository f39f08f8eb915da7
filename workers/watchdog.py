"""Ends the process when a call that may never return does not: the last resort against a cluster that went silent."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context

from labelmill.pipeline.process.log import log

# A thread that wakes so much later than it asked was frozen with the whole process, and nobody is to blame.
_FROZEN_SECONDS = 5.0
_TICK_SECONDS = 0.5


class Watchdog:
    """A thread that watches one call at a time."""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self._exit_code = 0
        self._last_words = ""
        self._context: Context = copy_context()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def limit(self, seconds: float, *, exit_code: int, last_words: str) -> Iterator[None]:
        """Ends the process with `exit_code` and `last_words` on stderr if the body takes longer than `seconds`."""
        with self._lock:
            self._deadline, self._exit_code, self._last_words = time.monotonic() + seconds, exit_code, last_words
            self._context = copy_context()
        try:
            yield
        finally:
            with self._lock:
                self._deadline = None

    def hurry(self, *, exit_code: int, last_words: str, seconds: float = 10.0) -> None:
        """Give the body, if one is watched now, at most so much longer. May be called by a signal's handler."""
        # Without the lock, which the thread that the signal has interrupted may hold.
        deadline = self._deadline
        if deadline is not None:
            self._exit_code, self._last_words = exit_code, last_words
            self._deadline = min(deadline, time.monotonic() + seconds)

    def _watch(self) -> None:
        while True:
            asleep_since = time.monotonic()
            time.sleep(_TICK_SECONDS)
            overslept = time.monotonic() - asleep_since - _TICK_SECONDS
            with self._lock:
                if self._deadline is None:
                    continue
                if overslept > _FROZEN_SECONDS:
                    self._deadline += overslept
                elif time.monotonic() > self._deadline:
                    self._context.run(log, f"labelmill: {self._last_words}", level="error")
                    # Nothing milder works: the interpreter's own exit would wait for the same call.
                    os._exit(self._exit_code)
