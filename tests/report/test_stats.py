"""`labelmill stats`: counts against the pixels of every mask."""

import json
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from helpers.small_dataset import CLASSES, DROP_REASON, dropped, write_dataset
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.report.stats import class_weights, dataset_statistics
from labelmill.pipeline.segmentation.reading import open_split, read_samples
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.statistics import DatasetStatistics


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted") / "out"
    write_dataset(folder, samples=23)
    return folder


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_classes_are_those_of_the_masks(painted: Path, split: str | None) -> None:
    found = dataset_statistics(Store.open(str(painted)), split)
    samples = list(read_samples(open_split(str(painted), split)))
    masks_NHW = np.stack([sample.mask_HW for sample in samples])
    assert found.samples == len(samples) and [entry.name for entry in found.classes] == list(CLASSES)
    frequencies = []
    for value, entry in enumerate(found.classes):
        holding = (masks_NHW == value).any(axis=(1, 2))
        assert entry.share == pytest.approx((masks_NHW == value).mean()) and entry.images == holding.sum()
        frequencies.append((masks_NHW[holding] == value).mean())
    weights = [median(frequencies) / frequency for frequency in frequencies]
    assert [entry.weight for entry in found.classes] == pytest.approx(weights, abs=1e-4)
    assert found.ignore_share == pytest.approx((masks_NHW == IGNORE).mean()) and found.ignore_images == len(samples)


def test_confidences_and_reasons_are_those_of_the_candidates(painted: Path) -> None:
    found = dataset_statistics(Store.open(str(painted)), None)
    seeds = [int(sample.key) for sample in read_samples(open_split(str(painted), None))]
    hundredths = [25 + 10 * (seed % 7) for seed in seeds]
    expected = [sum(low <= value < low + 5 for value in hundredths) for low in range(0, 100, 5)]
    assert found.confidence_kept == expected and sum(found.confidence_kept) == found.samples
    lost = found.candidates - found.samples
    assert found.dropped_by_reason == {DROP_REASON: lost} and sum(found.confidence_dropped) == lost > 0
    assert not any(dropped(seed) for seed in seeds)
    assert found.confidence_bounds[0] == 0 and found.confidence_bounds[-1] == 1


def test_a_class_that_does_not_occur_weighs_nothing() -> None:
    assert class_weights([100, 0, 50, 10], [200, 0, 200, 100]) == [0.5, 0.0, 1.0, 2.5]


def test_people_and_programs_read_it(painted: Path) -> None:
    text = CliRunner().invoke(app, ["stats", str(painted)], catch_exceptions=False).stdout
    assert f"{painted}: 23 samples of " in text and "255  ignore" in text and f"dropped: {DROP_REASON} " in text
    printed = (
        CliRunner().invoke(app, ["stats", str(painted), "--split", "val", "--json"], catch_exceptions=False).stdout
    )
    assert DatasetStatistics.model_validate(json.loads(printed)) == dataset_statistics(Store.open(str(painted)), "val")


def test_what_cannot_be_counted_is_named(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path)
    with pytest.raises(OutputError, match=r"no sample in split 'test'; it has train \d+, val \d+"):
        dataset_statistics(store, "test")
    (tmp_path / "shards/painted-000001.parquet").unlink()
    with pytest.raises(OutputError, match=r"painted-000001\.parquet: missing or damaged"):
        dataset_statistics(store, None)
