"""Cutouts and overlays: each sample's image with its alpha as the fourth channel, or tinted by its mask."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.discs import alpha_of, disc, write_discs
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.dataset.export import export_cutouts
from labelmill.pipeline.pictures.overlay import class_colours, overlay
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return write_discs(tmp_path / "out", samples=10, optional_files=("alpha.png",))


def test_cutouts_are_image_and_alpha_to_the_pixel(dataset: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", dataset, str(tmp_path / "cut"), "--cutouts"], catch_exceptions=False)
    assert done.exit_code == 0 and "10 cutouts" in done.output
    files = sorted((tmp_path / "cut").iterdir())
    assert len(files) == 10
    for file in files:
        pixels_HWC = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        assert pixels_HWC is not None
        image_HWC, mask_HW = disc(int(file.stem))
        assert np.array_equal(pixels_HWC[:, :, 2::-1], image_HWC)
        assert np.array_equal(pixels_HWC[:, :, 3], alpha_of(mask_HW))


def test_overlays_are_images_tinted_by_masks(dataset: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", dataset, str(tmp_path / "seen"), "--overlays"], catch_exceptions=False)
    assert done.exit_code == 0 and "10 overlays" in done.output
    files = sorted((tmp_path / "seen").iterdir())
    assert len(files) == 10
    for file in files:
        image_HWC, mask_HW = disc(int(file.stem))
        expected_HWC = overlay(image_HWC, mask_HW, class_colours(3))
        assert np.array_equal(cv2.imread(str(file), cv2.IMREAD_COLOR_RGB), expected_HWC)
        assert (expected_HWC != image_HWC).any()
    refused = CliRunner().invoke(app, ["export", dataset, str(tmp_path / "both"), "--overlays", "--cutouts"])
    assert refused.exit_code == 2 and "choose what to export" in refused.output


def test_a_split_alone_and_what_is_refused(dataset: str, tmp_path: Path) -> None:
    store = Store.open(dataset)
    counts = [export_cutouts(store, tmp_path / split, split) for split in ("train",)]
    assert 0 < counts[0] <= 10
    with pytest.raises(OutputError, match="is there already"):
        export_cutouts(store, tmp_path / "train", None)
    with pytest.raises(OutputError, match="no sample in split 'test'"):
        export_cutouts(store, tmp_path / "other", "test")
    plain = Store.open(write_discs(tmp_path / "plain", samples=4))
    with pytest.raises(OutputError, match=r"no alpha\.png.*alpha_network"):
        export_cutouts(plain, tmp_path / "other", None)
    assert not (tmp_path / "other").exists()


def test_a_damaged_shard_leaves_nothing(dataset: str, tmp_path: Path) -> None:
    last = sorted((tmp_path / "out" / "shards").glob("*.tar"))[-1]
    content = bytearray(last.read_bytes())
    content[600] ^= 1
    last.write_bytes(bytes(content))
    with pytest.raises(OutputError, match=rf"{last.name}: is not the shard that the index lists"):
        export_cutouts(Store.open(dataset), tmp_path / "cut", None)
    assert not [path for path in tmp_path.iterdir() if "cut" in path.name]
