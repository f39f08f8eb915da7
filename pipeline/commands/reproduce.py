"""`labelmill reproduce`: one sample of a dataset, made again."""

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipeline.commands.arguments import Output, writing_to
from labelmill.schemas.errors import VerificationError


def reproduce(
    output: Output,
    key: Annotated[str, typer.Argument(help="The sample's key: its seed, such as 0000000003 or 3.", metavar="KEY")],
    out: Annotated[Path | None, typer.Option(help="Folder for the files of the sample, as they come out now.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Where the generator is now (default: the place that the manifest names).", metavar="CKPT"),
    ] = None,
) -> None:
    """Make one sample again, byte for byte, and hold it against the dataset's.

    It says where machine or libraries are not those that made the sample, as its bytes may differ then. Exit status 4
    if they do.
    """
    from labelmill.pipeline.process.files import write_atomically
    from labelmill.pipeline.store.store import Store
    from labelmill.workers.reproduce import reproduce as make_again

    found = make_again(Store.open(output), key, checkpoint)
    lines = [f"{output}/{found.path}: sample {found.key}, made again"]
    lines += [f"  {file.name}: {file.difference or f'{len(file.content)} bytes, the same'}" for file in found.files]
    lines += [f"  bytes may differ: {doubt}" for doubt in found.doubts]
    if out is not None:
        with writing_to(out):
            for file in found.files:
                if file.content:
                    write_atomically(out / file.name, file.content)
        lines.append(f"  {out}: the files as they came out now")
    if not found.is_same:
        remedy = (
            "its machine and libraries would make it again"
            if found.doubts
            else f"machine and libraries are those that made it, so look for changes with `labelmill verify {output}`"
        )
        raise VerificationError("\n".join([*lines, f"  the bytes differ; {remedy}"]))
    print("\n".join(lines))
