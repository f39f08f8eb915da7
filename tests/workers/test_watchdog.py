"""The watchdog ends a process that waits for ever, and no other."""

import json
import subprocess
import sys
import time

import pytest

from labelmill.pipeline.process.log import LOG_VARIABLE


def _run(body: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import time, os, signal, threading\nfrom labelmill.workers.watchdog import Watchdog\ndog = Watchdog()\n"
        f"{body}\nprint('went on', flush=True)"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_a_call_that_never_returns() -> None:
    start = time.monotonic()
    result = _run("with dog.limit(1, exit_code=75, last_words='gone silent'):\n    threading.Event().wait()")
    assert (result.returncode, result.stdout) == (75, "")
    assert result.stderr == "labelmill: gone silent\n"
    assert time.monotonic() - start < 30


def test_machines_read_whose_last_words_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG_VARIABLE, "json")
    result = _run(
        "from labelmill.pipeline.process.log import log_context\nwith log_context('faces'):\n"
        "    with dog.limit(1, exit_code=75, last_words='gone silent'):\n        threading.Event().wait()"
    )
    said = json.loads(result.stderr)
    assert (said["run"], said["level"], said["message"]) == ("faces", "error", "labelmill: gone silent")


def test_a_signal_makes_it_hurry() -> None:
    start = time.monotonic()
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: dog.hurry(exit_code=75, last_words='interrupted', seconds=1))\n"
        "with dog.limit(60, exit_code=3, last_words='gone silent'):\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait()"
    )
    result = _run(body)
    assert (result.returncode, result.stderr) == (75, "labelmill: interrupted\n")
    assert time.monotonic() - start < 30


def test_to_hurry_is_for_a_watched_call_alone() -> None:
    body = (
        "dog.hurry(exit_code=75, last_words='interrupted', seconds=1)\n"
        "with dog.limit(60, exit_code=3, last_words='gone silent'):\n    time.sleep(2)"
    )
    assert _run(body).returncode == 0


def test_one_that_does() -> None:
    result = _run("with dog.limit(1, exit_code=75, last_words='gone silent'):\n    pass\ntime.sleep(2)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "went on\n", "")


def test_a_raise_calls_it_off() -> None:
    body = (
        "try:\n    with dog.limit(1, exit_code=75, last_words='gone silent'):\n        raise KeyError\n"
        "except KeyError:\n    pass\ntime.sleep(2)"
    )
    assert _run(body).returncode == 0


@pytest.mark.slow
def test_a_frozen_process_is_nobodys_fault() -> None:
    body = (
        "pid = os.getpid()\nif os.fork() == 0:\n    time.sleep(8)\n    os.kill(pid, signal.SIGCONT)\n    os._exit(0)\n"
        "with dog.limit(3, exit_code=75, last_words='gone silent'):\n    os.kill(pid, signal.SIGSTOP)"
    )
    assert _run(body).returncode == 0
