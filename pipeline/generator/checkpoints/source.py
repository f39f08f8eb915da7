"""Bytes of a checkpoint from where the user says: bundled, a local path, a bucket, or a web server."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from obstore.exceptions import BaseError
from obstore.store import from_url

from pipeline.bucket import Bucket
from pipeline.bucket_address import BUCKET_SCHEMES, parse_bucket_url
from pipeline.bucket_errors import diagnose
from schemas.errors import CheckpointError, ConfigError, OutputError

BUNDLED_PREFIX = "bundled:"
MAX_BYTES = 8 * 2**30
SCHEMES = ("https", "http", *BUCKET_SCHEMES, "file")

_NO_FILE = "names a folder; give the URL of the checkpoint file itself"
_MISSING = "no such file; check the URL"
_BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "bundled"


def bundled_names() -> list[str]:
    """Names that `bundled:NAME` takes."""
    return sorted(path.stem for path in _BUNDLED_FOLDER.glob("*.safetensors"))


def display_name(ref: str) -> str:
    """A reference fit for logs and records: a URL without user, password and query, which may be secrets."""
    if "://" not in ref:
        return ref
    try:
        parts = urlsplit(ref)
    except ValueError as error:
        raise CheckpointError(f"{ref.partition('://')[0]}://...: is no URL: {error}") from None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def absolute_reference(ref: str) -> str:
    """The same reference for a process that stands in another folder, or belongs to another user."""
    if "://" in ref or ref.startswith(BUNDLED_PREFIX):
        return ref
    return str(Path(ref).expanduser().absolute())


def read_bytes(ref: str) -> bytes:
    """The content behind a reference. Raises CheckpointError, which names it."""
    if ref.startswith(BUNDLED_PREFIX):
        return _read_file(_bundled_path(ref))
    scheme, separator, _ = ref.partition("://")
    if not separator:
        return _read_file(Path(ref).expanduser())
    if scheme not in SCHEMES:
        raise CheckpointError(f"cannot read {scheme}://; a path or {', '.join(SCHEMES)} URL works")
    if scheme == "file":
        return _read_file(Path(unquote(urlsplit(ref).path)))
    return _read_object(ref) if scheme in BUCKET_SCHEMES else _read_web(ref)


def _bundled_path(ref: str) -> Path:
    name = ref.removeprefix(BUNDLED_PREFIX)
    if name not in bundled_names():
        known = ", ".join(BUNDLED_PREFIX + known for known in bundled_names()) or "none in this installation"
        raise CheckpointError(f"no bundled generator {name!r}; there are: {known}")
    return _BUNDLED_FOLDER / f"{name}.safetensors"


def _read_file(path: Path) -> bytes:
    try:
        _check_size(str(path), path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error


def _read_object(url: str) -> bytes:
    try:
        address = parse_bucket_url(url)
        folder, _, file = address.prefix.rpartition("/")
        if not file or url.endswith("/"):
            raise CheckpointError(f"{url}: {_NO_FILE}")
        return Bucket(replace(address, prefix=folder)).read(file, check_size=partial(_check_size, url))
    except FileNotFoundError:
        raise CheckpointError(f"{url}: {_MISSING}") from None
    except (ConfigError, OutputError) as error:
        raise CheckpointError(str(error)) from None


def _read_web(url: str) -> bytes:
    name, parts = display_name(url), urlsplit(url)
    folder, _, file = parts.path.rpartition("/")
    if not file:
        raise CheckpointError(f"{name}: {_NO_FILE}")
    if parts.query:
        raise CheckpointError(f"{name}: URLs with a query (?...) are not supported; fetch the file and give its path")
    try:
        store = from_url(
            urlunsplit((parts.scheme, parts.netloc, folder, "", "")),
            client_options={"allow_http": True} if parts.scheme == "http" else None,
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )
        found = store.get(unquote(file))
        _check_size(name, found.meta["size"])
        return found.bytes().to_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{name}: {_MISSING}") from None
    except (BaseError, OSError) as error:
        # The client's own words quote the URL, with its user and password.
        raise CheckpointError(f"{name}: cannot fetch the checkpoint: {diagnose(error).summary}") from None


def _check_size(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise CheckpointError(
            f"{name}: has {num_bytes:,} bytes; no StyleGAN2 checkpoint passes {MAX_BYTES:,}. Is it the right file?"
        )
