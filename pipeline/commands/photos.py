"""The commands for photographs: `labelmill invert` and `labelmill segment`."""

from pathlib import Path
from typing import Annotated

import typer

from labelmill.pipeline.commands.arguments import Overrides, RunFile
from labelmill.schemas.config import RunConfig
from labelmill.schemas.inversion import InversionConfig
from labelmill.schemas.yaml_file import load_config


def invert(
    config_file: Annotated[Path, typer.Argument(help="The inversion file (YAML).", metavar="INVERT.YAML")],
    overrides: Overrides = None,
) -> None:
    """Find the latents of a folder of photos. Rerun to resume."""
    config = load_config(config_file, InversionConfig, overrides or ())
    from labelmill.pipeline.photos.invert import invert_folder

    count = invert_folder(config)
    print(f"{config.output}: latents of {count} photos; sheets show photo, reconstructions and difference")


def segment(
    run_file: RunFile,
    photos: Annotated[Path, typer.Argument(help="Folder of photos, including its subfolders.", metavar="PHOTOS")],
    out: Annotated[Path, typer.Option(help="Folder for the masks (PNG, with the photos' paths and sizes).")],
    latents: Annotated[
        Path | None,
        typer.Option(help="Output of `labelmill invert`, or a new folder for it (default: OUT with -latents)."),
    ] = None,
    reject_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="Set all of a mask to 255 if its quality is lower.")
    ] = None,
    radius: Annotated[
        int | None,
        typer.Option(min=0, help="How far edges may move to the photo's, in the generator's pixels; 0: not at all."),
    ] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="Folder for pictures of photo, reconstructions, difference and mask.")
    ] = None,
    overlays: Annotated[
        Path | None, typer.Option(help="Folder for the photos tinted by their masks (PNG), to look at.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Label photos with a run's labeler through the generator. Fits the labeler and inverts photos where needed."""
    config = load_config(run_file, RunConfig, overrides or ())
    from labelmill.pipeline.generator.open import open_sampler
    from labelmill.pipeline.photos.segment import QUALITY_FILE, PhotoLabeler, open_inversion, segment_folder
    from labelmill.pipeline.photos.snap import radius_for
    from labelmill.workers.prepare import prepare

    sampler, checkpoint = open_sampler(config)
    inversion = open_inversion(config.generator, latents or out.with_name(f"{out.name}-latents"), sampler.device)
    labeler = prepare(config, sampler, checkpoint).labeler
    chosen = radius_for(sampler.generator.spec.image_size) if radius is None else radius
    rows = segment_folder(
        PhotoLabeler(sampler, labeler, inversion, chosen),
        photos,
        out,
        reject_below=reject_below,
        sheets=sheets,
        overlays=overlays,
    )
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(labeler.classes))
    rejected = sum(row.rejected for row in rows)
    print(f"{out}: {len(rows)} masks of {classes}; {rejected} rejected; {QUALITY_FILE} is beside them")
