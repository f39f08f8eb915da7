"""SIGTERM and Ctrl-C as an exception, so that a run can end resumable, with its own exit status."""

import atexit
import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType
from typing import TypeVar

from labelmill.pipeline.process.log import log
from labelmill.schemas.errors import EXIT_RESUMABLE

# Kubernetes, systemd and Ray kill what has not ended some time after SIGTERM; the shortest usual time is 30 s.
MOST_SECONDS = 13.0
_TICK_SECONDS = 0.5

Result = TypeVar("Result")


class Interrupted(BaseException):
    """Names the signal. Not an Exception, so that no handler on the way takes it for a failure."""


class _Countdown:
    """Ends the process when it is still there so many seconds after a signal."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._deadline = math.inf

    def start(self, name: str) -> None:
        """Begin to count. Takes no lock: it is called by a signal's handler."""
        if self._signal is None:
            self._signal, self._deadline = name, time.monotonic() + MOST_SECONDS

    def watch(self) -> None:
        """Never returns."""
        while time.monotonic() < self._deadline:
            time.sleep(_TICK_SECONDS)
        log(f"labelmill: {interrupted_words(self._signal or '')}", level="warning")
        # What still goes on waits for a server, and the interpreter's own exit would wait for it.
        os._exit(EXIT_RESUMABLE)


_countdown = _Countdown()


def end_soon_after_signals() -> None:
    """From now on this process is gone MOST_SECONDS after a signal that raised Interrupted, whatever it waits for."""
    threading.Thread(target=_countdown.watch, name="countdown", daemon=True).start()


def interrupted_words(signal_name: str) -> str:
    """The last message of a command that a signal has ended."""
    return f"interrupted by {signal_name}; rerun the same command to resume"


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, SIGTERM and SIGINT raise Interrupted."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        _countdown.start(signal.Signals(signum).name)
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


def abandonable(call: Callable[[], Result]) -> Result:
    """What a call gives, which a signal may leave behind: a library that waits for a server in the main thread would
    keep every handler from running. In other threads, which get no signals, the call is made as it is."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=copy_context().run, args=(work,), name="abandonable", daemon=True).start()
    return result_of(future)


def result_of(future: Future[Result]) -> Result:
    """A future's result, for the main thread. It looks up now and then: the system may give a signal to another thread,
    which wakes nobody, and handlers run in the main one alone."""
    while not wait([future], timeout=_TICK_SECONDS).done:
        pass
    return future.result()


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
