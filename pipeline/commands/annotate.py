"""The `labelmill annotate` commands."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from labelmill.pipeline.commands.arguments import Overrides, RunFile, writing_to
from labelmill.pipeline.process.files import write_atomically
from labelmill.schemas.annotations import AnnotationSet
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.user_path import expand_user
from labelmill.schemas.yaml_file import load_config, validate

annotate = typer.Typer(no_args_is_help=True)


def local_folder(text: str) -> Path:
    """A folder that a set is written to. Raises ConfigError for a bucket."""
    if "://" in text:
        raise ConfigError(f"{text}: a set is annotated in a local folder; copy it to a bucket when it is finished")
    return expand_user(text)


# Where `pick` begins: of random images elsewhere, for a promise needs other ones than those that taught the labeler.
_FIRST_SEED = {False: 3_900_000_000, True: 3_950_000_000}
SetFolder = Annotated[str, typer.Argument(help="The annotation set's folder.", metavar="DIR")]
Classes = Annotated[
    str | None, typer.Option(help="Names of the classes, background first: background,skin,hair.", metavar="A,B")
]


@annotate.command("pick")
def pick(
    run_file: RunFile,
    out: Annotated[str, typer.Option(help="Folder for the set.", metavar="DIR")],
    count: Annotated[int, typer.Option(min=1, help="Number of images (default 10).")] = 10,
    choose: Annotated[
        Literal["coverage", "random", "uncertain"],
        typer.Option(
            help="`coverage`: images that between them show most clusters of the generator's features; `uncertain`: "
            "those that the run's labeler is least confident of; `random`. None is proven better than another."
        ),
    ] = "coverage",
    scale: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="How many times larger to show images (default: to 512 pixels or more)."),
    ] = None,
    classes: Classes = None,
    pool: Annotated[int, typer.Option(min=1, help="Number of images to choose from (default 300).")] = 300,
    first_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="First seed of these, outside of datasets (default 3900000000, with `--choose random` 3950000000: "
            "other images, so that they may tell how good a labeler is that learned from the former).",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write images to annotate: of generator and labeler as the run file has them."""
    folder = local_folder(out)
    config = load_config(run_file, RunConfig, overrides or ())
    from labelmill.pipeline.annotate.pick import pick as run
    from labelmill.pipeline.generator.open import open_sampler
    from labelmill.schemas.annotations import Pick
    from labelmill.workers.preview import labeler_for

    first = _FIRST_SEED[choose == "random"] if first_seed is None else first_seed
    values = {"choose": choose, "count": count, "pool": pool, "first_seed": first}
    picked = validate(values, "annotate pick", Pick)
    names = class_names(classes)
    sampler, checkpoint = open_sampler(config)
    with writing_to(out):
        about = run(
            sampler,
            checkpoint.sha256,
            picked,
            folder,
            scale=scale,
            classes=names,
            open_labeler=lambda: labeler_for(config, sampler, checkpoint.sha256).labeler,
        )
    print(f"{out}: {len(about.images)} images to annotate in {out}/enlarged")


def class_names(text: str | None) -> tuple[str, ...]:
    """Classes as an option gives them. Raises ConfigError where they cannot be a set's."""
    from labelmill.schemas.cluster_mapping import check_class_names, is_class_name

    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    try:
        check_class_names(list(names))
    except ValueError as error:
        raise ConfigError(f"--classes {text}: {error}") from None
    strange = [name for name in names if not is_class_name(name)]
    if strange:
        raise ConfigError(f"--classes {text}: {strange}: a name is a letter, then letters, digits, spaces, - and _")
    return names


@annotate.command("photos")
def photos(
    run_file: RunFile,
    photos: Annotated[Path, typer.Argument(help="Folder of photos, including its subfolders.", metavar="PHOTOS")],
    out: Annotated[str, typer.Option(help="Folder for the set.", metavar="DIR")],
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of PNG masks with the photos' names and sizes: class indices, 255 not labeled."),
    ] = None,
    classes: Classes = None,
    latents: Annotated[
        Path | None,
        typer.Option(help="Output of `labelmill invert`, or a new folder for it (default: DIR with -latents)."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write photos to annotate, or that have masks: through latents of the run file's generator."""
    folder, names = local_folder(out), class_names(classes)
    if masks is not None and not names:
        raise ConfigError(f"--masks {masks}: name their classes: --classes background,skin,hair")
    config = load_config(run_file, RunConfig, overrides or ())
    from labelmill.pipeline.photos.annotate import annotate_photos
    from labelmill.pipeline.photos.segment import open_inversion
    from labelmill.pipeline.process.device import choose_device

    output = latents or folder.with_name(f"{folder.name}-latents")
    inversion = open_inversion(config.generator, output, choose_device(config.execution.device))
    with writing_to(out):
        written = annotate_photos(inversion, photos, folder, names, masks)
    print(f"{out}: {len(written.about.images)} photos, {written.num_masks} of them with masks")


@annotate.command("page")
def page(
    folder: SetFolder,
    run_file: Annotated[
        Path, typer.Option("--run", help="A run file: segments come from its generator.", metavar="RUN.YAML")
    ],
    classes: Classes = None,
    overrides: Overrides = None,
) -> None:
    """Write DIR/page.html, in which people annotate by clicking segments; it works offline, in any browser."""
    from labelmill.pipeline.annotate.page import PAGE_FILE, check_size, write_page
    from labelmill.pipeline.annotations.read import read_description
    from labelmill.pipeline.annotations.write import write_description
    from labelmill.pipeline.generator.open import open_sampler

    path = local_folder(folder)
    there = read_description(path)
    about = set_with_classes(folder, there, class_names(classes))
    check_size(path, about)
    sampler, checkpoint = open_sampler(load_config(run_file, RunConfig, overrides or ()))
    with writing_to(folder):
        write_page(path, about, sampler, checkpoint.sha256)
        if about != there:
            write_description(path, about)
    print(f"{folder}/{PAGE_FILE}: open it in a browser; {len(about.images)} images, {len(about.classes)} classes")


def set_with_classes(folder: str, about: AnnotationSet, names: tuple[str, ...]) -> AnnotationSet:
    """A set that has classes: its own, further ones behind them, or the first. Raises ConfigError."""
    if not names and not about.classes:
        raise ConfigError(f"{folder}: has no classes yet; name them: --classes background,skin,hair")
    if names[: len(about.classes)] != about.classes and names:
        raise ConfigError(
            f"--classes {','.join(names)}: {folder} has {', '.join(about.classes)}, which its masks are numbered by; "
            f"give these first, or start a new set"
        )
    return about.with_classes(names or about.classes, about.rest)


@annotate.command("import")
def import_labels(
    folder: SetFolder,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files, folders or zip archives of LabelMe, COCO, CVAT, Label Studio, PNG masks, or the click page.",
            metavar="FILES",
        ),
    ],
    classes: Classes = None,
    rest: Annotated[
        Literal["ignore", "background"],
        typer.Option(help="What a pixel is that no shape covers: unknown (default), or background."),
    ] = "ignore",
    width: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Width of lines and points in pixels of the image that was drawn on."),
    ] = None,
    renamed: Annotated[
        str | None,
        typer.Option("--map", help="Classes by the files' labels: Hair=hair,logo=ignore.", metavar="OLD=NEW"),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over masks that the set has already.")] = False,
) -> None:
    """Read labels of other tools into a set: all of them, or nothing and a list of what is wrong."""
    from labelmill.pipeline.annotations.import_files import ImportSettings, import_files

    settings = ImportSettings(class_names(classes), rest, width, renamed_labels(renamed), replace)
    with writing_to(folder):
        imported = import_files(local_folder(folder), files, settings)
    for line in imported.lines():
        print(line)


@annotate.command("check")
def check(
    folder: Annotated[str, typer.Argument(help="The annotation set's folder or bucket.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option(help="File for a sheet of all labels (PNG).", metavar="PNG")] = None,
    run_file: Annotated[
        Path | None,
        typer.Option("--run", help="A run file: make the images again with its generator, too.", metavar="RUN.YAML"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Show what a set's labels cover, what is missing, and whether the generator still makes these images."""
    from labelmill.pipeline.annotations.check import check_lines, check_sheet
    from labelmill.pipeline.annotations.read import read_annotations

    annotations = read_annotations(folder)
    for line in check_lines(annotations):
        print(line)
    if run_file is not None:
        from labelmill.pipeline.annotations.regenerate import regenerate
        from labelmill.pipeline.generator.open import open_sampler

        sampler, checkpoint = open_sampler(load_config(run_file, RunConfig, overrides or ()))
        for _ in regenerate(annotations, sampler, (), checkpoint.sha256):
            pass
        print(f"all {len(annotations)} come out the same from {checkpoint.reference}")
    if out is not None:
        with writing_to(out):
            write_atomically(out, check_sheet(annotations))
        print(out)


def renamed_labels(text: str | None) -> dict[str, str]:
    """New names by old ones. Raises ConfigError where it is not written so."""
    renamed: dict[str, str] = {}
    for pair in text.split(",") if text else []:
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not (old and equals and new) or old in renamed:
            raise ConfigError(f"--map {text}: write it as old=new,old2=ignore, each old name once")
        renamed[old] = new
    return renamed
