"""What `inspect` says and draws."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from generator.checkpoints.checkpoint_files import (
    DATA,
    genforce_state,
    images,
    nvidia_pickle,
    random_discriminator,
    random_generator,
    rosinality_state,
    torch_file,
)

from labelmill.pipeline.generator.checkpoints import CheckpointError, open_checkpoint, parse_checkpoint
from labelmill.pipeline.generator.inspect import (
    convert,
    describe_checkpoint,
    write_sample_sheet,
    write_style_mixing_sheet,
)
from labelmill.pipeline.generator.sampling import latents, to_uint8

ROOT = Path(__file__).resolve().parents[2]


def read_png(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def test_description() -> None:
    loaded = open_checkpoint(str(DATA / "ada-32-cond.pkl"))
    described = json.loads(json.dumps(describe_checkpoint(loaded).as_json()))
    assert described["format"] == "stylegan2-ada-pytorch pickle"
    assert (described["resolution"], described["num_ws"], described["num_classes"]) == (32, 8, 5)
    assert described["channels"] == {"4": 16, "8": 16, "16": 16, "32": 16}
    assert described["conv_clamp"] == 256.0
    assert described["has_discriminator"] is False
    assert described["sha256"] == loaded.sha256
    assert "Nvidia Source Code License-NC" in described["licence"]
    assert described["provenance"] == {"weights": "G_ema"}
    assert described["num_parameters"] == sum(tensor.numel() for tensor in loaded.generator.parameters())

    text = "\n".join(describe_checkpoint(loaded).lines())
    for fact in ("32 px", "5 classes", "8 rows of w", loaded.sha256, "32 px: 16", "Nvidia Source Code License-NC"):
        assert fact in text


def test_description_of_rectangular_and_gray_images() -> None:
    rectangular, gray = (
        describe_checkpoint(open_checkpoint(str(DATA / f"{name}.pkl"))) for name in ("rectangular", "grayscale")
    )
    assert (rectangular.height, rectangular.width, rectangular.img_channels) == (32, 16, 3)
    assert (gray.height, gray.width, gray.img_channels) == (32, 32, 1)
    assert "StyleGAN2 skip, 16 x 32 px (width x height), unconditional" in "\n".join(rectangular.lines())
    assert "StyleGAN2 skip, 32 px, gray, unconditional" in "\n".join(gray.lines())


def test_what_a_state_dict_leaves_open_is_shown() -> None:
    generator = random_generator(mapping_width=20)
    content = torch_file({"generator": {}, "generator_smooth": genforce_state(generator)})
    text = "\n".join(describe_checkpoint(parse_checkpoint("file.pt", content)).lines())
    for fact in (
        "format  GenForce checkpoint", "weights  generator_smooth", "2 mapping layers of 20 features",
        "assumed  what the file does not hold: no final tanh", "16 px, unconditional",
    ):  # fmt: skip
        assert fact in text
    state = rosinality_state(random_generator())
    content = torch_file({"state_dict": {f"decoder.{k}": v for k, v in state.items()}, "latent_avg": torch.ones(6, 12)})
    text = "\n".join(describe_checkpoint(parse_checkpoint("file.pt", content)).lines())
    assert "weights  state_dict.decoder" in text and "average  the file's latent_avg" in text


def test_sample_sheet_shows_the_seeds(tmp_path: Path) -> None:
    generator = random_generator()
    write_sample_sheet(tmp_path / "sheet.png", generator, psi=0.7, rows=2, columns=3)
    sheet = read_png(tmp_path / "sheet.png")
    ws_BLD = generator.truncate(generator.map(latents(range(6), 12)), 0.7)
    expected = to_uint8(generator.synthesize(ws_BLD).images_BCHW).numpy()
    for seed in range(6):
        cell = cell_of(sheet, row=seed // 3, column=seed % 3)
        # Enlarged from 16 to 64 px by repetition.
        assert np.abs(cell[::4, ::4].astype(int) - expected[seed]).max() <= 1, seed


def cell_of(sheet: np.ndarray, *, row: int, column: int) -> np.ndarray:
    return sheet[4 + row * 68 : 68 + row * 68, 96 + column * 68 : 160 + column * 68]


def test_sheets_of_rectangular_and_gray_images(tmp_path: Path) -> None:
    """16 x 8 px, enlarged so that the longer side has 64; gray as RGB."""
    generator = random_generator(const_size=(4, 2), img_channels=1)
    write_sample_sheet(tmp_path / "sheet.png", generator, psi=0.7, rows=2, columns=2)
    sheet = read_png(tmp_path / "sheet.png")
    assert sheet.shape == (2 * 68 + 4, 96 + 2 * 36 + 4, 3)
    ws_BLD = generator.truncate(generator.map(latents(range(4), 12)), 0.7)
    expected = to_uint8(generator.synthesize(ws_BLD).images_BCHW).numpy()
    for seed in range(4):
        top, left = 4 + seed // 2 * 68, 96 + seed % 2 * 36
        shown = sheet[top : top + 64 : 4, left : left + 32 : 4]
        assert np.abs(shown.astype(int) - expected[seed]).max() <= 1, seed
    write_style_mixing_sheet(tmp_path / "sheet.png", generator, psi=0.7, donors=2)
    assert read_png(tmp_path / "sheet.png").shape == (6 * 68 + 4, 96 + 3 * 36 + 4, 3)


def test_style_mixing_sheet_has_a_line_for_each_crossover(tmp_path: Path) -> None:
    generator = random_generator(c_dim=3)
    write_style_mixing_sheet(tmp_path / "sheet.png", generator, psi=0.7, donors=2)
    sheet = read_png(tmp_path / "sheet.png")
    assert sheet.shape == (6 * 68 + 4, 96 + 3 * 68 + 4, 3)
    ws_BLD = generator.truncate(generator.map(latents(range(3), 12), torch.eye(3)), 0.7)
    for row in range(1, 6):
        mixed_BLD = torch.cat([ws_BLD[:1, :row], ws_BLD[2:3, row:]], dim=1)
        expected = to_uint8(generator.synthesize(mixed_BLD).images_BCHW).numpy()[0]
        assert np.abs(cell_of(sheet, row=row, column=2)[::4, ::4].astype(int) - expected).max() <= 1, row


def test_style_mixing_refuses_impossible_crossovers(tmp_path: Path) -> None:
    for crossover in (0, 6):
        with pytest.raises(CheckpointError, match=f"crossover {crossover}: this generator has rows 1 to 5"):
            write_style_mixing_sheet(tmp_path / "sheet.png", random_generator(), psi=0.7, crossovers=[crossover])


@pytest.mark.parametrize("file", ["ada-32-cond.pkl", "tf-legacy-32.pkl", "rosinality-64.pt"])
def test_conversion_keeps_images_and_says_where_it_came_from(file: str, tmp_path: Path) -> None:
    loaded = open_checkpoint(str(DATA / file))
    convert(loaded, tmp_path / "own.safetensors")
    own = open_checkpoint(str(tmp_path / "own.safetensors"))
    assert own.generator.spec == loaded.generator.spec
    assert torch.equal(images(own.generator), images(loaded.generator))
    assert own.info.provenance["original sha256"] == loaded.sha256
    assert own.info.provenance["original format"] == loaded.info.format
    assert "Nvidia Source Code License-NC" in own.info.provenance["licence"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    loaded = open_checkpoint(str(DATA / "ada-32-cond.pkl"))
    with pytest.raises(CheckpointError, match=r"must end in \.safetensors"):
        convert(loaded, tmp_path / "own.pkl")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        convert(loaded, tmp_path / "file" / "own.safetensors")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_sample_sheet(tmp_path / "file" / "sheet.png", random_generator(), psi=1.0)


def inspected(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "labelmill.pipeline.cli", "inspect", *arguments]
    # Pixels depend on it in their last bits.
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)


def test_the_command_describes_draws_and_converts(tmp_path: Path) -> None:
    """A discriminator that labelmill cannot build is no obstacle: nothing here needs one."""
    generator, discriminator = random_generator(), random_discriminator()
    # As those of architecture orig and skip, which have no shortcut past a block.
    for block in [block for block in discriminator.children() if hasattr(block, "skip")]:
        del block.skip
    file, own = tmp_path / "file.pkl", tmp_path / "own.safetensors"
    file.write_bytes(nvidia_pickle(generator, discriminator=discriminator))
    with pytest.raises(CheckpointError, match=r"lacks b16\.skip\.weight"):
        open_checkpoint(str(file), discriminator=True)
    done = inspected(str(file), "--json", "--convert", str(own), "--sheets", str(tmp_path), "--truncation-psi", "0.5")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert described == json.loads(json.dumps(describe_checkpoint(open_checkpoint(str(file))).as_json()))
    assert described["has_discriminator"] is True
    assert torch.equal(images(open_checkpoint(str(own)).generator), images(generator))
    write_sample_sheet(tmp_path / "expected.png", generator, psi=0.5)
    assert (tmp_path / "samples.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    assert read_png(tmp_path / "style-mixing.png").shape == (6 * 68 + 4, 96 + 7 * 68 + 4, 3)


def test_the_command_speaks_to_people(tmp_path: Path) -> None:
    file = str(DATA / "ada-32-cond.pkl")
    done = inspected(file)
    assert (done.returncode, done.stdout) == (0, "\n".join(describe_checkpoint(open_checkpoint(file)).lines()) + "\n")
    refused = inspected(file, "--convert", str(tmp_path / "own.pkl"))
    assert refused.returncode == 2 and "must end in .safetensors" in refused.stderr
