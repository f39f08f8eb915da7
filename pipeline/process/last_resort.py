"""Ends a process whose interpreter cannot: a call that never returns may keep the GIL, and Ray's connect does.

While it is kept no thread and no handler of a signal runs, so `watchdog` is helpless too. Ray (2.60) builds its
connection with the GIL, and waits in it without end for a raylet that is frozen, or that waits for a worker of its own
which was frozen while it started.
"""

import ctypes
import faulthandler
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CLOCK_MONOTONIC, _SIGEV_THREAD = 1, 2
_STDERR = 2


class _Notice(ctypes.Structure):
    """`struct sigevent` of Linux: the thread to start."""

    _fields_ = (
        ("value", ctypes.c_long),
        ("signal", ctypes.c_int),
        ("kind", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`."""

    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


@contextmanager
def last_resort(seconds: int, *, exit_code: int) -> Iterator[None]:
    """Ends the process with `exit_code` if the body takes longer, after a stack of each thread on stderr.

    The kernel counts, and calls C: a timer starts a thread in `_exit`. Only where there are such timers (Linux).
    A process that is frozen so long ends as soon as it goes on.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    # Before 2.34 glibc had timers in a library of their own, which is an empty one since.
    libc = ctypes.CDLL(None, use_errno=True)
    timers = libc if hasattr(libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)
    exits = ctypes.cast(libc._exit, ctypes.c_void_p)
    notice = _Notice(value=exit_code, kind=_SIGEV_THREAD, function=exits.value)
    timer = ctypes.c_void_p()
    _check(timers.timer_create(_CLOCK_MONOTONIC, ctypes.byref(notice), ctypes.byref(timer)))
    try:
        faulthandler.dump_traceback_later(seconds, file=_STDERR)
        # A second for the stacks.
        times = _Times(value=(seconds + 1, 0))
        _check(timers.timer_settime(timer, 0, ctypes.byref(times), None))
        yield
    finally:
        timers.timer_delete(timer)
        faulthandler.cancel_dump_traceback_later()


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), "no timer")
