"""Photos to masks: exact ids, the photos' names and sizes."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from discs import ByColour, disc, write_photos
from torch.nn import functional

from pipeline.segmentation.evaluate import evaluate
from pipeline.segmentation.mask_source import open_masks
from pipeline.segmentation.models import Segmenter, build, save_segmenter
from pipeline.segmentation.predict import PhotoError, photo_files, predict, predict_folder, read_photo
from schemas.sample import ImageShape
from schemas.segmentation import SegmentationModelCard, SegmentationModelConfig

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("background", "skin", "hair")
SIZES = {"wide": (24, 40), "tall": (50, 17), "square": (16, 16)}


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(ByColour(), upscale=1, mean=(0, 0, 0), std=(1, 1, 1)).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path, SIZES)


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


def test_photos_that_do_not_fit_are_named(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
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


def test_a_photo_that_is_too_large_for_opencv_is_named(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, data = struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0), zlib.compress(bytes(100))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "large.png").write_bytes(png)
    with pytest.raises(PhotoError, match=r"large\.png: has more pixels than OpenCV takes"):
        read_photo(tmp_path / "large.png")


def test_the_command_labels_photos(photos: Path, tmp_path: Path) -> None:
    config = SegmentationModelConfig(architecture="resnet18_8s")
    card = SegmentationModelCard(
        model=config,
        classes=CLASSES,
        image_shape=ImageShape(height=16, width=16, channels=3),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        dataset_fingerprint="f" * 64,
        steps=1,
    )
    trained = build(config, num_classes=3, mean=card.mean, std=card.std, seed=1).eval()
    save_segmenter(tmp_path / "model.safetensors", trained, card)
    command = [sys.executable, "-m", "pipeline.cli", "predict", str(tmp_path / "model.safetensors"), str(photos)]
    command += ["--out", str(tmp_path / "masks")]
    # Logits depend on it in their last bits.
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3 masks of 0 background, 1 skin, 2 hair" in done.stdout
    image_HWC = cv2.imread(str(photos / "wide.png"), cv2.IMREAD_COLOR_RGB)
    mask_HW = cv2.imread(str(tmp_path / "masks" / "wide.png"), cv2.IMREAD_UNCHANGED)
    assert image_HWC is not None and np.array_equal(mask_HW, predict(trained, np.asarray(image_HWC), 16))
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"square.png", "tall.png", "wide.png"}
