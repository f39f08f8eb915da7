"""Images to train on: found, decoded, passed over, and read in order."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import webdataset
from helpers.small_trainings import RESOLUTION, discs

from labelmill.pipeline.avatars.avatars import render, seeds_at_rates
from labelmill.pipeline.generator.training.images import TrainingDataError, TrainingImages, load_images
from labelmill.schemas.training import AvatarRates, DomainData, FolderData, ShardsData


def test_folder_and_shards_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "part-0.tar")) as writer:
        for path in sorted(folder.iterdir()):
            writer.write({"__key__": path.stem, "png": path.read_bytes()})
    shards = ShardsData(kind="shards", urls=(str(tmp_path / "part-*.tar"),))
    from_shards = load_images(shards, RESOLUTION, tmp_path / "a").images_NHWC
    from_folder = load_images(FolderData(kind="folder", path=folder), RESOLUTION, tmp_path / "b").images_NHWC
    assert np.array_equal(from_shards, from_folder)
    assert np.array_equal(from_folder, discs(256)[:, :, :, ::-1])  # OpenCV wrote them as BGR


def test_rare_parts_of_a_domain_are_drawn_as_often_as_told(tmp_path: Path) -> None:
    data = DomainData(kind="domain", num_images=6, first_seed=3, rates=AvatarRates(beard=0.9))
    images = load_images(data, RESOLUTION, tmp_path).images_NHWC
    seeds = list(islice(seeds_at_rates(3, {"beard": 0.9}), 6))
    assert np.array_equal(images, np.stack([render(seed, RESOLUTION).image_HWC for seed in seeds]))
    plain = load_images(DomainData(kind="domain", num_images=2, first_seed=3), RESOLUTION, tmp_path).images_NHWC
    assert np.array_equal(plain, np.stack([render(seed, RESOLUTION).image_HWC for seed in (3, 4)]))


def test_images_are_cropped_to_their_centre(tmp_path: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (10, 20, 200)
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), wide)
    images = load_images(FolderData(kind="folder", path=tmp_path / "in"), 8, tmp_path / "cache").images_NHWC
    assert images.shape == (1, 8, 8, 3)
    assert (np.asarray(images) == (200, 20, 10)).all()


def test_every_image_once_an_epoch_in_an_order_of_its_own() -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    data = TrainingImages(images, seed=3, horizontal_flip=True)
    values = [round((float(data.batch(i, 1)[0, 0, 0, 0]) + 1) * 127.5) for i in range(20)]
    assert sorted(values[:10]) == sorted(values[10:]) == list(range(10))
    assert values[:10] != values[10:]
    assert torch.equal(data.batch(7, 6)[4], TrainingImages(images, seed=3, horizontal_flip=True).batch(11, 1)[0])


def test_half_of_the_images_are_mirrored() -> None:
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[:, :, 0] = 255
    data = TrainingImages(np.repeat(image, 200, axis=0), seed=0, horizontal_flip=True)
    mirrored = int((data.batch(0, 200)[:, 0, 0, 0] < 0).sum())
    assert 60 < mirrored < 140
    plain = TrainingImages(image, seed=0, horizontal_flip=False)
    assert all(float(plain.batch(i, 1)[0, 0, 0, 0]) == 1.0 for i in range(20))


def test_bad_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="is not a folder"):
        load_images(FolderData(kind="folder", path=tmp_path / "none"), 8, tmp_path / "c")
    (tmp_path / "in").mkdir()
    with pytest.raises(TrainingDataError, match="no images found"):
        load_images(FolderData(kind="folder", path=tmp_path / "in"), 8, tmp_path / "c")
    with pytest.raises(TrainingDataError, match="no file matches"):
        load_images(ShardsData(kind="shards", urls=(str(tmp_path / "no-*.tar"),)), 8, tmp_path / "c")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three images among files that are none, and files that only look like one."""
    folder = tmp_path / "in"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "more/c.webp"):
        cv2.imwrite(str(folder / name), discs(1)[0])
    (folder / "._a.png").write_bytes(b"what macOS leaves beside a file")
    (folder / "notes.txt").write_text("none")
    (folder / "d.heic").write_bytes(b"none")
    (folder / "like.png").mkdir()
    return folder


def test_what_is_passed_over_is_told(mixed: Path, tmp_path: Path) -> None:
    for _ in range(2):  # decoded, then from the cache
        loaded = load_images(FolderData(kind="folder", path=mixed), 8, tmp_path / "c")
        assert len(loaded.images_NHWC) == 3
        assert loaded.summary.startswith(f"3 images at 8 px from {mixed}; skipped 3 other files: ")
        assert all(kind in loaded.summary for kind in ("1 .txt", "1 .heic", "1 .png"))


def test_all_unreadable_files_are_named_at_once(mixed: Path, tmp_path: Path) -> None:
    for index in range(25):
        (mixed / f"x{index:02d}.png").write_bytes(b"not an image")
    (mixed / "empty.jpg").write_bytes(b"")
    with pytest.raises(TrainingDataError) as caught:
        load_images(FolderData(kind="folder", path=mixed), 8, tmp_path / "c")
    message = str(caught.value)
    assert "26 of 29 images are not readable" in message and "and 6 more" in message
    assert all(str(mixed / f"x{index:02d}.png") in message for index in range(19)) and "empty.jpg" in message
    loaded = load_images(FolderData(kind="folder", path=mixed, skip_unreadable=True), 8, tmp_path / "c")
    assert len(loaded.images_NHWC) == 3
    assert "skipped 26 that are not readable: " in loaded.summary


def test_a_file_that_was_replaced_is_decoded_anew(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = FolderData(kind="folder", path=tmp_path / "in")
    for value in (10, 200):
        cv2.imwrite(str(tmp_path / "in/a.png"), np.full((8, 8, 3), value, np.uint8))
        assert (np.asarray(load_images(data, 8, tmp_path / "c").images_NHWC) == value).all()
