"""Where a disturbed run writes, with what can be done to it: a folder, a small disk, a bucket."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from chaos.schedule import Fault, Where
from helpers import s3_server
from helpers.observer import STAGING, Observer
from helpers.s3_server import Fault as Trouble
from helpers.s3_server import S3Server
from obstore.store import S3Store

DISK_MEGABYTES = 8
# A bucket's listing in one page: the observer lists all the time.
_PAGE_SIZE = 1000


class UnavailableError(Exception):
    """This machine cannot have such a place."""


class Place(Protocol):
    """An output."""

    url: str
    environment: dict[str, str]

    def observer(self) -> Observer:
        """Watches it past whatever is done to it."""

    def num_shards(self) -> int:
        """How many are there."""

    def files(self) -> dict[str, bytes]:
        """All visible ones, by relative path."""

    def strike(self, fault: Fault) -> None:
        """Fill, refuse, cut or shut."""

    def heal(self) -> None:
        """Undo it."""


class _Folder:
    environment: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, root: Path) -> None:
        self._root, self._output = root, root / "out"
        self.url = str(self._output)

    def observer(self) -> Observer:
        return Observer(self._output)

    def num_shards(self) -> int:
        return len(list(self._output.glob("shards/*.tar")))

    def files(self) -> dict[str, bytes]:
        found = [path for path in self._output.rglob("*") if path.is_file() and not STAGING.fullmatch(path.name)]
        return {str(path.relative_to(self._output)): path.read_bytes() for path in found}

    def strike(self, fault: Fault) -> None:
        """To the last byte."""
        assert fault.what == "fill", fault
        with suppress(OSError), (self._root / "filler").open("wb", buffering=0) as filler:
            while filler.write(b"x" * 4096):
                pass

    def heal(self) -> None:
        (self._root / "filler").unlink(missing_ok=True)


class _Bucket:
    def __init__(self, server: S3Server, seed: int) -> None:
        self._server, self._seed = server, seed
        self._bucket = server.create_bucket()
        self.url = f"{self._bucket}/nightly/out"
        self.environment = server.environment

    def observer(self) -> Observer:
        return Observer(self.url, self._server.direct_endpoint)

    def num_shards(self) -> int:
        return self._server.count("PUT", r"\.tar$", 200)

    def files(self) -> dict[str, bytes]:
        client = S3Store.from_url(self.url, endpoint=self._server.direct_endpoint, client_options={"allow_http": True})
        return {entry["path"]: client.get(entry["path"]).bytes().to_bytes() for entry in client.list().collect()}

    def strike(self, fault: Fault) -> None:
        refusal, cut = Trouble("answer", status=503), Trouble("cut")
        late_cut, late_refusal = Trouble("cut", stored=True), Trouble("answer", status=503, stored=True)
        share = 1.0 if fault.what == "shut" else fault.share / 2
        shares = {cut: share, late_cut: share} if fault.what == "cut" else {refusal: share, late_refusal: share}
        self._server.inject_randomly({refusal: 1.0} if fault.what == "shut" else shares, self._seed)

    def heal(self) -> None:
        self._server.inject_randomly({}, self._seed)


@contextmanager
def open_place(where: Where, seed: int) -> Iterator[Place]:
    """A new output. Raises UnavailableError where this user may not mount a small disk."""
    if where == "bucket":
        s3_server.PAGE_SIZE = _PAGE_SIZE
        with S3Server() as server:
            os.environ.update(server.environment)  # for those who look at it from here
            yield _Bucket(server, seed)
        return
    with tempfile.TemporaryDirectory(prefix="storm-") as name:
        root = Path(name)
        if where == "folder":
            yield _Folder(root)
            return
        options = ["-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", name]
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True)
        if mounted.returncode:
            raise UnavailableError(f"no small disk can be mounted: {mounted.stderr.strip()}")
        try:
            yield _Folder(root)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """SHA-256 of what must be the same in every run: all but records, which say who made what when, and progress."""
    return {
        path: hashlib.sha256(content).hexdigest()
        for path, content in files.items()
        if not path.startswith(("records/", "progress.json"))
    }
