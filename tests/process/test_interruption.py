"""Signals end a command resumable, wherever it is, and never from within a library that they would tear apart."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from labelmill.pipeline.process.interruption import Interrupted, abandonable, interruptible, postponed


def _handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_at_once(number: signal.Signals) -> None:
    before = _handlers()
    went_on = False
    with pytest.raises(Interrupted, match=number.name), interruptible():
        os.kill(os.getpid(), number)
        time.sleep(1)
        went_on = True
    assert not went_on
    assert _handlers() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_postponed_one_waits_for_the_end(number: signal.Signals) -> None:
    before = _handlers()
    told: list[str] = []
    with pytest.raises(Interrupted, match=number.name), interruptible():
        with postponed(lambda: told.append("a signal")):
            os.kill(os.getpid(), number)
            told.append("went on")
        told.append("and on")
    assert told == ["a signal", "went on"]
    assert _handlers() == before


def test_a_postponed_one_outdoes_an_error() -> None:
    with pytest.raises(Interrupted) as raised, postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyError("lost otherwise")
    assert isinstance(raised.value.__context__, KeyError)


def test_without_a_signal_nothing_happens() -> None:
    before = _handlers()
    with postponed():
        pass
    with pytest.raises(KeyError), postponed():
        raise KeyError
    assert _handlers() == before


def test_a_call_that_hangs_is_left_behind() -> None:
    """As a library's call does in which no handler of a signal runs."""
    never = threading.Event()
    start = time.monotonic()
    with pytest.raises(Interrupted), interruptible():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        abandonable(lambda: never.wait(20))
    assert time.monotonic() - start < 10
    never.set()
    assert abandonable(lambda: threading.current_thread().name) == "abandonable"
    with pytest.raises(KeyError):
        abandonable(lambda: os.environ["NEVER_SET"])


_HANGS_AFTER_A_SIGNAL = """
import threading
from labelmill.pipeline.process import interruption
interruption.MOST_SECONDS = 1
interruption.end_soon_after_signals()
try:
    with interruption.interruptible():
        print("ready", flush=True)
        threading.Event().wait()
finally:
    threading.Event().wait()
"""


def test_a_process_is_gone_soon_after_a_signal() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGS_AFTER_A_SIGNAL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert said == "labelmill: interrupted by SIGTERM; rerun the same command to resume\n"


_SLOW_TO_EXIT = """
import atexit, sys, time
def linger():
    print("exits", flush=True)
    time.sleep(2)
atexit.register(linger)
from labelmill.pipeline.process.interruption import keep_exit_status
keep_exit_status()
sys.exit(3)
"""


def test_a_signal_at_exit_changes_no_status() -> None:
    process = subprocess.Popen([sys.executable, "-c", _SLOW_TO_EXIT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "exits\n"
    process.terminate()
    assert process.wait(30) == 3
    process.stdout.close()


_CRASH_AT_EXIT = """
import ctypes, sys
from labelmill.pipeline.process.interruption import keep_exit_status
libc = ctypes.CDLL(None)
libc.on_exit(ctypes.cast(libc.abort, ctypes.c_void_p), None)
{keep}
print("the last word")
sys.exit(5)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="on_exit is glibc's")
@pytest.mark.parametrize(("keep", "status"), [("keep_exit_status()", 5), ("", -signal.SIGABRT)])
def test_a_library_that_crashes_while_the_process_ends_does_not_change_the_status(keep: str, status: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _CRASH_AT_EXIT.format(keep=keep)], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (status, "the last word\n")
