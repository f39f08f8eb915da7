"""Which bucket a URL names, and a client for it. Credentials and endpoints come from the environment alone."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from labelmill.schemas.errors import ConfigError

BUCKET_SCHEMES = ("s3", "gs", "az")
EXAMPLES = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"

Client = S3Store | GCSStore | AzureStore

# Variables that lead the client elsewhere than to the service's own address.
_ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ENDPOINT = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?|https?://\[[\da-f:.]+\](:\d+)?/?", re.IGNORECASE)
_SETTINGS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the path of a key file",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
# Characters that services, shells and URLs take as they are.
_PART = re.compile(r"[\w .,=+:()!'&$-]+")

# What obstore does about a failure by itself, with one signature and deaf to signals: hence little. `Bucket` goes on.
_MAX_RETRIES = 8
_RETRY_TIMEOUT = timedelta(seconds=10)
_MAX_BACKOFF = timedelta(seconds=2)
_CONNECT_TIMEOUT = timedelta(seconds=10)
# For one whole request: a shard of 200 MB passes at 0.7 MB/s.
_REQUEST_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class BucketAddress:
    """A bucket, or an Azure container, and a folder in it."""

    scheme: str
    """s3, gs or az."""
    bucket: str
    prefix: str
    """Parts joined by /; empty for the whole bucket."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def settings(self) -> str:
        """The variables of the environment that hold this service's credentials, in words."""
        return _SETTINGS[self.scheme]


def parse_bucket_url(url: str) -> BucketAddress:
    """What a URL with :// names. Raises ConfigError, which shows no part of the URL that may be a secret."""
    scheme, _, rest = url.partition("://")
    if scheme not in BUCKET_SCHEMES:
        raise ConfigError(f"{scheme}:// is not supported; use a local folder, {EXAMPLES}")
    if any(mark in rest for mark in "@?#"):
        raise ConfigError(
            f"{scheme}://...: user, password, query and fragment have no place in the URL of a bucket. "
            f"Write {EXAMPLES}; credentials go into the environment: {_SETTINGS[scheme]}"
        )
    if not url.isprintable():
        raise ConfigError(f"{scheme}://...: the URL holds control characters")
    bucket, _, prefix = rest.rstrip("/").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(
            f"{url}: {bucket!r} is not a bucket name: three or more lower-case letters, digits, dots, - and _. "
            f"Write {EXAMPLES}"
        )
    for part in prefix.split("/") if prefix else ():
        if not _PART.fullmatch(part) or part in (".", ".."):
            raise ConfigError(
                f"{url}: {part!r} cannot be a folder in a bucket: letters, digits, spaces and any of .,=+:()!'&$_- "
                f"work, but neither . and .. nor nothing between two /"
            )
    return BucketAddress(scheme, bucket, prefix)


def endpoint_of(scheme: str) -> tuple[str, str] | None:
    """The variable of the environment that names the server to use, and its value; None without one.

    Raises ConfigError when it is no plain URL, without showing it.
    """
    variables = [name for name in _ENDPOINT_VARIABLES[scheme] if name in os.environ]
    for name in variables:
        if not _ENDPOINT.fullmatch(os.environ[name]):
            raise ConfigError(
                f"{name}: is not the address of a server, like https://host:9000 (no user, password or query); "
                f"correct or unset it"
            )
    return (variables[0], os.environ[variables[0]]) if variables else None


def open_client(address: BucketAddress) -> Client:
    """A client for the bucket. Nothing is asked of the service yet.

    Plain http is spoken only where the endpoint is an http:// URL. Raises ConfigError when the settings in the
    environment do not make a client.
    """
    endpoint = endpoint_of(address.scheme)
    kinds: dict[str, type[S3Store] | type[GCSStore] | type[AzureStore]] = {
        "s3": S3Store,
        "gs": GCSStore,
        "az": AzureStore,
    }
    try:
        return kinds[address.scheme](
            address.bucket,
            prefix=address.prefix or None,
            client_options={
                "allow_http": endpoint is not None and endpoint[1].lower().startswith("http://"),
                "connect_timeout": _CONNECT_TIMEOUT,
                "timeout": _REQUEST_TIMEOUT,
            },
            retry_config={
                "max_retries": _MAX_RETRIES,
                "retry_timeout": _RETRY_TIMEOUT,
                "backoff": {"max_backoff": _MAX_BACKOFF},
            },
        )
    except (BaseError, ValueError, OSError):
        # The client's own words may quote what the variables hold.
        raise ConfigError(
            f"{address.url}: the settings in the environment do not fit together; check {address.settings}"
        ) from None
