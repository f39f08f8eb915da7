"""SIGTERM and Ctrl-C as an exception, so that a run can end resumable, with its own exit status."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Names the signal. Not an Exception, so that no handler on the way takes it for a failure."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM and SIGINT raise Interrupted."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(signum).name)

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
