"""Watches an output as a stranger would: opens every visible file again and again, and notes any it cannot read."""

import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow.parquet as pq
from safetensors import safe_open

# What obstore names a put in progress; object stores and labelmill's own listing do not show such files.
STAGING = re.compile(r".+#\d+")


def _read_tar(path: Path) -> None:
    content = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
        assert len(members) % 3 == 0 and members
    # A tar cut between members still opens; a whole one ends with two zero blocks.
    assert content.endswith(b"\0" * 1024)


def _read_safetensors(path: Path) -> None:
    with safe_open(str(path), framework="numpy") as file:
        list(file.keys())


READERS: dict[str, Callable[[Path], object]] = {
    ".tar": _read_tar,
    ".parquet": pq.read_table,
    ".json": lambda path: json.loads(path.read_bytes()),
    ".safetensors": _read_safetensors,
    ".md": lambda path: path.read_bytes().decode(),
}


class Observer:
    """Use as a context; `problems` and `num_rounds` afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.problems: list[str] = []
        self.num_rounds = 0
        self.num_opened = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            start = time.monotonic()
            for path in sorted(self._folder.rglob("*")):
                if path.is_file() and not STAGING.fullmatch(path.name):
                    self._open(path)
            self.num_rounds += 1
            self._stop.wait(max(0.0, 0.05 - (time.monotonic() - start)))

    def _open(self, path: Path) -> None:
        try:
            READERS[path.suffix](path)
        except Exception as error:  # whatever a reader raises is a finding
            self.problems.append(f"{path.name}: {error!r}")
        self.num_opened += 1
