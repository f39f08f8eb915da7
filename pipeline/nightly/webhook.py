"""Telling somebody: one POST of JSON to a URL from the environment, which is a secret."""

import http.client
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from labelmill.schemas.errors import ConfigError
from labelmill.schemas.nightly import WebhookConfig


class Notice(BaseModel):
    """The JSON that is posted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    """All of it in words: what chats show."""
    root: str
    night: str
    """The date, ISO 8601."""
    snapshot: str | None
    """Tonight's, where it is known already."""
    live: str | None
    """What stays live."""
    exit_status: int
    failed_gates: dict[str, float | None]
    """Values by name; empty where no gate was the reason."""


class Webhook:
    """Somewhere to post to, or nowhere."""

    def __init__(self, config: WebhookConfig | None) -> None:
        """Raises ConfigError when the variable is not set, or holds no web address: a night should not find out."""
        self._config = config
        self._url = None if config is None else _url_in(config.url_variable)

    def post(self, notice: Notice) -> str | None:
        """Post once. Returns what went wrong, in words that hold nothing of the URL; None if nothing did."""
        if self._config is None or self._url is None:
            return None
        content, headers = notice.model_dump_json().encode(), {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self._url, content, headers, method="POST")
            with _opener().open(request, timeout=self._config.timeout_s) as answer:
                answer.read(1)
        except urllib.error.HTTPError as error:
            return f"the webhook of {self._config.url_variable} answered {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:  # what they say may quote the URL
            kind = type(getattr(error, "reason", error)).__name__
            return f"the webhook of {self._config.url_variable} cannot be reached ({kind})"
        return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would arrive there as a GET, without what it has to say."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


def _url_in(variable: str) -> str:
    url = os.environ.get(variable, "").strip()
    if not url:
        raise ConfigError(f"webhook.url_variable: {variable} is not set in the environment; set it to the URL")
    if not _is_web_address(url):
        raise ConfigError(f"webhook.url_variable: {variable} does not hold an http:// or https:// URL")
    return url


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and has_host and url.isprintable() and " " not in url
