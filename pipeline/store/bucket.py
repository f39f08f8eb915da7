"""A bucket as a place for whole files: one request a file, repeated while there is hope."""

import hashlib
import random
import secrets
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TypeVar

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from labelmill.pipeline.process.interruption import abandonable
from labelmill.pipeline.process.log import log
from labelmill.pipeline.store.backend import StoredFile, Version, VersionedFile
from labelmill.pipeline.store.bucket_address import BucketAddress, open_client
from labelmill.pipeline.store.bucket_errors import advice, diagnose
from labelmill.schemas.errors import OutputError

# A run of hours should outlive an outage of minutes; after these, one that is gone for good should end.
PATIENCE_SECONDS = 600.0
# A service that has never answered is more likely misspelt than down.
FIRST_PATIENCE_SECONDS = 30.0
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.1, 30.0
_CHUNK_BYTES = 1 << 22
# An outage that lasts longer is told.
QUIET_SECONDS = 5.0

# Marks an object with the `create` that wrote it. Letters only: what all services take.
_WRITER = "labelmillwriter"
# What a browser that is led to an object needs to know to show it.
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
}
_jitter = random.SystemRandom()

Result = TypeVar("Result")


class _ConflictError(Exception):
    """Another request for the same object was in progress; neither outcome is known yet."""


class Bucket:
    """Objects under a prefix of a bucket. `Store` documents the operations."""

    def __init__(self, address: BucketAddress) -> None:
        """Raises ConfigError when the environment's settings do not make a client."""
        self._address = address
        self._client = open_client(address)
        self._has_answered = False

    def create(self, path: str, data: bytes) -> bool:
        writer = secrets.token_hex(8)
        attributes = {_WRITER: writer, **_content_type(path)}

        def attempt() -> bool:
            try:
                # One request: parts of an upload that is never finished would stay, unseen, and cost.
                self._client.put(path, data, mode="create", attributes=attributes, use_multipart=False)
            except AlreadyExistsError:
                # Maybe our own: an earlier attempt was stored and only its answer lost.
                return self._writer_of(path) == writer
            return True

        return self._insist("written", path, attempt)

    def _writer_of(self, path: str) -> str | None:
        try:
            return self._client.get(path, options={"head": True}).attributes.get(_WRITER)
        except FileNotFoundError:
            raise _ConflictError from None

    def replace(self, path: str, data: bytes) -> None:
        def attempt() -> None:
            try:
                self._client.put(path, data, attributes=_content_type(path), use_multipart=False)
            except AlreadyExistsError:
                raise _ConflictError from None

        self._insist("written", path, attempt)

    def read(self, path: str, check_size: Callable[[int], None] | None = None) -> bytes:
        """`check_size` gets to see the number of bytes before they are fetched, and may raise."""

        def attempt() -> bytes:
            found = self._client.get(path)
            if check_size is not None:
                check_size(found.meta["size"])
            return found.bytes().to_bytes()

        return self._insist("read", path, attempt)

    def sha256(self, path: str) -> str:
        def attempt() -> str:
            digest = hashlib.sha256()
            for chunk in self._client.get(path).stream(min_chunk_size=_CHUNK_BYTES):
                digest.update(chunk)
            return digest.hexdigest()

        return self._insist("read", path, attempt)

    def read_versioned(self, path: str) -> VersionedFile:
        def attempt() -> VersionedFile:
            found = self._client.get(path)
            # Every service that labelmill speaks to sends tags.
            version = Version(found.meta["e_tag"] or "", found.meta["version"])
            return VersionedFile(found.bytes().to_bytes(), version)

        return self._insist("read", path, attempt)

    def compare_and_swap(self, path: str, data: bytes, version: Version | None) -> bool:
        if version is None:
            return self.create(path, data)
        writer, tag, generation = secrets.token_hex(8), version.tag, version.generation

        def attempt() -> bool:
            try:
                self._client.put(
                    path,
                    data,
                    mode={"e_tag": tag} if generation is None else {"e_tag": tag, "version": generation},
                    attributes={_WRITER: writer, **_content_type(path)},
                    use_multipart=False,
                )
            except PreconditionError:
                try:
                    # Maybe our own, as in `create`.
                    return self._writer_of(path) == writer
                except _ConflictError:
                    return False  # it was deleted
            except AlreadyExistsError:
                raise _ConflictError from None
            return True

        try:
            return self._insist("written", path, attempt)
        except FileNotFoundError:
            return False

    def exists(self, path: str) -> bool:
        try:
            self._insist("read", path, lambda: self._client.head(path))
        except FileNotFoundError:
            return False
        return True

    def folders(self, prefix: str) -> list[str]:
        found = self._insist("listed", prefix, lambda: self._client.list_with_delimiter(prefix or None))
        return sorted(path.rsplit("/", 1)[-1] for path in found["common_prefixes"])

    def list(self, prefix: str) -> list[StoredFile]:
        entries = self._insist("listed", prefix, lambda: self._client.list(prefix=prefix or None).collect())
        found = (StoredFile(entry["path"], entry["size"], entry["last_modified"].timestamp()) for entry in entries)
        files = sorted(found, key=lambda file: file.path)
        folders = {"", prefix.rstrip("/")} | {folder for file in files for folder in _folders_of(file.path)}
        # Consoles make "folders": empty objects whose names end with /, which the client leaves out.
        return [file for file in files if file.num_bytes or file.path not in folders]

    def first_file(self) -> str | None:
        def attempt() -> str | None:
            pages = self._client.list(chunk_size=2)
            return next((entry["path"] for page in pages for entry in page if entry["path"]), None)

        return self._insist("listed", "", attempt)

    def delete(self, path: str) -> None:
        try:
            self._insist("deleted", path, lambda: self._client.delete(path))
        except FileNotFoundError:
            return

    def sweep_orphans(self, older_than_seconds: float) -> int:
        return 0

    def _insist(self, verb: str, path: str, attempt: Callable[[], Result]) -> Result:
        """Try again, freshly signed, while the failure may pass and patience lasts.

        obstore itself repeats requests that were refused for the moment, but neither puts that were cut or timed out,
        as it cannot know that they are safe to repeat, nor listings that broke off. A signal ends the waiting at once.
        """
        place = f"{self._address.url}/{path}" if path else self._address.url
        start, wait, is_told = time.monotonic(), FIRST_WAIT_SECONDS, False
        while True:
            try:
                result = abandonable(attempt)
            except (BaseError, OSError, _ConflictError) as error:
                failure = diagnose(error)
                self._has_answered |= failure.has_answered
                if isinstance(error, FileNotFoundError) and failure.is_missing_file:
                    raise FileNotFoundError(place) from None
                may_pass = failure.may_pass and (self._has_answered or not failure.is_about_credentials)
                patience = PATIENCE_SECONDS if self._has_answered else FIRST_PATIENCE_SECONDS
                if not (may_pass or isinstance(error, _ConflictError)) or time.monotonic() - start > patience:
                    raise OutputError(f"{place}: cannot be {verb}: {advice(failure, self._address)}") from None
                if not is_told and time.monotonic() - start > QUIET_SECONDS:
                    is_told = True
                    log(f"{place}: {failure.summary}; trying again for {patience:.0f} s", level="warning")
            else:
                self._has_answered = True
                return result
            time.sleep(wait * _jitter.uniform(0.5, 1))
            wait = min(2 * wait, MAX_WAIT_SECONDS)


def _content_type(path: str) -> dict[str, str]:
    ending = PurePosixPath(path).suffix
    return {"Content-Type": _CONTENT_TYPES[ending]} if ending in _CONTENT_TYPES else {}


def _folders_of(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
