"""`labelmill evaluate OUTPUT --judge MODEL`: a dataset of discs, and networks that see colours."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.discs import ByColour, write_discs
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.networks.segmenter import Segmenter
from labelmill.pipeline.segmentation.judge import common_classes, compared, rank_correlation
from labelmill.pipeline.segmentation.onnx_export import export_onnx
from labelmill.pipeline.segmentation.reading import open_split, read_samples
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.sample import ImageShape
from labelmill.schemas.segmentation import SegmentationModelCard, SegmentationModelConfig

RED = 0.45
CARD = SegmentationModelCard(
    model=SegmentationModelConfig(),
    classes=("background", "skin", "hair"),
    image_shape=ImageShape(height=16, width=16, channels=3),
    mean=(0, 0, 0),
    std=(1, 1, 1),
    dataset_fingerprint="f" * 64,
    steps=1,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Green, blue and red are background, skin and hair; red is seen less than it is."""
    path = tmp_path_factory.mktemp("judge") / "model.onnx"
    export_onnx(Segmenter(ByColour(), upscale=1, mean=(RED, 0, 0), std=(1, 1, 1)).eval(), CARD, path)
    return path


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_discs(tmp_path_factory.mktemp("discs") / "out", samples=22)


def said_of(image_HWC: np.ndarray) -> np.ndarray:
    seen_HWC = image_HWC.astype(np.float32) / 255 - np.array([RED, 0, 0], np.float32)
    return seen_HWC[:, :, [1, 2, 0]].argmax(-1)


def judged(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["evaluate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_datasets_masks_are_scored_against_the_networks(discs: str, model: Path, tmp_path: Path) -> None:
    scores = json.loads(judged(discs, "--judge", str(model), "--json", "--samples", str(tmp_path / "samples.csv")))
    inter, union, rows = np.zeros(3), np.zeros(3), dict[str, float]()
    for sample in read_samples(open_split(discs, None)):
        said_HW = said_of(sample.image_HWC)
        own = [(k, (sample.mask_HW == k) & (said_HW == k), (sample.mask_HW == k) | (said_HW == k)) for k in range(3)]
        for k, both, either in own:
            inter[k] += both.sum()
            union[k] += either.sum()
        rows[sample.key] = float(np.mean([both.sum() / either.sum() for _, both, either in own if either.any()]))
    assert list(scores["iou"].values()) == pytest.approx((inter / union).tolist())
    assert scores["miou"] == pytest.approx((inter / union).mean()) and 0.5 < scores["miou"] < 1
    assert scores["num_images"] == 22 and scores["not_judged"] == 0
    lines = [line.split(",") for line in (tmp_path / "samples.csv").read_text().splitlines()]
    assert lines[0] == ["key", "miou", "confidence"]
    assert {key: float(miou) for key, miou, _ in lines[1:]} == pytest.approx(rows, abs=1e-6)
    assert [float(miou) for _, miou, _ in lines[1:]] == sorted(round(miou, 6) for miou in rows.values())
    shown = judged(discs, "--judge", str(model))
    assert f"least agreement: {lines[1][0]} {100 * rows[lines[1][0]]:.1f}, " in shown
    assert "22 images" in shown and "22 images" not in judged(discs, "--judge", str(model), "--split", "train")


def test_a_file_says_how_images_go_in(discs: str, model: Path, tmp_path: Path) -> None:
    """Two outputs of one name are one class; of the dataset, all that is no background is the foreground."""
    config = tmp_path / "judge.yaml"
    config.write_text(yaml.safe_dump({"model": str(model), "classes": ["background", "person", "person"]}))
    scores = json.loads(judged(discs, "--judge", str(config), "--json"))
    assert list(scores["iou"]) == ["background", "person"] and scores["not_judged"] == 0
    assert scores["miou"] > json.loads(judged(discs, "--judge", str(model), "--json"))["miou"]
    blind = {"model": str(model), "classes": ["background", "skin", "ignore"]}
    config.write_text(yaml.safe_dump(blind))
    scores = json.loads(judged(discs, "--judge", str(config), "--json"))
    samples = read_samples(open_split(discs, None))
    hair = np.mean([(sample.mask_HW == 2) | (said_of(sample.image_HWC) == 2) for sample in samples])
    assert list(scores["iou"]) == ["background", "skin"]
    assert scores["not_judged"] == pytest.approx(hair)


def test_classes_are_matched_by_name() -> None:
    common = common_classes(("background", "hat", "hair"), ("background", "hair", "nose"))
    assert common.names == ("background", "hair")
    ours, theirs = np.array([[0, 1, 2, 2, 255]], np.uint8), np.array([[0, 0, 1, 2, 0]], np.uint8)
    mask_HW, truth_HW = compared(ours, theirs, common)
    assert truth_HW.tolist() == [[0, 255, 1, 255, 0]] and mask_HW.tolist() == [[0, 255, 1, 1, 255]]
    # A foreground that the other side does not name is all that is no background, of either side.
    merged = common_classes(("background", "foreground"), ("background", "hair", "nose"))
    assert merged.names == ("background", "foreground")
    mask_HW, truth_HW = compared(np.array([[0, 1, 1]], np.uint8), np.array([[0, 2, 255]], np.uint8), merged)
    assert mask_HW.tolist() == [[0, 1, 1]] and truth_HW.tolist() == [[0, 1, 255]]
    assert common_classes(("background", "hair", "nose"), ("background", "person")).names == ("background", "person")
    # One that it does name is that class.
    assert common_classes(("background", "hair"), ("background", "hair", "nose")).of_network.tolist()[:3] == [0, 1, 255]
    with pytest.raises(
        ConfigError, match=r"\(background, hat\) the network knows none; its own are ground, nose, hair"
    ):
        common_classes(("background", "hat"), ("ground", "nose", "hair"))


def test_rank_correlation_and_its_error() -> None:
    first = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert rank_correlation(first, [1, 4, 9, 16, 25]) == pytest.approx((1, 0))
    assert rank_correlation(first, [2, 1, 3, 4, 5]) == pytest.approx((0.9, (1 - 0.81) / 2))
    assert rank_correlation(first, [1] * 5) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "a,b"], "takes none of the options for masks"),
        (["truth"], "give TRUTH or --judge MODEL, one of them"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], words: str, discs: str, model: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", discs, *arguments, "--judge", str(model)])
    assert result.exit_code == 2 and words in " ".join(result.output.replace("│", " ").split())
