"""Photos to masks: exact ids, the photos' names and sizes."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.discs import ByColour, disc, write_photos
from torch.nn import functional

from labelmill.pipeline.networks.segmenter import Segmenter, build, save_segmenter
from labelmill.pipeline.pictures.overlay import class_colours, overlay
from labelmill.pipeline.pictures.photos import PhotoError, UnreadablePhotosError, find_photos, read_photo
from labelmill.pipeline.segmentation.evaluate import evaluate
from labelmill.pipeline.segmentation.mask_source import open_masks
from labelmill.pipeline.segmentation.predict import predict, predict_folder
from labelmill.schemas.sample import ImageShape
from labelmill.schemas.segmentation import SegmentationModelCard, SegmentationModelConfig

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


def test_masks_are_laid_over_photos(segmenter: Segmenter, photos: Path, tmp_path: Path) -> None:
    seen, masks = tmp_path / "seen", tmp_path / "out"
    predict_folder(segmenter, photos, masks, 16, overlays=seen, num_classes=len(CLASSES))
    assert sorted(path.name for path in seen.iterdir()) == sorted(path.name for path in masks.iterdir())
    for name, photo in find_photos(photos).files.items():
        mask_HW = cv2.imread(str(masks / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        expected_HWC = overlay(read_photo(photo), np.asarray(mask_HW, np.uint8), class_colours(len(CLASSES)))
        assert np.array_equal(cv2.imread(str(seen / f"{name}.png"), cv2.IMREAD_COLOR_RGB), expected_HWC)


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
    cv2.imwrite(str(photos / "wide.jpg"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UnreadablePhotosError, match=r"wide\.jpg: wide\.png has the same name"):
        predict_folder(segmenter, photos, tmp_path / "out", 16)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tall.png", "square.png"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoError, match="holds no photo"):
        find_photos(tmp_path / "empty")


def test_bad_files_do_not_keep_the_good_ones_from_their_masks(
    segmenter: Segmenter, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them are told before the first mask, and again at the end."""
    (photos / "a.jpg").write_bytes(b"no image")
    (photos / "cut.png").write_bytes((photos / "wide.png").read_bytes()[:60])
    (photos / "._wide.png").write_bytes(b"\0\5\x16\7 what macOS leaves")
    (photos / "lost.jpg").symlink_to(tmp_path / "nowhere")
    (photos / "album.jpg").mkdir()
    cv2.imwrite(str(photos / "album.jpg" / "scan.tif"), disc(9)[0][:, :, ::-1])
    (photos / "notes.txt").touch()
    out = photos / "masks"
    for _ in range(2):  # masks beside the photos are no photos
        with pytest.raises(UnreadablePhotosError) as caught:
            predict_folder(segmenter, photos, out, 16)
        assert caught.value.exit_code == 3
        head, *problems = str(caught.value).splitlines()
        assert f"3 of 7 photos cannot be used; the masks of the other 4 are in {out}" in head
        assert [problem.strip().removeprefix(f"{photos}/").split(":")[0] for problem in problems] == [
            "a.jpg", "lost.jpg", "cut.png",
        ]  # fmt: skip
        told = capsys.readouterr().err
        assert "skipped files that are not .jpg" in told and "1 .txt" in told
        assert "a.jpg: does not begin like an image" in told and "lost.jpg: is a link that leads nowhere" in told
        masks = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
        assert masks == {"wide.png", "tall.png", "square.png", "album.jpg/scan.png"}
    assert set(open_masks(str(out)).keys) == {"wide", "tall", "square", "album.jpg/scan"}
    assert np.array_equal(cv2.imread(str(out / "album.jpg" / "scan.png"), -1), predict(segmenter, disc(9)[0], 16))


@pytest.mark.parametrize(("height", "width"), [(2000, 1), (1, 2000), (40, 400)])
def test_a_sliver_of_a_photo_stays_small_in_the_network(height: int, width: int) -> None:
    """Its shorter side at 256 would take gigabytes."""
    seen: list[tuple[int, ...]] = []

    class Recording(ByColour):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(images_BCHW.shape))
            return super().forward(images_BCHW)

    segmenter = Segmenter(Recording(), upscale=1, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    image_HWC = np.full((height, width, 3), (200, 10, 10), np.uint8)
    assert (predict(segmenter, image_HWC, 256) == 2).all()
    assert max(seen[0]) == 8 * 256 and min(seen[0][2:]) <= 256


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
    command = [
        sys.executable,
        "-m",
        "labelmill.pipeline.cli",
        "predict",
        str(tmp_path / "model.safetensors"),
        str(photos),
    ]
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
