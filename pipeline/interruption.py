"""SIGTERM and Ctrl-C as an exception, so that a run can end resumable, with its own exit status."""

import atexit
import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """Names the signal. Not an Exception, so that no handler on the way takes it for a failure."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM and SIGINT raise Interrupted."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(signum).name)

    with _handling(interrupt):
        yield


@contextmanager
def postponed(on_signal: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it, SIGTERM and SIGINT call `on_signal` and wait: at its end, whatever that is, they raise Interrupted.

    For calls into libraries that an exception out of a signal's handler would tear apart.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        on_signal()

    try:
        with _handling(note):
            yield
    finally:
        if received:
            raise Interrupted(signal.Signals(received[0]).name)


def keep_exit_status() -> None:
    """Let nothing replace the exit status once the interpreter ends.

    That takes a second with Ray and torch, in which SIGTERM is ignored. After it the C library destroys global objects
    that Ray's threads may still use, such as the logger: a process whose work was done died of SIGSEGV there. So
    `_exit` is the first thing that `exit` calls, with its status, where the C library can do that (glibc's on_exit).
    Called last of all, because what is registered later runs earlier.
    """
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)
