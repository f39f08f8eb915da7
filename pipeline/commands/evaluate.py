"""`labelmill evaluate`: masks against true masks, or against those of a network."""

from pathlib import Path
from typing import Annotated

import typer

from labelmill.schemas.errors import OutputError


def evaluate(
    pred: Annotated[
        str, typer.Argument(help="Predicted masks: a folder of PNG files, a .tar or a dataset.", metavar="PRED")
    ],
    truth: Annotated[
        str | None, typer.Argument(help="True masks, in the same forms; matched by name.", metavar="TRUTH")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with exact values.")] = False,
    classes: Annotated[
        str | None, typer.Option(help="Names of the values 0, 1, ... (sky,road,car), or the number of classes.")
    ] = None,
    positive: Annotated[
        int | None, typer.Option(min=1, max=255, help="Masks hold 0 and this value, which is class 1.")
    ] = None,
    match: Annotated[
        bool, typer.Option("--match", help="Predictions are unnamed clusters: match one cluster to each class first.")
    ] = False,
    match_many: Annotated[
        bool,
        typer.Option(
            "--match-many", help="Predictions are unnamed clusters: match each cluster to the class it overlaps most."
        ),
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Instead of TRUTH: a network that labels the images of the dataset PRED. An ONNX file, the "
            "model.safetensors of `labelmill train`, or a YAML file that says how images go into it.",
            metavar="MODEL",
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --judge: only the samples of this split, such as val.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="With --judge: file for each sample's agreement (CSV), the least first.", metavar="CSV"),
    ] = None,
) -> None:
    """Score masks against true masks: IoU, F1, trimap IoU and more, from one confusion matrix.

    A pixel whose truth is 255 is ignored; a prediction of 255 elsewhere is wrong. A class that occurs in neither has
    no score and is left out of means. F1, precision, recall and accuracy are means over classes.

    With --judge the masks of a network that you trust are the truth, matched to the dataset's classes by name: how far
    both agree, no more.
    """
    if (truth is None) == (judge is None):
        raise typer.BadParameter("give TRUTH or --judge MODEL, one of them")
    if judge is not None:
        if classes or positive or match or match_many:
            raise typer.BadParameter("--judge matches classes by name; it takes none of the options for masks")
        _judge(pred, split, judge, as_json, samples)
        return
    if split or samples:
        raise typer.BadParameter("--split and --samples go with --judge")
    from labelmill.pipeline.segmentation.evaluate import as_lines, given_classes
    from labelmill.pipeline.segmentation.evaluate import evaluate as score
    from labelmill.pipeline.segmentation.mask_source import open_masks
    from labelmill.pipeline.segmentation.matching import Matching

    if match and match_many:
        raise typer.BadParameter("give --match or --match-many, not both")
    assert truth is not None
    scores = score(
        open_masks(pred),
        open_masks(truth),
        classes=None if classes is None else given_classes(classes),
        positive=positive,
        matching=Matching.ONE_TO_ONE if match else Matching.MANY_TO_ONE if match_many else None,
    )
    print(scores.model_dump_json(indent=2) if as_json else "\n".join(as_lines(scores)))


def _judge(output: str, split: str | None, model: str, as_json: bool, samples: Path | None) -> None:
    from labelmill.pipeline.networks.trained import open_network
    from labelmill.pipeline.process.device import choose_device
    from labelmill.pipeline.process.files import write_atomically
    from labelmill.pipeline.segmentation.evaluate import as_lines
    from labelmill.pipeline.segmentation.judge import judge, judgement_lines, samples_csv
    from labelmill.pipeline.segmentation.reading import open_split
    from labelmill.schemas.network import NetworkConfig
    from labelmill.schemas.yaml_file import load_config

    is_config = model.lower().endswith((".yaml", ".yml"))
    config = load_config(model, NetworkConfig) if is_config else NetworkConfig(model=model)
    network, sha256 = open_network(config, choose_device())
    judgement = judge(open_split(output, split), network, sha256)
    if samples is not None:
        try:
            write_atomically(samples, samples_csv(judgement.samples))
        except OSError as error:
            raise OutputError(f"--samples {samples}: cannot be written: {error.strerror or error}") from error
    scores = judgement.scores
    print(scores.model_dump_json(indent=2) if as_json else "\n".join(as_lines(scores) + judgement_lines(judgement)))
