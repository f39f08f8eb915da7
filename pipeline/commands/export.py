"""`labelmill export`: a dataset's samples as files for other programs."""

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipeline.commands.arguments import Output, writing_to


def export(
    output: Output,
    out: Annotated[Path, typer.Argument(help="The new folder to write into.", metavar="OUT")],
    cutouts: Annotated[
        bool, typer.Option("--cutouts", help="KEY.png for each sample: RGB, and alpha.png as the alpha channel.")
    ] = False,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="KEY.png for each sample: the image tinted by its mask, to look at.")
    ] = False,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="coco: images/ and annotations.json with an annotation per instance, or per class. voc: Pascal VOC's "
            "folders, with palette masks.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the samples of this split, such as train.")] = None,
) -> None:
    """Write a dataset's samples as files for other programs."""
    from labelmill.pipeline.dataset.export import export_cutouts, export_overlays
    from labelmill.pipeline.dataset.export_coco import export_coco
    from labelmill.pipeline.dataset.export_voc import export_voc
    from labelmill.pipeline.store.store import Store

    if file_format not in (None, "coco", "voc"):
        raise typer.BadParameter(f"--format {file_format}: there are coco and voc")
    if cutouts + overlays + (file_format is not None) != 1:
        raise typer.BadParameter("choose what to export: --cutouts, --overlays, --format coco or --format voc")
    store = Store.open(output)
    with writing_to(out):
        if file_format == "coco":
            counts = export_coco(store, out, split)
            said = f"{counts.images} images, {counts.annotations} annotations"
        elif file_format == "voc":
            said = f"{export_voc(store, out, split)} images with masks"
        elif cutouts:
            said = f"{export_cutouts(store, out, split)} cutouts"
        else:
            said = f"{export_overlays(store, out, split)} overlays"
    print(f"{out}: {said}")
