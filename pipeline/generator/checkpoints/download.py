"""Fetching a checkpoint from a web server, over lines of any speed: as long as bytes keep coming, it goes on."""

import hashlib
import http.client
import io
import re
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO, Any
from urllib.parse import urlsplit

from labelmill.pipeline.process.log import log
from labelmill.schemas.errors import CheckpointError
from labelmill.schemas.secrets import without_secrets

# Silence, or less than this many bytes in this time, ends a connection, and another one is tried.
STALL_SECONDS = 30.0
LEAST_BYTES_PER_STALL = 64 * 2**10
# Connections in a row that bring nothing new: to a server that has answered before, and to one that never has.
MOST_TRIES, MOST_FIRST_TRIES = 7, 3
FIRST_WAIT_SECONDS = 0.5
LINE_SECONDS = 10.0
_CHUNK_BYTES = 256 * 2**10
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# Answers that may be others later.
_PASSING = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


def download(url: str, most_bytes: int) -> bytes:
    """The content behind an http:// or https:// URL of `most_bytes` at most.

    A connection that breaks or stalls is followed by another one, which asks for the rest alone. Raises
    CheckpointError, which shows neither user nor password nor query.
    """
    return _Download(url, most_bytes).run()


class _BrokenError(Exception):
    """A connection ended early. The words say how."""


@dataclass(frozen=True)
class _Answer:
    """What a server says before the content."""

    start: int
    """The first byte that it sends."""
    total: int | None
    """Bytes of the whole file, None where the server does not say."""
    version: str | None
    """Tells one content of the file from another, where the server says."""


class _Download:
    def __init__(self, url: str, most_bytes: int) -> None:
        self._url, self._name, self._most = url, without_secrets(url), most_bytes
        self._content = io.BytesIO()
        self._version: str | None = None
        self._total: int | None = None
        self._furthest = 0
        self._has_answered = False
        self._start = self._last_line = time.monotonic()

    def run(self) -> bytes:
        tries = 0
        while True:
            before = self._furthest
            try:
                self._attempt()
                break
            except (_BrokenError, OSError, http.client.HTTPException) as error:
                words = _words(error)
            tries = 1 if self._furthest > before else tries + 1
            if tries >= (MOST_TRIES if self._has_answered else MOST_FIRST_TRIES):
                raise CheckpointError(f"{self._name}: cannot fetch the checkpoint: {words}, {tries} times in a row")
            wait = FIRST_WAIT_SECONDS * 2 ** (tries - 1)
            if self._has_answered:
                log(f"{self._name}: {words} after {_mb(self._furthest)}; trying again in {wait:g} s", level="warning")
            time.sleep(wait)
        content = self._content.getvalue()
        if self._last_line > self._start:
            seconds, digest = time.monotonic() - self._start, hashlib.sha256(content).hexdigest()
            log(f"{self._name}: {_mb(len(content))} in {seconds:.0f} s, sha256 {digest}")
        return content

    def _attempt(self) -> None:
        """One connection, for what is missing. Raises CheckpointError where another one would be no better."""
        try:
            with _opener().open(self._request(), timeout=STALL_SECONDS) as response:
                self._has_answered = True
                self._begin(_read_head(response))
                self._receive(response)
        except urllib.error.HTTPError as error:
            self._has_answered = True
            error.close()
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and self._content.tell():
                self._content = io.BytesIO()
                raise _BrokenError("the server has less than it had before") from None
            if error.code in _PASSING:
                raise
            if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise CheckpointError(f"{self._name}: no such file; check the URL") from None
            raise CheckpointError(f"{self._name}: cannot fetch the checkpoint: {_refusal(error)}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise CheckpointError(
                    f"{self._name}: cannot fetch the checkpoint: the server's certificate is not trusted: "
                    f"{error.reason.verify_message}. Install the authority's certificate, or name it in SSL_CERT_FILE"
                ) from None
            raise

    def _request(self) -> urllib.request.Request:
        request = urllib.request.Request(self._url, headers={"User-Agent": "labelmill", "Accept-Encoding": "identity"})
        if self._content.tell():
            request.add_header("Range", f"bytes={self._content.tell()}-")
            if self._version is not None:
                request.add_header("If-Range", self._version)
        return request

    def _begin(self, answer: _Answer) -> None:
        """Keep what was fetched before where the answer continues it, else start anew."""
        if answer.total is not None and answer.total > self._most:
            self._refuse_size(answer.total)
        continues = answer.start == self._content.tell() and answer.total == self._total
        if answer.start and not (continues and answer.version == self._version):
            self._content = io.BytesIO()
            raise _BrokenError("the file changed meanwhile")
        if not answer.start:
            self._content = io.BytesIO()
        self._total, self._version = answer.total, answer.version

    def _receive(self, response: IO[bytes]) -> None:
        check, received = time.monotonic() + STALL_SECONDS, 0
        while chunk := response.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]
            self._content.write(chunk)
            received += len(chunk)
            if self._content.tell() > self._most:
                self._refuse_size(self._content.tell())
            self._furthest = max(self._furthest, self._content.tell())
            now = time.monotonic()
            if now > check:
                if received < LEAST_BYTES_PER_STALL:
                    raise _BrokenError(f"only {received:,} bytes came in {STALL_SECONDS:g} s")
                check, received = now + STALL_SECONDS, 0
            if now - self._last_line > LINE_SECONDS:
                self._last_line = now
                rate = self._content.tell() / 1e6 / (now - self._start)
                of = "" if self._total is None else f" of {_mb(self._total)}"
                log(f"fetching {self._name}: {_mb(self._content.tell())}{of}, {rate:.1f} MB/s")
        if self._total is not None and self._content.tell() != self._total:
            raise _BrokenError("the connection ended early")

    def _refuse_size(self, num_bytes: int) -> None:
        raise CheckpointError(
            f"{self._name}: has {num_bytes:,} bytes or more; no StyleGAN2 checkpoint passes {self._most:,}. Is it the "
            f"right file?"
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Other addresses of the web are followed, but not from https to what anybody may read and change."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme != "https"):
            raise CheckpointError(
                f"{without_secrets(req.full_url)}: cannot fetch the checkpoint: the server sends us on to "
                f"{without_secrets(newurl)}, which is not safe; give the URL of the file itself"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def _read_head(response: Any) -> _Answer:
    headers = response.headers
    version = headers.get("ETag") or headers.get("Last-Modified")
    # A weak tag does not promise equal bytes, so no range may be asked for by it.
    version = None if version is not None and version.startswith("W/") else version
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if found is None:
            raise _BrokenError("the server sent a part without saying which")
        return _Answer(int(found[1]), None if found[2] == "*" else int(found[2]), version)
    length = headers.get("Content-Length", "")
    return _Answer(0, int(length) if length.isdigit() else None, version)


def _refusal(error: urllib.error.HTTPError) -> str:
    words = f"the server answered {error.code}"
    if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"{words}: it wants a login. Fetch the file and give its path, or put it into a bucket"
    return f"{words}, after too many redirects" if 300 <= error.code < 400 else words


def _words(error: Exception) -> str:
    """How a connection ended; what the libraries say may quote the address."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, _BrokenError):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code}"
    if isinstance(reason, TimeoutError):
        return f"nothing came for {STALL_SECONDS:g} s"
    if isinstance(reason, OSError):
        return reason.strerror or type(reason).__name__
    return "the connection broke"


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
