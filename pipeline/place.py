"""What a store is made of: a place that keeps whole files, be it a folder or a bucket."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StoredFile:
    """An entry of a listing."""

    path: str
    """Relative to the store's root, parts joined by /."""
    num_bytes: int


class Place(Protocol):
    """The operations of `Store`, which documents them. Errors are OutputError, in words, and FileNotFoundError."""

    def create(self, path: str, data: bytes) -> bool: ...

    def replace(self, path: str, data: bytes) -> None: ...

    def read(self, path: str) -> bytes: ...

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str) -> list[StoredFile]: ...

    def first_file(self) -> str | None: ...

    def delete(self, path: str) -> None: ...

    def sweep_orphans(self, older_than_seconds: float) -> int: ...
