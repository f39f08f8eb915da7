"""A sample is its checkpoint and its seed: what two datasets share is found, whichever runs made them."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.discs import write_discs

from labelmill.pipeline.segmentation.reading import Split, open_split, read_samples
from labelmill.pipeline.segmentation.seed_overlap import check_apart
from labelmill.pipeline.segmentation.train import train
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.segmentation import SegmentationTrainingConfig
from labelmill.schemas.yaml_file import validate


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """39 samples, of the seeds from 100 on."""
    return open_split(write_discs(tmp_path_factory.mktemp("learned") / "out"), None)


def _keys(split: Split) -> set[int]:
    return {int(sample.key) for sample in read_samples(split)}


@pytest.mark.parametrize("first_seed", [98, 114, 246])
def test_shared_samples_are_counted(learned: Split, tmp_path: Path, first_seed: int) -> None:
    """Blocks of seeds that meet somewhere else than they begin."""
    held_out = open_split(write_discs(tmp_path / "out", samples=7, first_seed=first_seed), None)
    shared = sorted(_keys(learned) & _keys(held_out))
    assert shared
    message = rf"held_out: {len(shared)} of its 7 samples are .* \(seeds {shared[0]} to {shared[-1]}\)"
    with pytest.raises(ConfigError, match=message):
        check_apart(learned, held_out)


@pytest.mark.parametrize("first_seed", [2_000_000_000, 95, 257])
def test_blocks_that_meet_without_a_common_sample_are_apart(learned: Split, tmp_path: Path, first_seed: int) -> None:
    held_out = open_split(write_discs(tmp_path / "out", samples=3, first_seed=first_seed), None)
    assert not _keys(learned) & _keys(held_out)
    check_apart(learned, held_out)


def test_another_checkpoint_makes_other_images(learned: Split) -> None:
    other = replace(learned, checkpoint_sha256="d" * 64)
    check_apart(learned, other)


def test_a_lost_list_of_candidates_is_named(learned: Split, tmp_path: Path) -> None:
    held_out = open_split(write_discs(tmp_path / "out", samples=3), None)
    (tmp_path / "out" / "shards" / "painted-000000.parquet").unlink()
    with pytest.raises(OutputError, match=r"painted-000000\.parquet: missing .* `labelmill verify --repair`"):
        check_apart(learned, held_out)


def test_a_training_refuses_to_be_scored_on_what_it_learns_unless_told(learned: Split, tmp_path: Path) -> None:
    values: dict[str, object] = {
        "data": {"dataset": learned.url, "split": None},
        "held_out": {"kind": "dataset", "dataset": write_discs(tmp_path / "held", samples=3), "split": None},
        "output": str(tmp_path / "out"),
        "model": {"architecture": "deeplabv3_mobilenet_v3_large"},
        "optimisation": {"batch_size": 2, "steps": 1},
        "workers": 0,
        "device": "cpu",
    }
    advice = r"made with dataset\.first_seed: 2000000000\. .* set allow_shared_seeds: true"
    with pytest.raises(ConfigError, match=advice):
        train(validate(values, "train.yaml", SegmentationTrainingConfig))
    assert not (tmp_path / "out").exists()
    values["allow_shared_seeds"] = True
    assert train(validate(values, "train.yaml", SegmentationTrainingConfig)).final is not None
