"""Paths as people write them: ~ is a home folder in every file, as it is in a shell."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from labelmill.schemas.errors import ConfigError


def expand_user(path: str | Path) -> Path:
    """The path with a home folder in place of ~ or ~USER. Raises ConfigError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: no home folder is known for {Path(path).parts[0]}; write it out") from None


UserPath = Annotated[Path, AfterValidator(expand_user)]
UserPattern = Annotated[str, AfterValidator(lambda pattern: pattern if "://" in pattern else str(expand_user(pattern)))]
"""A path with * and ? in it, or a URL."""
