"""`labelmill annotate check`: shares, what is missing, and the sheet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.small_annotations import write_small_annotations
from helpers.tiny_run import save_tiny_generator
from typer.testing import CliRunner

from labelmill.pipeline.annotations.write import write_mask
from labelmill.pipeline.cli import app
from labelmill.pipeline.pictures.overlay import class_colours
from labelmill.pipeline.pictures.png import decode_picture
from labelmill.schemas.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """Three images, two of them with labels of the first two classes of three."""
    write_small_annotations(tmp_path / "set", tiny_checkpoint, (3, 1, 8))
    mask_HW = np.full((32, 32), 255, np.uint8)
    mask_HW[:16], mask_HW[16, :4] = 0, 1
    write_mask(tmp_path / "set", "0000000003", mask_HW)
    mask_HW[16] = 255
    write_mask(tmp_path / "set", "0000000001", mask_HW)
    return tmp_path / "set"


def _run(*arguments: object) -> list[str]:
    done = CliRunner().invoke(app, ["annotate", "check", *map(str, arguments)], catch_exceptions=False)
    return done.output.splitlines()


def test_shares_and_what_is_missing(folder: Path) -> None:
    assert _run(folder)[:-1] == [
        "0000000003: 50.4% labeled: background 50.0%, dark 0.4%",
        "0000000001: 50.0% labeled: background 50.0%",
        "class background: 1,024 pixels (99.6%) in 2 of 2 images",
        "class dark: 4 pixels (0.4%) in 1 of 2 images; fewer than 8 pixels can hardly be learned",
        "class bright: 0 pixels (0.0%) in 0 of 2 images",
        "classes without pixels: bright",
        "images without labels: 0000000008",
    ]
    assert _run(folder)[-1].startswith("2 of 3 images labeled, set ")


def test_the_sheet_shows_every_class(folder: Path, tmp_path: Path) -> None:
    assert _run(folder, "--out", tmp_path / "sheets/a.png")[-1] == str(tmp_path / "sheets/a.png")
    sheet_HWC = decode_picture((tmp_path / "sheets/a.png").read_bytes(), 3)
    assert sheet_HWC is not None
    for colour in class_colours(3):
        assert (sheet_HWC == colour).all(axis=2).sum() >= 256, "its swatch in the legend"


def test_the_generator_is_asked_on_request(
    folder: Path, tmp_path: Path, write_run_file: Callable[..., Path], tiny_checkpoint: Path
) -> None:
    assert _run(folder, "--run", write_run_file())[-1] == f"all 2 come out the same from {tiny_checkpoint}"
    save_tiny_generator(tmp_path / "other.safetensors", img_channels=1)
    other = write_run_file(generator={"checkpoint": str(tmp_path / "other.safetensors")})
    with pytest.raises(ConfigError, match="the annotations belong to another checkpoint"):
        _run(folder, "--run", other)
