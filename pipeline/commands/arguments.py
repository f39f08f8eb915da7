"""What several commands share: arguments, options, and words for places that cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from labelmill.schemas.errors import OutputError

HELP_OPTIONS = ("-h", "--help")

RunFile = Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.YAML")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set dataset.samples=100.")]
Output = Annotated[str, typer.Argument(help="The dataset's folder.", metavar="OUTPUT")]
Root = Annotated[str, typer.Argument(help="The nightly file, or its root: a folder or bucket.", metavar="ROOT")]


@contextmanager
def writing_to(place: str | Path) -> Iterator[None]:
    """Raises OutputError, which names the place, where the body meets files that cannot be written."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(place) else ""
        raise OutputError(f"{place}: cannot be written{where}: {error.strerror or error}") from error
