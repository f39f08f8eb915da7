"""A local folder as a place for whole files: made on the first write, pushed to the disk, swept of orphans."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from labelmill.pipeline.store.backend import StoredFile, Version, VersionedFile
from labelmill.schemas.errors import OutputError
from labelmill.schemas.user_path import expand_user

# obstore writes `name#1`, then links or renames it to `name`; a killed process leaves the former behind.
_STAGING_NAME = re.compile(r".+#\d+")
# Locked by those who compare and swap. Listings pass such names over, and sweeping leaves them.
_SWAP_LOCK = "#0"
# A swap takes milliseconds; one that takes longer has been stopped in the middle of it.
_SWAP_SECONDS = 60.0
_CHUNK_BYTES = 1 << 18
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
_KEPT = "Free some space and rerun the same command to resume: finished work is kept"
_NO_PERMISSION = "no permission. Make the folder writable for this user, or choose another output"
_NO_LOCKS = "this file system has no file locks. Mount it with locks (NFS: version 4), or choose another output"
_ADVICE = {
    errno.ENOSPC: f"the disk is full. {_KEPT}",
    errno.EDQUOT: f"the disk quota is used up. {_KEPT}",
    errno.EFBIG: "it would pass the system's limit on file sizes. Raise the limit, or make smaller shards",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "the file system is read-only. Choose another output",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another output",
    errno.ENOLCK: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.EWOULDBLOCK: "another process has kept it locked for a minute. Is one stopped, or the disk hanging?",
    errno.EEXIST: "a file is in the way of a folder. Choose another output",
}


class LocalFolder:
    """Files under a local folder. `Store` documents the operations."""

    def __init__(self, url: str) -> None:
        """Raises OutputError when a file is in the way."""
        self._url = url
        self.folder = expand_user(url.removeprefix("file://")).absolute()
        self._files: LocalStore | None = None
        if self._is_file():
            raise OutputError(f"{url}: is a file; the output must be a folder, or not exist yet")

    def create(self, path: str, data: bytes) -> bool:
        try:
            self._writable().put(path, data, mode="create")
            self._flush(path)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise self._refused(path, "written", error) from error
        return True

    def replace(self, path: str, data: bytes) -> None:
        try:
            self._writable().put(path, data)
            self._flush(path)
        except (BaseError, OSError) as error:
            raise self._refused(path, "written", error) from error

    def read(self, path: str) -> bytes:
        return b"".join(self._chunks(path))

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for chunk in self._chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self, path: str) -> Iterator[bytes]:
        # Without Python's file objects, which cost more than small files do.
        try:
            descriptor = os.open(f"{self.folder}/{path}", os.O_RDONLY)
            try:
                while chunk := os.read(descriptor, _CHUNK_BYTES):
                    yield chunk
            finally:
                os.close(descriptor)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise FileNotFoundError(f"{self._url}/{path}") from None
        except OSError as error:
            raise self._refused(path, "read", error) from error

    def read_versioned(self, path: str) -> VersionedFile:
        data = self.read(path)
        return VersionedFile(data, Version(hashlib.sha256(data).hexdigest()))

    def compare_and_swap(self, path: str, data: bytes, version: Version | None) -> bool:
        if version is None:
            return self.create(path, data)
        with self._swapping(path):
            try:
                if self.read_versioned(path).version != version:
                    return False
            except FileNotFoundError:
                return False
            self.replace(path, data)
        return True

    def exists(self, path: str) -> bool:
        files = self._readable()
        if files is None:
            return False
        try:
            files.head(path)
        except FileNotFoundError:
            return False
        except (BaseError, OSError) as error:
            raise self._refused(path, "read", error) from error
        return True

    def folders(self, prefix: str) -> list[str]:
        files = self._readable()
        if files is None:
            return []
        try:
            found = files.list_with_delimiter(prefix or None)
        except (BaseError, OSError) as error:
            raise self._refused(prefix, "listed", error) from error
        return sorted(path.rsplit("/", 1)[-1] for path in found["common_prefixes"])

    def list(self, prefix: str) -> list[StoredFile]:
        files = self._readable()
        if files is None:
            return []
        try:
            entries = files.list(prefix=prefix or None).collect()
        except (BaseError, OSError) as error:
            raise self._refused(prefix, "listed", error) from error
        return sorted((StoredFile(entry["path"], entry["size"]) for entry in entries), key=lambda file: file.path)

    def first_file(self) -> str | None:
        files = self._readable()
        try:
            some = next(iter(files.list(chunk_size=1)), []) if files is not None else []
        except (BaseError, OSError) as error:
            raise self._refused("", "listed", error) from error
        return some[0]["path"] if some else None

    def delete(self, path: str) -> None:
        files = self._readable()
        if files is None:
            return
        try:
            files.delete(path)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise self._refused(path, "deleted", error) from error

    def sweep_orphans(self, older_than_seconds: float) -> int:
        if not self._is_folder():
            return 0
        latest, num_removed = self._now() - older_than_seconds, 0
        for file in self.folder.rglob("*#*"):
            try:
                if _STAGING_NAME.fullmatch(file.name) and file.is_file() and file.stat().st_mtime <= latest:
                    file.unlink()
                    num_removed += 1
            except FileNotFoundError:
                continue  # its writer has just finished, or another driver sweeps too
            except OSError as error:
                raise self._refused(str(file.relative_to(self.folder)), "deleted", error) from error
        return num_removed

    def _now(self) -> float:
        """The time by the clock that dates the files here: a file server's, not this machine's, which may be ahead."""
        probe = self.folder / f"clock#{secrets.randbits(48)}"
        try:
            probe.touch(exist_ok=False)
            return probe.stat().st_mtime
        except OSError as error:
            raise self._refused("", "written", error) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def _writable(self) -> LocalStore:
        if self._files is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files = LocalStore(self.folder)
        return self._files

    def _readable(self) -> LocalStore | None:
        """None while the folder does not exist."""
        if self._files is None and self._is_folder():
            self._files = LocalStore(self.folder)
        return self._files

    @contextmanager
    def _swapping(self, path: str) -> Iterator[None]:
        """Shuts out every other process and thread that swaps; the system lets them in again when this one dies."""
        self._writable()
        try:
            descriptor = os.open(self.folder / _SWAP_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._refused(path, "written", error) from error
        try:
            self._lock(descriptor, path)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, path: str) -> None:
        deadline = time.monotonic() + _SWAP_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() > deadline:
                    raise self._refused(path, "written", error) from error
            time.sleep(0.01)

    def _is_folder(self) -> bool:
        try:
            return self.folder.is_dir()
        except OSError as error:  # a folder above may not be entered
            raise self._refused("", "read", error) from error

    def _is_file(self) -> bool:
        # One look: between two, another driver may have made the folder.
        try:
            return not stat.S_ISDIR(self.folder.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._refused("", "read", error) from error

    def _flush(self, path: str) -> None:
        """Push a file, and the folders that name it, to the disk, which obstore leaves to the system."""
        file = self.folder / path
        for part in (file, *file.parents):
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if part == self.folder:
                break

    def _refused(self, path: str, verb: str, error: Exception) -> OutputError:
        numbers = _ERROR_NUMBER.findall(str(error).split("\n")[0])
        number = error.errno if isinstance(error, OSError) and error.errno else int(numbers[0]) if numbers else 0
        reason = _ADVICE.get(number) or str(error).split("\n")[0]
        place = f"{self._url}/{path}" if path else self._url
        return OutputError(f"{place}: cannot be {verb}: {reason}")
