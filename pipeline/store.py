"""Where a dataset lives: whole files by relative path, each of which appears at once or not at all.

Today a local folder, through obstore, whose buckets have the same operations.
"""

import errno
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from schemas.errors import ConfigError, OutputError

# obstore writes `name#1`, then links or renames it to `name`; a killed process leaves the former behind.
_STAGING_NAME = re.compile(r".+#\d+")
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)")
_KEPT = "Free some space and run the same command again: what is finished is kept"
_NO_PERMISSION = "no permission. Make the folder writable for this user, or choose another output"
_ADVICE = {
    errno.ENOSPC: f"the disk is full. {_KEPT}",
    errno.EDQUOT: f"the disk quota is used up. {_KEPT}",
    errno.EFBIG: "it would pass the system's limit on file sizes. Raise the limit, or make smaller shards",
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.EROFS: "the file system is read-only. Choose another output",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another output",
    errno.EEXIST: "a file is in the way of a folder. Choose another output",
}


@dataclass(frozen=True)
class StoredFile:
    """An entry of a listing."""

    path: str
    """Relative to the store's root, parts joined by /."""
    num_bytes: int


class Store:
    """Files under one root. Threads, processes and machines may use the same root at once."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        """The root, as the user wrote it."""
        self.folder: Path | None = folder
        """The root if it is a local folder."""
        self._root = folder
        self._files: LocalStore | None = None

    @classmethod
    def open(cls, url: str) -> "Store":
        """Open a folder, which need not exist: nothing is created before the first write.

        Raises ConfigError for a kind of URL that is not supported, OutputError when a file is in the way.
        """
        if "://" in url and not url.startswith("file://"):
            raise ConfigError(f"output: {url}: {url.split('://')[0]}:// is not supported; use a local folder")
        store = cls(url, Path(url.removeprefix("file://")).expanduser().absolute())
        if store._is_file():
            raise OutputError(f"{url}: is a file; the output must be a folder, or not exist yet")
        return store

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists. Of several at once exactly one gets True.

        The content has reached the disk on return, so a later file never outlives an earlier one. Raises
        OutputError, with nothing left at `path`, when the file cannot be written.
        """
        try:
            self._writable().put(path, data, mode="create")
            self._flush(path)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise self._refused(path, "written", error) from error
        return True

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, over an older one if there is one: readers see the old or the new content, whole.

        Raises OutputError, with the old content in place, when the file cannot be written.
        """
        try:
            self._writable().put(path, data)
            self._flush(path)
        except (BaseError, OSError) as error:
            raise self._refused(path, "written", error) from error

    def read(self, path: str) -> bytes:
        """The content of a file. Raises FileNotFoundError, or OutputError when it cannot be read."""
        files = self._readable()
        if files is None:
            raise FileNotFoundError(f"{self.url}/{path}")
        try:
            return files.get(path).bytes().to_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.url}/{path}") from None
        except (BaseError, OSError) as error:
            raise self._refused(path, "read", error) from error

    def exists(self, path: str) -> bool:
        """Whether there is a file at `path`."""
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

    def list(self, prefix: str = "") -> list[StoredFile]:
        """All files under the folder `prefix`, those of its subfolders too, sorted by path."""
        files = self._readable()
        if files is None:
            return []
        try:
            entries = files.list(prefix=prefix or None).collect()
        except (BaseError, OSError) as error:
            raise self._refused(prefix, "listed", error) from error
        return sorted((StoredFile(entry["path"], entry["size"]) for entry in entries), key=lambda file: file.path)

    def first_file(self) -> str | None:
        """The path of some file, None where there is none. Unlike `list`, quick in a folder of any size."""
        files = self._readable()
        try:
            some = next(iter(files.list(chunk_size=1)), []) if files is not None else []
        except (BaseError, OSError) as error:
            raise self._refused("", "listed", error) from error
        return some[0]["path"] if some else None

    def delete(self, path: str) -> None:
        """Remove a file; that it is gone already is no error. Raises OutputError when it cannot be."""
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
        """Remove what killed processes left half-written, and say how many files that were.

        Only files untouched for `older_than_seconds` go: a younger one may be another driver's, in progress.
        """
        if self.folder is None or not self._is_folder():
            return 0
        latest, num_removed = time.time() - older_than_seconds, 0
        for file in self.folder.rglob("*#*"):
            try:
                if _STAGING_NAME.fullmatch(file.name) and file.is_file() and file.stat().st_mtime < latest:
                    file.unlink()
                    num_removed += 1
            except FileNotFoundError:
                continue  # its writer has just finished, or another driver sweeps too
            except OSError as error:
                raise self._refused(str(file.relative_to(self.folder)), "deleted", error) from error
        return num_removed

    def _writable(self) -> LocalStore:
        if self._files is None:
            self._root.mkdir(parents=True, exist_ok=True)
            self._files = LocalStore(self._root)
        return self._files

    def _readable(self) -> LocalStore | None:
        """None while the folder does not exist."""
        if self._files is None and self._is_folder():
            self._files = LocalStore(self._root)
        return self._files

    def _is_folder(self) -> bool:
        try:
            return self._root.is_dir()
        except OSError as error:  # a folder above may not be entered
            raise self._refused("", "read", error) from error

    def _is_file(self) -> bool:
        # One look: between two, another driver may have made the folder.
        try:
            return not stat.S_ISDIR(self._root.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise self._refused("", "read", error) from error

    def _flush(self, path: str) -> None:
        """Push a file, and the folders that name it, to the disk, which obstore leaves to the system."""
        file = self._root / path
        for part in (file, *file.parents):
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if part == self._root:
                break

    def _refused(self, path: str, verb: str, error: Exception) -> OutputError:
        numbers = _ERROR_NUMBER.findall(str(error).split("\n")[0])
        number = error.errno if isinstance(error, OSError) and error.errno else int(numbers[0]) if numbers else 0
        reason = _ADVICE.get(number) or str(error).split("\n")[0]
        place = f"{self.url}/{path}" if path else self.url
        return OutputError(f"{place}: cannot be {verb}: {reason}")
