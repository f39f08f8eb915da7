"""What a store is made of: a place that keeps whole files, be it a folder or a bucket."""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class StoredFile:
    """An entry of a listing."""

    path: str
    """Relative to the store's root, parts joined by /."""
    num_bytes: int
    modified: float | None = field(default=None, compare=False)
    """When it was last written, by a bucket's clock, in seconds since 1970. None in folders, where times mean less:
    they are kept when files are moved or copied."""


@dataclass(frozen=True)
class Version:
    """Tells the contents that a file has had apart."""

    tag: str
    """Follows from the content in some places, so that equal contents may have equal tags."""
    generation: str | None = None
    """Google's number of a write, which its conditional writes ask for."""


@dataclass(frozen=True)
class VersionedFile:
    """A file as it was at a moment."""

    data: bytes
    version: Version


class Backend(Protocol):
    """The operations of `Store`, which documents them. Errors are OutputError, in words, and FileNotFoundError."""

    def create(self, path: str, data: bytes) -> bool: ...

    def replace(self, path: str, data: bytes) -> None: ...

    def read(self, path: str) -> bytes: ...

    def sha256(self, path: str) -> str: ...

    def read_versioned(self, path: str) -> VersionedFile: ...

    def compare_and_swap(self, path: str, data: bytes, version: Version | None) -> bool: ...

    def exists(self, path: str) -> bool: ...

    def folders(self, prefix: str) -> list[str]: ...

    def list(self, prefix: str) -> list[StoredFile]: ...

    def first_file(self) -> str | None: ...

    def delete(self, path: str) -> None: ...

    def sweep_orphans(self, older_than_seconds: float) -> int: ...
