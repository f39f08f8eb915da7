"""`labelmill` in a process of its own, watched through what it says."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_SECONDS = 240
"""Starting Python, torch and Ray takes a busy machine minutes."""


class Driver:
    """Use as a context: it is killed at the end if it still runs."""

    def __init__(self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "labelmill.pipeline.cli", *map(str, arguments)]
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, **(env or {})}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), root]))
        self._process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        """What it has said so far, on stdout and stderr."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, pattern: str, *, times: int = 1) -> list[re.Match[str]]:
        """Wait until so many lines match."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            ended = self._process.poll() is not None and not self._reader.is_alive()
            found = [match for line in list(self.lines) if (match := re.search(pattern, line))]
            if len(found) >= times:
                return found
            assert not ended and time.monotonic() < deadline, f"{pattern} is not among what it said:\n{self.text}"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def has_ended(self, seconds: float = 0) -> bool:
        """Whether it ends within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self, seconds: float = 600) -> int:
        """The exit status."""
        status = self._process.wait(seconds)
        self._reader.join(10)
        return status

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(10)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a function returns something true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Some of those that neither the kernel gives to whoever asks for any, nor Ray to its workers."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 12_000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found
