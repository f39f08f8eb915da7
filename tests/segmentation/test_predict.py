"""Photos to masks: exact ids, the photos' names and sizes; scores equal to those of the masks."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from discs import disc, write_discs
from torch import Tensor, nn
from torch.nn import functional

from pipeline.segmentation.evaluate import evaluate
from pipeline.segmentation.mask_source import open_masks
from pipeline.segmentation.models import Segmenter, build, save_segmenter
from pipeline.segmentation.predict import PhotoError, photo_files, predict, predict_folder, score
from pipeline.segmentation.reading import open_split, read_samples
from schemas.segmentation import DatasetSplit, PhotoFolder, SegmentationModelCard, SegmentationModelConfig

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("background", "skin", "hair")
SIZES = {"wide": (24, 40), "tall": (50, 17), "square": (16, 16)}


class _ByColour(nn.Module):
    """Green, blue and red pixels are classes 0, 1 and 2: right on discs without noise."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, [1, 2, 0]]


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(_ByColour(), upscale=1, mean=(0, 0, 0), std=(1, 1, 1)).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos of several sizes, and their true masks beside them."""
    for folder in ("photos", "truth"):
        (tmp_path / folder).mkdir()
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        image_HWC, mask_HW = disc(seed, 64)
        size = (width, height)
        image_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.png"), image_HWC[:, :, ::-1])
        mask_HW = cv2.resize(mask_HW, size, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / "truth" / f"{name}.png"), mask_HW)
    return tmp_path / "photos"


def test_at_its_own_size_a_photo_gets_the_argmax_of_logits(segmenter: Segmenter) -> None:
    image_HWC, _ = disc(3)
    expected = image_HWC[:, :, [1, 2, 0]].argmax(-1)
    assert np.array_equal(predict(segmenter, image_HWC, 16), expected)


def test_logits_not_masks_are_enlarged(segmenter: Segmenter) -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    small = functional.interpolate(
        torch.from_numpy(image_HWC).permute(2, 0, 1)[None] / 255, size=(27, 16), mode="bilinear", antialias=True
    )
    logits = functional.interpolate(small.clamp(0, 1)[:, [1, 2, 0]], size=(40, 24), mode="bilinear")
    found = predict(segmenter, image_HWC, 16)
    assert found.dtype == np.uint8 and np.array_equal(found, logits[0].argmax(0).numpy())


def test_a_folder_of_photos_becomes_a_folder_of_masks(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    assert predict_folder(segmenter, photos, tmp_path / "out", 16) == 3
    for name, shape in SIZES.items():
        mask_HW = cv2.imread(str(tmp_path / "out" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert mask_HW is not None and mask_HW.shape == shape and mask_HW.dtype == np.uint8
        assert set(np.unique(mask_HW)) <= {0, 1, 2}
    scores = evaluate(open_masks(str(tmp_path / "out")), open_masks(str(tmp_path / "truth")), classes=CLASSES)
    assert scores.miou is not None and scores.miou > 0.7


def test_scores_on_photos_are_those_of_their_masks(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    held_out = PhotoFolder(kind="photos", photos=photos, masks=str(tmp_path / "truth"))
    predict_folder(segmenter, photos, tmp_path / "out", 12)
    expected = evaluate(open_masks(str(tmp_path / "out")), open_masks(str(tmp_path / "truth")), classes=CLASSES)
    assert score(segmenter, held_out, CLASSES, 12) == expected


def test_scores_on_a_split_are_those_of_its_samples(segmenter: Segmenter, tmp_path: Path) -> None:
    dataset = write_discs(tmp_path / "out", samples=12)
    found = score(segmenter, DatasetSplit(dataset=dataset, split=None), CLASSES, 16)
    right = total = 0
    for sample in read_samples(open_split(dataset, None)):
        right += int((sample.image_HWC[:, :, [1, 2, 0]].argmax(-1) == sample.mask_HW).sum())
        total += sample.mask_HW.size
    assert found.num_images == 12 and found.num_pixels == total
    # With every pixel counted, the mean over classes of one-against-the-rest accuracy tells the share that is right.
    assert found.accuracy == pytest.approx(1 - 2 * (1 - right / total) / 3)


def test_masks_of_two_values_need_their_positive_one(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "truth").iterdir():
        mask_HW = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask_HW is not None
        cv2.imwrite(str(path), np.where(mask_HW > 0, 255, 0).astype(np.uint8))
    held_out = PhotoFolder(kind="photos", photos=photos, masks=str(tmp_path / "truth"), positive=255)
    scores = score(segmenter, held_out, CLASSES, 16)
    assert scores.iou["background"] is not None and scores.iou["background"] > 0.7
    with pytest.raises(PhotoError, match=r"holds 255, not just 0 and 7"):
        score(segmenter, held_out.model_copy(update={"positive": 7}), CLASSES, 16)


def test_photos_that_do_not_fit_are_named(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    held_out = PhotoFolder(kind="photos", photos=photos, masks=str(tmp_path / "truth"))
    (tmp_path / "truth" / "tall.png").rename(tmp_path / "truth" / "other.png")
    with pytest.raises(PhotoError, match="other has no photo"):
        score(segmenter, held_out, CLASSES, 16)
    with pytest.raises(PhotoError, match="is the folder of the photos"):
        predict_folder(segmenter, photos, photos, 16)
    (photos / "wide.jpg").write_bytes(b"no image")
    with pytest.raises(PhotoError, match="another photo goes by the same name"):
        photo_files(photos)
    (photos / "wide.png").unlink()
    with pytest.raises(PhotoError, match=r"wide\.jpg: is no readable image"):
        predict_folder(segmenter, photos, tmp_path / "out", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoError, match="holds no photo"):
        photo_files(tmp_path / "empty")


def test_the_command_labels_photos(photos: Path, tmp_path: Path) -> None:
    config = SegmentationModelConfig(architecture="resnet18_8s")
    card = SegmentationModelCard(
        model=config,
        classes=CLASSES,
        resolution=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        dataset_fingerprint="f" * 64,
        steps=1,
    )
    trained = build(config, num_classes=3, mean=card.mean, std=card.std, seed=1).eval()
    save_segmenter(tmp_path / "model.safetensors", trained, card)
    command = [sys.executable, "-m", "pipeline.cli", "predict", str(tmp_path / "model.safetensors"), str(photos)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "masks")], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "3 masks of 0 background, 1 skin, 2 hair" in done.stdout
    image_HWC = cv2.imread(str(photos / "wide.png"), cv2.IMREAD_COLOR_RGB)
    mask_HW = cv2.imread(str(tmp_path / "masks" / "wide.png"), cv2.IMREAD_UNCHANGED)
    assert image_HWC is not None and np.array_equal(mask_HW, predict(trained, np.asarray(image_HWC), 16))
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"square.png", "tall.png", "wide.png"}
