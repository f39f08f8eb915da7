"""Bytes of a checkpoint from where the user says: bundled, a local path, a bucket, or a web server."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from labelmill.pipeline.generator.checkpoints.download import download
from labelmill.pipeline.store.bucket import Bucket
from labelmill.pipeline.store.bucket_address import BUCKET_SCHEMES, parse_bucket_url
from labelmill.schemas.config import refused_secret
from labelmill.schemas.errors import CheckpointError, ConfigError, OutputError
from labelmill.schemas.regular_file import read_regular_file
from labelmill.schemas.secrets import plain_address, secret_in
from labelmill.schemas.user_path import expand_user

BUNDLED_PREFIX = "bundled:"
MAX_BYTES = 8 * 2**30
SCHEMES = ("https", "http", *BUCKET_SCHEMES, "file")

_NO_FILE = "names a folder; give the URL of the checkpoint file itself"
_MISSING = "no such file; check the URL"
# All that a URL is written with; anything else is percent-encoded on the way.
_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;=-._~"
_BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "bundled"


def bundled_names() -> list[str]:
    """Names that `bundled:NAME` takes."""
    return sorted(path.stem for path in _BUNDLED_FOLDER.glob("*.safetensors"))


def located_reference(ref: str, folder: Path) -> str:
    """The same reference for a process that stands in the working directory: relative paths begin in `folder`."""
    if "://" in ref or ref.startswith(BUNDLED_PREFIX):
        return ref
    return str(folder / expand_user(ref))


def read_bytes(ref: str) -> bytes:
    """The content behind a reference. Raises CheckpointError, which names it."""
    if ref.startswith(BUNDLED_PREFIX):
        return _read_file(_bundled_path(ref))
    scheme, separator, _ = ref.partition("://")
    if not separator:
        return _read_file(expand_user(ref))
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
        return read_regular_file(path, MAX_BYTES)
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
    name = plain_address(url)
    if (secret := secret_in(url)) is not None:
        raise CheckpointError(f"{name}: {refused_secret(secret)}")
    try:
        parts = urlsplit(url)
        names_server = bool(parts.hostname) and parts.port != 0
    except ValueError:
        names_server = False
    if not names_server:
        raise CheckpointError(f"{name}: is not a URL: it names no server, or its port is not a number")
    if not parts.path.rpartition("/")[2]:
        raise CheckpointError(f"{name}: {_NO_FILE}")
    return download(quote(url, safe=_URL_CHARACTERS), MAX_BYTES)


def _check_size(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise CheckpointError(
            f"{name}: has {num_bytes:,} bytes; no StyleGAN2 checkpoint passes {MAX_BYTES:,}. Is it the right file?"
        )
