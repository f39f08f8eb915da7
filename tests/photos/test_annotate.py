"""Inverted photos as annotated images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.small_annotations import write_small_annotations
from helpers.tiny_run import save_tiny_generator, tiny_run
from typer.testing import CliRunner

from labelmill.pipeline.annotations.read import read_annotations, read_whole_set
from labelmill.pipeline.annotations.regenerate import regenerate
from labelmill.pipeline.annotations.write import write_mask
from labelmill.pipeline.cli import app
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.photos.annotate import PhotoSet, annotate_photos, mask_in_frame
from labelmill.pipeline.photos.frame import Frame
from labelmill.pipeline.photos.invert import Inversion
from labelmill.pipeline.photos.latents_file import read_latents
from labelmill.pipeline.promise.calibrate import check_promise
from labelmill.schemas.annotations import FIRST_PHOTO
from labelmill.schemas.config import GeneratorConfig, RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.inversion import InversionSettings, StepsConfig
from labelmill.schemas.labelers.few_shot import FewShotConfig
from labelmill.schemas.yaml_file import validate

CLASSES = ("background", "object")
SETTINGS = InversionSettings(
    steps=StepsConfig(w=2, w_plus=2), encoder=None, batch_size=4, precision="float32", threads=1
)
KEYS = tuple(f"{FIRST_PHOTO + number:010d}" for number in range(3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, two with masks: of one the left half is object, of the other all but a border of nothing known."""
    save_tiny_generator(tmp_path / "tiny.safetensors")
    for number, (name, size) in enumerate([("a", (32, 32)), ("b", (64, 128)), ("more/c", (70, 40))]):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        small_HWC = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), cv2.resize(small_HWC, size[::-1]))
    (tmp_path / "masks" / "more").mkdir(parents=True)
    left_HW, middle_HW = np.zeros((32, 32), np.uint8), np.full((70, 40), 255, np.uint8)
    left_HW[:, :16], middle_HW[10:60, 5:35] = 1, 0
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), left_HW)
    cv2.imwrite(str(tmp_path / "masks" / "more" / "c.png"), middle_HW)
    return tmp_path


def _inversion(folder: Path) -> Inversion:
    (folder / "latents").mkdir(exist_ok=True)
    config = GeneratorConfig(checkpoint=str(folder / "tiny.safetensors"))
    return Inversion(config, SETTINGS, folder / "latents", "cpu")


def _write(folder: Path, masks: Path | None = None) -> PhotoSet:
    return annotate_photos(_inversion(folder), folder / "photos", folder / "set", CLASSES, masks)


def test_photos_are_annotations_like_any(folder: Path) -> None:
    written = _write(folder, folder / "masks")
    assert written.about.keys == KEYS and written.num_masks == 2
    annotations, inversion = read_annotations(folder / "set"), _inversion(folder)
    assert annotations.keys == (KEYS[0], KEYS[2])
    assert np.array_equal(annotations.images_NHWC[0], cv2.imread(str(folder / "photos/a.png"))[:, :, ::-1])
    assert (annotations.masks_NHW[0][:, :16] == 1).all() and (annotations.masks_NHW[0][:, 16:] == 0).all()
    # What a labeler sees is what the generator makes of the photo's latents.
    layer = inversion.sampler.generator.spec.conv_names[-1]
    batches = list(regenerate(annotations, inversion.sampler, (layer,), inversion.claim.checkpoint_sha256))
    found = read_latents(inversion.output, "more/c", inversion.shape)
    assert found is not None
    alone = inversion.sampler.of_ws(found[1]["w_plus"][None], (layer,))
    assert torch.equal(batches[0].features[layer][1:], alone.features[layer])
    # Written again, nothing changes; the same without masks keeps those that are there.
    before = {path: path.read_bytes() for path in (folder / "set").rglob("*.*")}
    _write(folder, folder / "masks")
    _write(folder)
    assert {path: path.read_bytes() for path in (folder / "set").rglob("*.*")} == before


def test_a_labeler_learns_from_photos_and_a_promise_does_not(folder: Path) -> None:
    _write(folder, folder / "masks")
    inversion = _inversion(folder)
    config = FewShotConfig.model_validate(
        {"method": "few_shot", "annotations": str(folder / "set"), "foreground": "learned", "normalisation": "none"}
    )
    fitted = fit_to_bytes(config, inversion.sampler, inversion.claim.checkpoint_sha256)
    labeler = open_fitted(config, inversion.sampler, fitted, inversion.claim.checkpoint_sha256).labeler
    annotations = read_annotations(folder / "set")
    (batch,) = regenerate(annotations, inversion.sampler, labeler.layers, None)
    mask_HW = labeler.label(batch).masks_BHW[0].numpy()
    assert labeler.classes == CLASSES and (mask_HW == annotations.masks_NHW[0]).mean() > 0.75
    promise = {"quality": {"promise": {"miou": 0.5, "risk": 0.5, "annotations": str(folder / "set")}}}
    run = validate({**tiny_run(folder / "tiny.safetensors", folder / "run"), **promise}, "test", RunConfig)
    with pytest.raises(ConfigError, match="holds photos; a promise is about generated images"):
        check_promise(run, inversion.claim.checkpoint_sha256)


def test_another_reconstruction_is_refused(folder: Path) -> None:
    _write(folder, folder / "masks")
    annotations, sampler = read_annotations(folder / "set"), _inversion(folder).sampler
    annotations.photos[KEYS[0]].made_HWC[3, 3] ^= 64
    with pytest.raises(ConfigError, match=rf"1 annotated images come out differently here.*\n  {KEYS[0]}: by up to"):
        list(regenerate(annotations, sampler, (), None))
    (folder / "set" / "latents" / f"{KEYS[2]}.safetensors").write_bytes(b"no tensors")
    (folder / "set" / "made" / f"{KEYS[0]}.png").unlink()
    with pytest.raises(ConfigError, match=rf"made/{KEYS[0]}.png: is missing\n.*{KEYS[2]}.safetensors: is"):
        read_whole_set(folder / "set", annotations.about)


def test_masks_that_cannot_be_used_are_all_named_before_work(folder: Path) -> None:
    cv2.imwrite(str(folder / "masks/a.png"), np.full((32, 32), 7, np.uint8))
    cv2.imwrite(str(folder / "masks/b.png"), np.zeros((32, 32), np.uint8))
    with pytest.raises(ConfigError, match=r"2 problems\n.*a.png: holds 7; .*\n.*b.png: is 32 x 32, its photo"):
        _write(folder, folder / "masks")
    assert not (folder / "set").exists() and not list((folder / "latents").iterdir())
    with pytest.raises(ConfigError, match=r"holds no mask of these photos; a.png would be one"):
        _write(folder, folder / "photos" / "more")


def test_what_is_there_is_not_replaced(folder: Path) -> None:
    _write(folder, folder / "masks")
    write_mask(folder / "set", KEYS[0], np.ones((32, 32), np.uint8))
    with pytest.raises(ConfigError, match=rf"masks/{KEYS[0]}.png: is another mask"):
        _write(folder, folder / "masks")
    (folder / "photos" / "0.png").write_bytes((folder / "photos" / "a.png").read_bytes())
    with pytest.raises(OutputError, match="holds another annotation set"):
        _write(folder)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_masks_follow_their_photos_into_the_frame(fit: str) -> None:
    mask_HW = np.zeros((64, 128), np.uint8)
    mask_HW[:, 64:] = 1
    mask_hw = mask_in_frame(mask_HW, Frame((64, 128), (32, 32), fit))  # type: ignore[arg-type]
    known = slice(8, 24) if fit == "pad" else slice(0, 32)
    assert (mask_hw[known, :16] == 0).all() and (mask_hw[known, 16:] == 1).all()
    assert (np.delete(mask_hw, known, axis=0) == 255).all()


def test_the_command(folder: Path) -> None:
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_run(folder / "tiny.safetensors", folder / "run")))
    _inversion(folder)
    _write(folder)  # latents of few steps
    words = ["annotate", "photos", str(folder / "run.yaml"), str(folder / "photos"), "--out", str(folder / "set")]
    words += ["--latents", str(folder / "latents"), "--masks", str(folder / "masks")]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, ConfigError) and "name their classes" in str(refused.exception)
    found = CliRunner().invoke(app, [*words, "--classes", "background,object"], catch_exceptions=False)
    assert f"{folder}/set: 3 photos, 2 of them with masks" in found.output


def test_generated_images_have_no_photo(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_small_annotations(tmp_path, tiny_checkpoint)
    assert read_annotations(tmp_path).photos == {}
