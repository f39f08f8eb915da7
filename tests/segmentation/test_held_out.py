"""Scores on what a network has not seen: equal to those of its masks, and refused where they would be nonsense."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.discs import ByColour, write_discs, write_photos
from PIL import Image

from labelmill.pipeline.networks.segmenter import Segmenter
from labelmill.pipeline.pictures.mask_png import MaskError
from labelmill.pipeline.pictures.photos import PhotoError
from labelmill.pipeline.segmentation.evaluate import evaluate
from labelmill.pipeline.segmentation.held_out import check_photos, open_held_out_split, score
from labelmill.pipeline.segmentation.mask_source import open_masks
from labelmill.pipeline.segmentation.predict import predict_folder
from labelmill.pipeline.segmentation.reading import open_split, read_samples
from labelmill.schemas.segmentation import DatasetSplit, PhotoFolder

CLASSES = ("background", "skin", "hair")
SIZES = {"wide": (24, 40), "tall": (50, 17), "square": (16, 16)}


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(ByColour(), upscale=1, mean=(0, 0, 0), std=(1, 1, 1)).eval()


@pytest.fixture
def held_out(tmp_path: Path) -> PhotoFolder:
    return PhotoFolder(kind="photos", photos=write_photos(tmp_path, SIZES), masks=str(tmp_path / "truth"))


def rewrite_masks(held_out: PhotoFolder, values: tuple[int, int, int]) -> None:
    """Other values in place of 0, 1 and 2."""
    for path in Path(held_out.masks).iterdir():
        mask_HW = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), np.asarray(values, np.uint8)[mask_HW])


def with_positive(held_out: PhotoFolder, positive: int) -> PhotoFolder:
    return held_out.model_copy(update={"positive": positive})


def test_scores_on_photos_are_those_of_their_masks(segmenter: Segmenter, held_out: PhotoFolder, tmp_path: Path) -> None:
    predict_folder(segmenter, held_out.photos, tmp_path / "out", 12)
    expected = evaluate(open_masks(str(tmp_path / "out")), open_masks(held_out.masks), classes=CLASSES)
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


def test_images_of_one_size_are_labeled_together(
    segmenter: Segmenter, held_out: PhotoFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    segmenter.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    split = DatasetSplit(dataset=write_discs(tmp_path / "out", samples=12), split=None)
    together = score(segmenter, split, CLASSES, 12)
    assert sizes == [12]
    monkeypatch.setattr("labelmill.pipeline.segmentation.held_out._MOST_PIXELS", 5 * 16 * 16)
    assert score(segmenter, split, CLASSES, 12) == together
    assert sizes == [12, 5, 5, 2]
    score(segmenter, held_out, CLASSES, 12)  # three sizes, and none has a place in another's batch
    assert sizes[4:] == [1, 1, 1]


def test_masks_of_two_values_need_their_positive_one(segmenter: Segmenter, held_out: PhotoFolder) -> None:
    rewrite_masks(held_out, (0, 255, 255))
    scores = score(segmenter, with_positive(held_out, 255), CLASSES, 16)
    assert scores.iou["background"] is not None and scores.iou["background"] > 0.7
    assert scores.num_pixels == sum(height * width for height, width in SIZES.values())
    for look in (
        lambda held_out: score(segmenter, held_out, CLASSES, 16),
        lambda held_out: check_photos(held_out, CLASSES),
    ):
        with pytest.raises(MaskError, match=r"every mask holds only 0 and 255, .* set held_out\.positive: 255"):
            look(held_out)
        with pytest.raises(MaskError, match=r"holds 0, 255; with held_out\.positive: 7 a mask holds 0 and 7 alone"):
            look(with_positive(held_out, 7))


def test_pixels_to_ignore_among_classes_are_ignored(segmenter: Segmenter, held_out: PhotoFolder) -> None:
    rewrite_masks(held_out, (0, 255, 2))
    check_photos(held_out, CLASSES)
    masks = open_masks(held_out.masks)
    counted = sum(int((masks.read(key) != 255).sum()) for key in masks.keys)
    assert score(segmenter, held_out, CLASSES, 16).num_pixels == counted


def test_what_does_not_fit_is_named_before_a_network_is_asked(held_out: PhotoFolder, tmp_path: Path) -> None:
    check_photos(held_out, CLASSES)
    with pytest.raises(MaskError, match=r"holds 2, but there are 2 classes, 0 to 1"):
        check_photos(held_out, CLASSES[:2])
    with pytest.raises(PhotoError, match="typo: cannot be read: No such file"):
        check_photos(held_out.model_copy(update={"photos": tmp_path / "typo"}), CLASSES)
    with pytest.raises(MaskError, match="typo: does not exist"):
        check_photos(held_out.model_copy(update={"masks": str(tmp_path / "typo")}), CLASSES)
    (tmp_path / "truth" / "tall.png").rename(tmp_path / "truth" / "other.png")
    with pytest.raises(PhotoError, match="other has no photo"):
        check_photos(held_out, CLASSES)
    dataset = write_discs(tmp_path / "out", samples=8)
    with pytest.raises(PhotoError, match=r"has the classes background, .*, the network a, b"):
        open_held_out_split(DatasetSplit(dataset=dataset, split=None), ("a", "b"))


def test_a_mask_of_another_size_is_named(segmenter: Segmenter, held_out: PhotoFolder, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "truth" / "tall.png"), np.zeros((17, 50), np.uint8))
    with pytest.raises(PhotoError, match=r"photos/tall\.png: "):
        score(segmenter, held_out, CLASSES, 16)


def test_photos_that_cannot_be_scored_are_all_named_before_a_training(held_out: PhotoFolder, tmp_path: Path) -> None:
    """A photo that its EXIF turns differs from a mask that was drawn on its pixels as they are stored."""
    cv2.imwrite(str(tmp_path / "truth" / "square.png"), np.zeros((3, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(held_out.photos / "wide.png").save(held_out.photos / "wide.jpg", exif=exif)
    (held_out.photos / "wide.png").unlink()
    content = (held_out.photos / "tall.png").read_bytes()
    (held_out.photos / "tall.png").write_bytes(content[:200])
    with pytest.raises(PhotoError) as caught:
        check_photos(held_out, CLASSES)
    square, tall, wide = str(caught.value).splitlines()[1:]
    assert re.search(r"square\.png: is 16 x 16 pixels, .*truth/square\.png 3 x 3$", square)
    assert re.search(r"wide\.jpg: is 24 x 40 pixels, .*wide\.png 40 x 24; the photo is turned as its EXIF says", wide)
    assert "tall.png: is not a readable image" in tall
    (held_out.photos / "tall.png").write_bytes(b"")
    with pytest.raises(PhotoError, match=r"photos that cannot be read:\n  .*tall\.png: is empty"):
        check_photos(held_out, CLASSES)


def test_photos_and_masks_in_subfolders_belong_together(segmenter: Segmenter, tmp_path: Path) -> None:
    photos = write_photos(tmp_path, {"a": (16, 16), "b": (16, 16)})
    for name in ("photos", "truth"):
        (tmp_path / name / "sub").mkdir()
        (tmp_path / name / "b.png").rename(tmp_path / name / "sub" / "a.png")
    held_out = PhotoFolder(kind="photos", photos=photos, masks=str(tmp_path / "truth"))
    check_photos(held_out, CLASSES)
    assert score(segmenter, held_out, CLASSES, 16).num_images == 2
