"""Bytes of a checkpoint from where the user says: bundled, a local path, or a URL through obstore."""

from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from obstore.exceptions import BaseError
from obstore.store import from_url

from schemas.errors import CheckpointError

BUNDLED_PREFIX = "bundled:"
MAX_BYTES = 8 * 2**30
SCHEMES = ("https", "http", "s3", "gs", "az", "file")

_BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "bundled"


def bundled_names() -> list[str]:
    """Names that `bundled:NAME` takes."""
    return sorted(path.stem for path in _BUNDLED_FOLDER.glob("*.safetensors"))


def display_name(ref: str) -> str:
    """A reference fit for logs and records: a URL without user, password and query, which may be secrets."""
    if "://" not in ref:
        return ref
    parts = urlsplit(ref)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_bytes(ref: str) -> bytes:
    """The content behind a reference. Raises CheckpointError, which names it."""
    if ref.startswith(BUNDLED_PREFIX):
        return _read_file(_bundled_path(ref))
    if "://" in ref:
        return _read_url(ref)
    return _read_file(Path(ref).expanduser())


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


def _read_url(url: str) -> bytes:
    name, parts = display_name(url), urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise CheckpointError(f"{name}: cannot read {parts.scheme}://; a path or {', '.join(SCHEMES)} URL works")
    if parts.scheme == "file":
        return _read_file(Path(unquote(parts.path)))
    folder, _, file = parts.path.rpartition("/")
    if not file:
        raise CheckpointError(f"{name}: names a folder; give the URL of the checkpoint file itself")
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
    except FileNotFoundError as error:
        raise CheckpointError(f"{name}: no such file; check the URL") from error
    except (BaseError, OSError, ValueError) as error:
        raise CheckpointError(f"{name}: cannot fetch the checkpoint: {str(error).splitlines()[0]}") from error


def _check_size(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise CheckpointError(
            f"{name}: has {num_bytes:,} bytes; no StyleGAN2 checkpoint passes {MAX_BYTES:,}. Is it the right file?"
        )
