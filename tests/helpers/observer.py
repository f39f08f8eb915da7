"""Watches an output as a stranger would: opens every visible file again and again, and notes any it cannot read."""

import io
import json
import os
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import pyarrow
import pyarrow.parquet as pq
import safetensors.numpy
from obstore.store import S3Store

# What obstore names a put in progress; object stores and labelmill's own listing do not show such files.
STAGING = re.compile(r".+#\d+")
# A little more than 20 times a second.
PERIOD_SECONDS = 0.049


def _read_tar(content: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = archive.getmembers()
        assert len(members) % 3 == 0 and members
    # A tar cut between members still opens; a whole one ends with two zero blocks.
    assert content.endswith(b"\0" * 1024)


READERS: dict[str, Callable[[bytes], object]] = {
    ".tar": _read_tar,
    ".parquet": lambda content: pq.read_table(pyarrow.BufferReader(content)),
    ".json": json.loads,
    ".safetensors": safetensors.numpy.load,
    ".md": bytes.decode,
    ".html": bytes.decode,
}


class Observer:
    """Use as a context; `problems` and `num_rounds` afterwards.

    Watches a folder, or what an s3:// URL names: there `endpoint` is the server's address, past any proxy, and an
    object is opened again whenever it has changed.
    """

    def __init__(self, place: Path | str, endpoint: str | None = None) -> None:
        self._files = _files_in(place) if isinstance(place, Path) else _objects_in(place, endpoint)
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
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                for path, read in self._files():
                    self._open(path, read)
            except Exception as error:  # a thread's exception would go unseen
                self.problems.append(f"cannot list: {error!r}")
            self.num_rounds += 1
            # By the clock, so that quick looks make up for slow ones; but not for a machine that slept.
            due = max(due + PERIOD_SECONDS, time.monotonic() - 1)
            self._stop.wait(due - time.monotonic())

    def _open(self, path: str, read: Callable[[], bytes]) -> None:
        try:
            READERS[PurePosixPath(path).suffix](read())
        except Exception as error:  # whatever a reader raises is a finding
            self.problems.append(f"{path}: {error!r}")
        self.num_opened += 1


Files = Callable[[], Iterator[tuple[str, Callable[[], bytes]]]]


def _files_in(folder: Path) -> Files:
    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for path in sorted(folder.rglob("*")):
            is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not is_hidden and not STAGING.fullmatch(path.name):
                yield path.name, path.read_bytes

    return files


def _objects_in(url: str, endpoint: str | None) -> Files:
    client = S3Store.from_url(
        url, endpoint=endpoint or os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True}
    )
    opened: set[tuple[str, str | None]] = set()

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for entry in client.list().collect():
            path, version = entry["path"], (entry["path"], entry["e_tag"])
            if version not in opened:
                opened.add(version)
                yield path, lambda path=path: client.get(path).bytes().to_bytes()

    return files
