"""What a process says while it works, on stderr: lines for people, or with LABELMILL_LOG=json an object a line.

How its log is read is the business of a process's surroundings, not of a run: hence an environment variable, which
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
    """Raises ConfigError for a value that means nothing."""
    value = os.environ.get(LOG_VARIABLE, "text")
    if value not in ("text", "json"):
        raise ConfigError(f"{LOG_VARIABLE}: {value!r} in the environment; allowed: `text` (the default) or `json`")


def speaks_json() -> bool:
    """Whether lines are for machines."""
    return os.environ.get(LOG_VARIABLE) == "json"


@contextmanager
def speaking_of(run: str) -> Iterator[None]:
    """Lines within it carry the run's name, unless a wider one is named already: a night's."""
    token = _run.set(_run.get() or run)
    try:
        yield
    finally:
        _run.reset(token)


def say(
    text: str,
    *,
    level: Level = "info",
    shard: str | None = None,
    worker: int | None = None,
    details: BaseModel | None = None,
) -> None:
    """Tell whoever watches, without the secrets of addresses. What stands beside the text is for machines: it is in it
    already, for people."""
    text = without_secrets(text)
    if not speaks_json():
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
