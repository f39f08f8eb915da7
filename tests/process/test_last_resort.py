"""The last resort ends a process that no Python thread can, and no other."""

import subprocess
import sys
import time

# A call of C that keeps the GIL, unlike those of ctypes.CDLL.
HANG = "ctypes.PyDLL(None).sleep(60)"


def _run(body: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import ctypes, time\nfrom labelmill.pipeline.process.last_resort import last_resort\n"
        "from labelmill.workers.watchdog import Watchdog\n"
        f"{body}\nprint('went on', flush=True)"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)


def test_a_call_that_never_returns_and_keeps_the_gil() -> None:
    start = time.monotonic()
    result = _run(
        "with Watchdog().limit(0.5, exit_code=3, last_words='gone silent'), last_resort(2, exit_code=75):\n    " + HANG
    )
    assert (result.returncode, result.stdout) == (75, "")
    assert result.stderr.startswith("Timeout (0:00:02)!") and 'File "<string>", line 5 in <module>' in result.stderr
    assert "gone silent" not in result.stderr  # the watchdog's thread could not
    assert 2 < time.monotonic() - start < 30


def test_one_that_returns() -> None:
    result = _run("with last_resort(1, exit_code=75):\n    pass\ntime.sleep(3)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "went on\n", "")


def test_a_raise_calls_it_off() -> None:
    body = "try:\n    with last_resort(1, exit_code=75):\n        raise KeyError\nexcept KeyError:\n    pass\n"
    result = _run(body + "time.sleep(3)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "went on\n", "")
