"""`labelmill stats`: a dataset in numbers."""

from typing import Annotated

import typer

from labelmill.pipeline.commands.arguments import Output


def stats(
    output: Output,
    split: Annotated[str | None, typer.Option(help="Only the samples of this split, such as train.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a dataset in numbers: classes with suggested weights for a loss, confidences, and what was dropped."""
    from labelmill.pipeline.report.stats import dataset_statistics, statistics_lines
    from labelmill.pipeline.store.store import Store

    found = dataset_statistics(Store.open(output), split)
    print(found.model_dump_json(indent=2) if as_json else "\n".join(statistics_lines(found, output)))
