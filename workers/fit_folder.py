"""Where a fit keeps what it resumes from: a local folder, gone when the labeler is published."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from labelmill.pipeline.process.log import log
from labelmill.pipeline.store.store import Store
from labelmill.schemas.fingerprint import canonical_json

FOLDER = ".fit"
"""In a local output, hidden, where a fit that is resumed on another machine of a shared file system finds it too."""
_LOCK = "lock"


@contextmanager
def fit_folder(store: Store, run_identity: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of this output's fit, as an interrupted one left it; deleted when the body ends well.

    For an output in a bucket it lies in the user's cache. Who finds it in use, or cannot write there, fits in a
    temporary folder, which nobody resumes from.
    """
    folder = _place(store, run_identity)
    lock = _locked(folder, make=True)
    if folder is None or lock is None:
        why = "no home folder is known" if folder is None else f"{folder} is in use or cannot be written"
        log(f"fit: {why}; this fit could not be resumed", level="warning")
        with tempfile.TemporaryDirectory(prefix="labelmill-fit-") as temporary:
            yield Path(temporary)
        return
    try:
        yield folder
        _delete(folder)
    finally:
        os.close(lock)
        _remove_if_unused(folder)


def forget_fit(store: Store, run_identity: Mapping[str, Any]) -> None:
    """Delete what a fit that was killed after its last step has left, unless another one works there."""
    folder = _place(store, run_identity)
    lock = _locked(folder, make=False)
    if folder is not None and lock is not None:
        _delete(folder)
        os.close(lock)


def _place(store: Store, run_identity: Mapping[str, Any]) -> Path | None:
    """None for a user without a home folder, as in containers that run under any user's number."""
    if store.folder is not None:
        return store.folder / FOLDER
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    whose = hashlib.sha256(canonical_json({"output": store.url, "identity": run_identity})).hexdigest()
    return cache / "labelmill" / f"fit-{whose[:32]}"


def _locked(folder: Path | None, *, make: bool) -> int | None:
    """The folder's lock, as an open file: the kernel frees it with the process. None where it cannot be had.

    make: whether to make a folder that is not there.
    """
    if folder is None:
        return None
    try:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), (folder / _LOCK).stat()):  # else another fit has just deleted it
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _delete(folder: Path) -> None:
    """The lock last: who finds none has an empty folder."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                entry.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_if_unused(folder: Path) -> None:
    """A method that resumes nothing leaves nothing, however it ended."""
    try:
        if [path.name for path in folder.iterdir()] == [_LOCK]:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass
