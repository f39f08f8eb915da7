"""Where a dataset lives: whole files by relative path, each of which appears at once or not at all.

A local folder, or a bucket of S3 (and of what speaks its language), Google Cloud Storage or Azure, all through
obstore.
"""

from pathlib import Path
from typing import Self

from labelmill.pipeline.store.backend import Backend, StoredFile, Version, VersionedFile
from labelmill.pipeline.store.bucket import Bucket
from labelmill.pipeline.store.bucket_address import parse_bucket_url
from labelmill.pipeline.store.local_folder import LocalFolder
from labelmill.schemas.errors import ConfigError, OutputError

__all__ = ["Store", "StoredFile", "Version", "VersionedFile"]


class Store:
    """Files under one root. Threads, processes and machines may use the same root at once."""

    def __init__(self, url: str, place: Backend) -> None:
        self.url = url
        """The root, as the user wrote it, without a / at a bucket's end. Free of secrets."""
        self._place = place

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a folder or a bucket. A folder need not exist: nothing is created, or asked, before the first use.

        `url` is a path, file://PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, prefixes
        optional. Raises ConfigError for any other URL and for settings in the environment that cannot be used,
        OutputError when a file is in a folder's way.
        """
        if "://" not in url or url.startswith("file://"):
            return cls(url, LocalFolder(url))
        try:
            address = parse_bucket_url(url)
            return cls(address.url, Bucket(address))
        except ConfigError as error:
            raise ConfigError(f"output: {error}") from None

    @property
    def folder(self) -> Path | None:
        """The root if it is a local folder."""
        return self._place.folder if isinstance(self._place, LocalFolder) else None

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists. Of several at once exactly one gets True.

        The content has reached the disk, or the bucket, on return, so a later file never outlives an earlier one.
        Raises OutputError when the file cannot be written: a folder then has nothing at `path`; a bucket whose
        answer was lost may have the whole file.
        """
        return self._place.create(path, data)

    def claim(self, path: str, data: bytes) -> bool:
        """`create` for the file that a run's other files rely on: also makes sure that a second create is refused.

        Some servers that speak S3, and some proxies before them, ignore the header that asks for it, and several
        drivers would overwrite each other's shards. Raises OutputError in such a place, with `path` as free as before.
        """
        existed = self.exists(path)
        if not self.create(path, data):
            return False
        if not self.create(path, data):
            return True
        # What was there may be of drivers that find the same out at this moment: each removes what it wrote last.
        if not existed or all(file.path == path for file in self.list()):
            self.delete(path)
        raise OutputError(
            f"{self.url}: overwrites a file that exists although asked not to, so parallel drivers would "
            f"destroy each other's shards. Its server, or a proxy before it, ignores `If-None-Match: *` on PUT: "
            f"update it, or write to a local folder and copy the finished dataset"
        )

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, over an older one if there is one: readers see the old or the new content, whole.

        Raises OutputError, with the old content in place, when the file cannot be written.
        """
        self._place.replace(path, data)

    def read(self, path: str) -> bytes:
        """The content of a file. Raises FileNotFoundError, or OutputError when it cannot be read."""
        return self._place.read(path)

    def sha256(self, path: str) -> str:
        """SHA-256 of a file's content, hex, in little memory however large it is. Raises as `read` does."""
        return self._place.sha256(path)

    def read_versioned(self, path: str) -> VersionedFile:
        """The content of a file, and what `compare_and_swap` knows it by. Raises as `read` does."""
        return self._place.read_versioned(path)

    def compare_and_swap(self, path: str, data: bytes, version: Version | None) -> bool:
        """Write a file if it is still the one that was read as `version`, or if there is none and `version` is None.

        Of several at once that read the same version exactly one gets True, as long as their contents differ from
        each other and from all earlier ones. False says that another was faster; a bucket whose answer was lost may
        say so, too, after this content was there and another one replaced it. `replace` and `delete` heed nobody:
        leave them to other files. Raises OutputError when the file cannot be written.
        """
        return self._place.compare_and_swap(path, data, version)

    def exists(self, path: str) -> bool:
        """Whether there is a file at `path`."""
        return self._place.exists(path)

    def folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly under the folder `prefix`, sorted; quick however much is in them."""
        return self._place.folders(prefix)

    def list(self, prefix: str = "") -> list[StoredFile]:
        """All files under the folder `prefix`, those of its subfolders too, sorted by path."""
        return self._place.list(prefix)

    def first_file(self) -> str | None:
        """The path of some file, None where there is none. Unlike `list`, quick in a folder of any size."""
        return self._place.first_file()

    def delete(self, path: str) -> None:
        """Remove a file; that it is gone already is no error. Raises OutputError when it cannot be."""
        self._place.delete(path)

    def sweep_orphans(self, older_than_seconds: float) -> int:
        """Remove what killed processes left half-written, and say how many files that were.

        Only files untouched for `older_than_seconds`, by the clock that dates them, go: a younger one may be another
        driver's, in progress. Buckets
        have none: each file is one request, which is stored whole or not at all.
        """
        return self._place.sweep_orphans(older_than_seconds)
