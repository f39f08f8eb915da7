"""The log of a process, on stderr: lines for people, or with LABELMILL_LOG=json one JSON object per line.

The format depends on how a process's surroundings read its log, not on the run: hence an environment variable, which
run files, fingerprints and drivers on other machines never see.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel

from labelmill.schemas.errors import ConfigError
from labelmill.schemas.secrets import without_secrets

LOG_VARIABLE = "LABELMILL_LOG"
Level = Literal["info", "warning", "error"]

_run: ContextVar[str | None] = ContextVar("run", default=None)


def check_log_variable() -> None:
    """Raises ConfigError for an unknown value of the variable."""
    value = os.environ.get(LOG_VARIABLE, "text")
    if value not in ("text", "json"):
        raise ConfigError(f"{LOG_VARIABLE}: {value!r} in the environment; allowed: `text` (the default) or `json`")


def logs_json() -> bool:
    """Whether lines are JSON objects, for machines."""
    return os.environ.get(LOG_VARIABLE) == "json"


@contextmanager
def log_context(run: str) -> Iterator[None]:
    """Lines within this context hold the run's name, or the name of an outer context: a night's."""
    token = _run.set(_run.get() or run)
    try:
        yield
    finally:
        _run.reset(token)


def log(
    text: str,
    *,
    level: Level = "info",
    shard: str | None = None,
    worker: int | None = None,
    details: BaseModel | None = None,
) -> None:
    """Write a line to the log, without the secrets of addresses. The arguments besides the text are for JSON lines: the
    text already holds them for people."""
    text = without_secrets(text)
    if not logs_json():
        print(text, file=sys.stderr, flush=True)
        return
    about = {"run": _run.get(), "shard": shard, "worker": worker}
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "message": text,
        **{key: value for key, value in about.items() if value is not None},
        **({} if details is None else {type(details).__name__: details.model_dump(mode="json")}),
    }
    print(json.dumps(line), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """`log` of a warning, for who takes a function of a line."""
    log(text, level="warning")
