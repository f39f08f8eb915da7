"""When a training ends before its last step: after SIGTERM or SIGINT, or when its time is up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from labelmill.pipeline.process.interruption import Interrupted, postponed


class Stop:
    """What a training's loop asks after every step."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._requested = False
        self.is_finished = False
        """Set once the last step is taken and saved: then a signal has interrupted nothing."""

    def request(self) -> None:
        """Make it due at once."""
        self._requested = True

    @property
    def is_due(self) -> bool:
        return self._requested or (self._deadline is not None and time.monotonic() > self._deadline)


@contextmanager
def stop_on_signals(max_seconds: float | None = None) -> Iterator[Stop]:
    """Within it, SIGTERM and SIGINT make the stop due. At its end they raise Interrupted, unless `is_finished`."""
    stop = Stop(max_seconds)
    try:
        with postponed(stop.request):
            yield stop
    except Interrupted:
        if not stop.is_finished:
            raise
