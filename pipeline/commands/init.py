"""`labelmill init`: a run file for a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipeline.commands.arguments import writing_to
from labelmill.schemas.errors import OutputError


def init(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint: path, URL or bundled:NAME.", metavar="CKPT")],
    out: Annotated[Path | None, typer.Option(help="The file to write (default NAME.yaml).", metavar="RUN.YAML")] = None,
) -> None:
    """Write a commented run file for a checkpoint: looks at it and chooses method, shard and batch size."""
    from labelmill.pipeline.commands.first_run_file import first_run_file

    made = first_run_file(checkpoint, out)
    path = out or Path(f"{made.name}.yaml")
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(made.text)
        except FileExistsError:
            raise OutputError(f"{path}: is there already; choose another --out, or remove it") from None
    print(f"{path}: check it with `labelmill validate {path}`, see masks with `labelmill preview {path}`")
