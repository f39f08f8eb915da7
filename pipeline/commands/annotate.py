"""The `labelmill annotate` commands."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from labelmill.pipeline.commands.arguments import Overrides, RunFile
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.yaml_file import load_config, validate

annotate = typer.Typer(no_args_is_help=True)

SetFolder = Annotated[Path, typer.Argument(help="The annotation set's folder.", metavar="DIR")]
Classes = Annotated[
    str | None, typer.Option(help="Names of the classes, background first: background,skin,hair.", metavar="A,B")
]


@annotate.command("pick")
def pick(
    run_file: RunFile,
    out: Annotated[Path, typer.Option(help="Folder for the set.", metavar="DIR")],
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
        int, typer.Option(min=0, help="First seed of these, outside of datasets (default 3900000000).")
    ] = 3_900_000_000,
    overrides: Overrides = None,
) -> None:
    """Write images to annotate: of generator and labeler as the run file has them."""
    config = load_config(run_file, RunConfig, overrides or ())
    from labelmill.pipeline.annotate.pick import pick as run
    from labelmill.pipeline.generator.open import open_sampler
    from labelmill.schemas.annotations import Pick
    from labelmill.workers.preview import labeler_for

    values = {"choose": choose, "count": count, "pool": pool, "first_seed": first_seed}
    picked = validate(values, "annotate pick", Pick)
    names = class_names(classes)
    sampler, checkpoint = open_sampler(config)
    about = run(
        sampler,
        checkpoint.sha256,
        picked,
        out,
        scale=scale,
        classes=names,
        open_labeler=lambda: labeler_for(config, sampler, checkpoint.sha256).labeler,
    )
    print(f"{out}: {len(about.images)} images to annotate in {out}/enlarged")


def class_names(text: str | None) -> tuple[str, ...]:
    """Classes as an option gives them. Raises ConfigError where they cannot be a set's."""
    from pydantic import TypeAdapter, ValidationError

    from labelmill.schemas.cluster_mapping import ClassName, check_class_names

    if text is None:
        return ()
    names = tuple(name.strip() for name in text.split(","))
    try:
        check_class_names(list(names))
        return TypeAdapter(tuple[ClassName, ...]).validate_python(names)
    except ValidationError:
        raise ConfigError(
            f"--classes {text}: a name begins with a letter and holds letters, digits, spaces, - and _"
        ) from None
    except ValueError as error:
        raise ConfigError(f"--classes {text}: {error}") from None
