"""The readers against what the reference implementations computed for the same files."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from generator.checkpoints.checkpoint_files import CANARY, CONFORMANCE_FILES, DATA, relative_difference
from torch import Tensor

from labelmill.pipeline.generator.checkpoints import LoadedCheckpoint, open_checkpoint
from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import latents, to_uint8

BAR = 1e-4
# The reference computed these images in the half precision that the file declares: they differ from its own float32
# RGB of the last block by 1.0e-3 of the largest magnitude.
HALF_PRECISION_IMAGES = "ada-32-cond.pkl"
HALF_PRECISION_BAR = 2e-3


@cache
def checkpoint(file: str) -> LoadedCheckpoint:
    return open_checkpoint(str(DATA / file))


@cache
def expected(file: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{Path(file).stem}.expected.npz") as stored:
        return {name.replace("psi0_7", "psi0.7"): stored[name] for name in stored.files}


def mapped(file: str) -> Tensor:
    arrays = expected(file)
    classes_BZ = torch.from_numpy(arrays["c"]) if "c" in arrays else None
    return checkpoint(file).generator.map(torch.from_numpy(arrays["z"]), classes_BZ)


def computed(generator: Generator, ws_BLD: Tensor, name: str) -> Tensor:
    """What the expected array of this name should hold."""
    if name == "ws":
        return ws_BLD
    if name == "ws_psi0.7":
        return generator.truncate(ws_BLD, 0.7)
    if name == "ws_psi0.5_cutoff4":
        return generator.truncate(ws_BLD, 0.5, 4)
    if name == "image_noise_none":
        return generator.synthesize(ws_BLD, "none").images_BCHW
    if name == "image_noise_const":
        return generator.synthesize(ws_BLD).images_BCHW
    if name == "image_psi0.7_noise_const":
        return generator.synthesize(generator.truncate(ws_BLD, 0.7)).images_BCHW
    if name.startswith("image_mix"):
        row = int(name.rpartition("_")[2])
        return generator.synthesize(torch.cat([ws_BLD[:1, :row], ws_BLD[1:2, row:]], dim=1)).images_BCHW
    kind, _, size = name.partition("_b")
    if kind == "features":
        return generator.synthesize(ws_BLD, taps=[f"b{size}.conv1"]).features[f"b{size}.conv1"]
    assert kind == "rgb"
    return generator.synthesize(ws_BLD, resolution=int(size)).images_BCHW


CASES = [(file, name) for file in CONFORMANCE_FILES for name in expected(file) if name not in ("z", "c")]


def test_every_kind_of_array_is_there() -> None:
    kinds = {name.rstrip("0123456789") for _, name in CASES}
    assert {"ws", "ws_psi0.", "image_noise_const", "image_noise_none", "features_b", "rgb_b"} <= kinds
    assert len(CASES) == 19 + 17 + 17 + 5


@pytest.mark.parametrize(("file", "name"), CASES)
def test_agrees_with_the_reference(file: str, name: str) -> None:
    bar = HALF_PRECISION_BAR if file == HALF_PRECISION_IMAGES and name.startswith("image") else BAR
    found = computed(checkpoint(file).generator, mapped(file), name)
    assert relative_difference(found, expected(file)[name]) < bar


@pytest.mark.parametrize("file", CONFORMANCE_FILES)
def test_largest_differences_by_kind(file: str) -> None:
    """What README's table on exactness holds: `-k largest -rP` prints it."""
    kinds = {"w, truncation": ("ws",), "features, RGB": ("features", "rgb"), "images, style mixing": ("image",)}
    for kind, beginnings in kinds.items():
        names = [name for name in expected(file) if name.startswith(beginnings)]
        found = {name: computed(checkpoint(file).generator, mapped(file), name) for name in names}
        differences = [relative_difference(found[name], expected(file)[name]) for name in names]
        print(f"{file}: {kind}: {f'{max(differences):.1e}' if differences else 'not stored'}")
        bar = HALF_PRECISION_BAR if file == HALF_PRECISION_IMAGES and kind.startswith("images") else BAR
        assert max(differences, default=0) < bar


def test_half_precision_images_of_the_reference_are_its_own_departure() -> None:
    """In float32 the last block's RGB is the image; the reference's two arrays differ, ours agrees with the former."""
    arrays = expected(HALF_PRECISION_IMAGES)
    assert relative_difference(arrays["image_noise_const"], arrays["rgb_b32"]) > 10 * BAR
    image = computed(checkpoint(HALF_PRECISION_IMAGES).generator, mapped(HALF_PRECISION_IMAGES), "image_noise_const")
    assert relative_difference(image, arrays["rgb_b32"]) < BAR


@pytest.mark.parametrize("file", CONFORMANCE_FILES)
def test_pixels_are_those_of_the_reference(file: str) -> None:
    """psi 0.7 and constant noise, bytes within 1 of 255."""
    arrays = expected(file)
    found = to_uint8(computed(checkpoint(file).generator, mapped(file), "image_psi0.7_noise_const"))
    wanted = to_uint8(torch.from_numpy(arrays["image_psi0.7_noise_const"]))
    assert int((found.int() - wanted.int()).abs().max()) <= 1


@pytest.mark.parametrize("file", CONFORMANCE_FILES)
@pytest.mark.parametrize("noise", ["const", "none"])
def test_a_cached_trunk_gives_the_full_pass_at_every_crossover(file: str, noise: str) -> None:
    generator, ws_BLD = checkpoint(file).generator, mapped(file)
    donors_BLD = ws_BLD.roll(1, dims=0)
    for row in range(1, generator.spec.num_ws):
        mixed_BLD = torch.cat([ws_BLD[:, :row], donors_BLD[:, row:]], dim=1)
        full = generator.synthesize(mixed_BLD, noise)
        # Rows below the crossover are not looked at again: anything may stand there.
        mixed_BLD[:, :row] = torch.nan
        partial = generator.synthesize(mixed_BLD, noise, trunk=generator.trunk(ws_BLD, row, noise))
        assert relative_difference(partial.images_BCHW, full.images_BCHW) < 1e-6, row


@pytest.mark.parametrize(("file", "size"), [("rectangular.pkl", (3, 32, 16)), ("grayscale.pkl", (1, 32, 32))])
def test_rectangular_and_gray_images_are_those_of_the_reference(file: str, size: tuple[int, int, int]) -> None:
    """Of seeds 0 to 7 at psi 0.7, from the forks of NVIDIA's code that trained such networks."""
    generator, expected_BCHW = checkpoint(file).generator, expected(file)["img"]
    assert (generator.spec.img_channels, *generator.spec.image_size) == size
    ws_BLD = generator.truncate(generator.map(latents(range(8), generator.spec.z_dim)), 0.7)
    images_BCHW = generator.synthesize(ws_BLD).images_BCHW
    assert images_BCHW.shape == (8, *size)
    assert relative_difference(images_BCHW, expected_BCHW) < 1e-5
    difference = to_uint8(images_BCHW).int() - to_uint8(torch.from_numpy(expected_BCHW)).int()
    assert int(difference.abs().max()) <= 1


def test_configuration_follows_from_the_file() -> None:
    specs = {file: checkpoint(file).generator.spec for file in CONFORMANCE_FILES}
    assert [spec.resolution for spec in specs.values()] == [64, 32, 32, 64]
    assert [spec.num_ws for spec in specs.values()] == [10, 8, 8, 10]
    assert [spec.c_dim for spec in specs.values()] == [0, 5, 0, 0]
    assert [spec.mapping_layers for spec in specs.values()] == [8, 2, 4, 4]
    assert [spec.conv_clamp for spec in specs.values()] == [None, 256.0, None, None]
    assert specs["ada-64-uncond.pkl"].channels == ((4, 16), (8, 16), (16, 16), (32, 16), (64, 8))
    assert specs["rosinality-64.pt"].z_dim == specs["rosinality-64.pt"].w_dim == 48


@pytest.mark.parametrize("file", CONFORMANCE_FILES)
def test_embedded_source_is_never_executed(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    open_checkpoint(str(DATA / file), discriminator=True)
    assert not (tmp_path / CANARY).exists()


def test_the_canary_would_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source in the file does touch the canary when somebody executes it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = (DATA / CONFORMANCE_FILES[0]).read_bytes()
    start = content.index(b"import pathlib, tempfile")
    length = content[start - 1] if content[start - 2 : start - 1] == b"\x8c" else None
    source = content[start : start + (length or int.from_bytes(content[start - 4 : start], "little"))]
    with pytest.raises(RuntimeError):
        exec(source.decode())
    assert (tmp_path / CANARY).exists()
