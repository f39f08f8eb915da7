"""The processes of a run, seen from outside: who is who, and none left behind."""

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from random import Random

import psutil

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own, so that none can hide."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def descendants(spared: Iterable[int] = ()) -> list[psutil.Process]:
    """All processes below this one, without those of the `spared` ids and what is dead already."""
    left_out = set(spared)
    return [process for process in _children(psutil.Process()) if process.pid not in left_out and _is_alive(process)]


def find(whom: str, driver: int, random: Random) -> psutil.Process | None:
    """The driver of that id, its raylet or gcs_server, or one of its workers, rather a busy one."""
    with suppress(psutil.NoSuchProcess):
        if whom == "driver":
            return psutil.Process(driver)
        processes = [process for process in _children(psutil.Process(driver)) if _is_alive(process)]
        if whom != "worker":
            name = {"raylet": "raylet", "gcs": "gcs_server"}[whom]
            return next((process for process in processes if process.name() == name), None)
        workers = {process: _title(process) for process in processes}
        workers = {
            process: title
            for process, title in workers.items()
            if title.startswith("ray::") and not title.startswith(_AGENTS)
        }
        busy = [process for process, title in workers.items() if title != "ray::IDLE"]
        candidates = sorted(busy or workers, key=lambda process: process.pid)
        return random.choice(candidates) if candidates else None
    return None


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether there was still somebody to send it to."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def await_end(seconds: float, spared: Iterable[int]) -> list[psutil.Process]:
    """Give descendants time to end by themselves; returns those that have not. Stopped ones are not waited for."""
    deadline = time.monotonic() + seconds
    while True:
        _reap(spared)
        rest = descendants(spared)
        if time.monotonic() > deadline or all(_is_stopped(process) for process in rest):
            return rest
        time.sleep(0.1)


def describe_running(rest: Iterable[psutil.Process]) -> list[str]:
    """Titles of those that are not stopped, without Ray's agents, which look for a lost head for a minute."""
    titles = [_title(process) for process in rest if not _is_stopped(process)]
    return [title.strip() for title in titles if title and not title.startswith(_AGENTS)]


def resume_all(processes: Iterable[psutil.Process]) -> None:
    """Let stopped processes go on."""
    for process in processes:
        if _is_stopped(process):
            send(process, signal.SIGCONT)


def kill_all(spared: Iterable[int]) -> None:
    """End every descendant, and those that they start meanwhile. Raises AssertionError when one survives."""
    deadline = time.monotonic() + 20
    while rest := descendants(spared):
        for process in rest:
            send(process, signal.SIGKILL)
        assert time.monotonic() < deadline, f"cannot be killed: {rest}"
        time.sleep(0.05)
        _reap(spared)


def _reap(spared: Iterable[int]) -> None:
    """Bury adopted children that have ended."""
    left_out = set(spared)
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.pid not in left_out and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


def _children(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_stopped(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_STOPPED
    return False
