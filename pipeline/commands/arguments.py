"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

HELP_OPTIONS = ("-h", "--help")

RunFile = Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.YAML")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set dataset.samples=100.")]
Output = Annotated[str, typer.Argument(help="The dataset's folder.", metavar="OUTPUT")]
Root = Annotated[str, typer.Argument(help="The nightly file, or its root: a folder or bucket.", metavar="ROOT")]
