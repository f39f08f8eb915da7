"""Photos to masks through the generator."""

import csv
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.tiny_run import save_tiny_generator, tiny_run
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.photos.frame import Frame
from labelmill.pipeline.photos.invert import Inversion
from labelmill.pipeline.photos.segment import PhotoLabeler, open_inversion, segment_folder
from labelmill.pipeline.photos.snap import Snapping, mask_agreement
from labelmill.pipeline.pictures.overlay import class_colours, overlay
from labelmill.pipeline.pictures.photos import UnreadablePhotosError, find_photos, read_photo
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.inversion import EncoderConfig, InversionSettings, StepsConfig
from labelmill.schemas.yaml_file import validate

CPU = torch.device("cpu")
SETTINGS = InversionSettings(
    steps=StepsConfig(w=2, w_plus=2),
    encoder=EncoderConfig(samples=64, batch_size=32),
    batch_size=4,
    precision="float32",
    threads=1,
)


class WithAlphaAndInstances:
    """A labeler whose labels have all that labels can have."""

    optional_files = ("alpha.png", "instances.png")

    def __init__(self, inner: Labeler) -> None:
        self.inner, self.classes, self.layers = inner, inner.classes, inner.layers

    def label(self, batch: Batch) -> Labels:
        labels = self.inner.label(batch)
        alpha_BHW = (batch.images_BCHW.mean(dim=1) / 2 + 0.5).clamp(0, 1)
        return replace(labels, alpha_BHW=alpha_BHW, instances_BHW=(labels.masks_BHW != 0).long() * 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segment")
    save_tiny_generator(folder / "tiny.safetensors")
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_run(folder / "tiny.safetensors", folder / "run")))
    (folder / "photos" / "more").mkdir(parents=True)
    for number, (name, size) in enumerate([("a.png", (32, 32)), ("b.jpg", (50, 90)), ("more/c.png", (70, 40))]):
        small_HWC = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "photos" / name), cv2.resize(small_HWC, size[::-1]))
    return folder


def config_of(folder: Path, **changes: object) -> RunConfig:
    return validate({**tiny_run(folder / "tiny.safetensors", folder / "run"), **changes}, "test", RunConfig)


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Sampler, Labeler, Inversion]:
    config = config_of(folder)
    sampler, _ = open_sampler(config)
    labeler = open_fitted(config.labeler, sampler, fit_to_bytes(config.labeler, sampler)).labeler
    return sampler, labeler, Inversion(config.generator, SETTINGS, folder / "latents", CPU)


def test_masks_have_the_photos_names_and_sizes(folder: Path, opened: tuple[Sampler, Labeler, Inversion]) -> None:
    sampler, labeler, inversion = opened
    photo_labeler = PhotoLabeler(sampler, WithAlphaAndInstances(labeler), inversion, 2)
    rows = segment_folder(
        photo_labeler, folder / "photos", folder / "masks", sheets=folder / "sheets", overlays=folder / "seen"
    )
    assert [row.photo for row in rows] == ["a", "b", "more/c"]
    assert all(0 <= row.agreement <= 1 and abs(row.quality - row.agreement * row.confidence) < 1e-3 for row in rows)
    for name, size in (("a", (32, 32)), ("b", (50, 90)), ("more/c", (70, 40))):
        mask_HW = cv2.imread(str(folder / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert mask_HW.shape == size and mask_HW.dtype == np.uint8 and set(np.unique(mask_HW)) <= {0, 1}
        assert cv2.imread(str(folder / "masks" / f"{name}.alpha.png"), -1).shape == size
        instances_HW = cv2.imread(str(folder / "masks" / f"{name}.instances.png"), -1)
        assert instances_HW.dtype == np.uint16 and set(np.unique(instances_HW)) <= {0, 300}
        assert (folder / "sheets" / f"{name}.png").exists()
        photo_HWC = read_photo(find_photos(folder / "photos").files[name])
        seen_HWC = cv2.imread(str(folder / "seen" / f"{name}.png"), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(seen_HWC, overlay(photo_HWC, np.asarray(mask_HW, np.uint8), class_colours(2)))
    with (folder / "masks" / "quality.csv").open() as file:
        assert [row["photo"] for row in csv.DictReader(file)] == ["a", "b", "more/c"]


def test_a_mask_through_latents_is_the_labeler_s_mask(opened: tuple[Sampler, Labeler, Inversion]) -> None:
    sampler, labeler, _ = opened
    drawn = sampler.sample([1, 2, 3], labeler.layers)
    again = sampler.of_ws(drawn.ws_BLD, labeler.layers)
    assert torch.equal(again.images_BCHW, drawn.images_BCHW)
    assert torch.equal(labeler.label(again).masks_BHW, labeler.label(drawn).masks_BHW)


def test_low_quality_is_rejected_and_bad_photos_are_told(
    folder: Path, opened: tuple[Sampler, Labeler, Inversion], tmp_path: Path
) -> None:
    sampler, labeler, inversion = opened
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes((folder / "photos" / "a.png").read_bytes())
    (photos / "bad.png").write_bytes(b"no image")
    with pytest.raises(UnreadablePhotosError, match=r"1 of 2 photos cannot be used; the masks of the other 1"):
        segment_folder(PhotoLabeler(sampler, labeler, inversion, 0), photos, tmp_path / "out", reject_below=1.0)
    assert (cv2.imread(str(tmp_path / "out" / "a.png"), -1) == 255).all()
    assert ",True" in (tmp_path / "out" / "quality.csv").read_text()


def test_another_checkpoint_and_noise_are_refused(
    folder: Path, opened: tuple[Sampler, Labeler, Inversion], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="per_seed, but photos have no seed"):
        open_inversion(config_of(folder).generator.model_copy(update={"noise": "per_seed"}), tmp_path, CPU)
    inversion = opened[2]
    other = inversion.claim.model_copy(update={"checkpoint_sha256": "f" * 64})
    (tmp_path / "inversion.json").write_text(other.model_dump_json())
    with pytest.raises(ConfigError, match=r"belongs to another checkpoint: it has SHA-256 f{64}"):
        open_inversion(config_of(folder).generator, tmp_path, CPU)


def test_edges_snap_to_the_photo_s(opened: tuple[Sampler, Labeler, Inversion]) -> None:
    """A disc, three times larger than the generator's image: the mask's edge is two pixels of that off."""
    rows, columns = np.mgrid[0:96, 0:96]
    disc_HW = (rows - 48) ** 2 + (columns - 48) ** 2 < 30**2
    image_HWC = np.where(disc_HW[:, :, None], [220, 60, 40], [40, 90, 200]).astype(np.uint8)
    rows, columns = np.mgrid[0:32, 0:32]
    small = torch.from_numpy(((rows - 16) ** 2 + (columns - 16) ** 2 < 8.5**2).astype(np.uint8))
    wrong = [
        (Snapping(image_HWC, Frame((96, 96), (32, 32), "pad"), 3, radius, CPU).mask(small).numpy() != disc_HW).mean()
        for radius in (0, 3)
    ]
    assert wrong[1] < 0.5 * wrong[0]


def test_agreement_is_the_mean_iou_of_the_classes() -> None:
    first = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255]])
    assert mask_agreement(first, first) == 1
    second = torch.tensor([[0, 1, 1, 1], [2, 2, 255, 255]])
    assert mask_agreement(first, second) == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    values = {
        "generator": {"checkpoint": str(folder / "tiny.safetensors")},
        "photos": str(folder / "photos"),
        "output": str(tmp_path / "latents"),
        "settings": SETTINGS.model_dump(mode="json"),
    }
    (tmp_path / "invert.yaml").write_text(yaml.safe_dump(values))
    run = CliRunner()
    found = run.invoke(app, ["invert", str(tmp_path / "invert.yaml")], catch_exceptions=False)
    assert "latents of 3 photos" in found.output
    options = [
        "--out",
        str(tmp_path / "masks"),
        "--latents",
        str(tmp_path / "latents"),
        "--set",
        f"output={tmp_path}/run",
    ]
    found = run.invoke(
        app, ["segment", str(folder / "run.yaml"), str(folder / "photos"), *options], catch_exceptions=False
    )
    assert "3 masks of 0 background, 1 foreground; 0 rejected" in found.output
    assert {path.name for path in (tmp_path / "masks").rglob("*.png")} == {"a.png", "b.png", "c.png"}
