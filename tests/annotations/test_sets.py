"""Annotation sets: what is written is read again, the images come out the same, and what does not fit is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.random_sampler import make_sampler
from helpers.s3_server import S3Server
from helpers.small_annotations import CLASSES, about_of, sampler_of, sha256_of, write_small_annotations

from labelmill.pipeline.annotations.read import read_annotations
from labelmill.pipeline.annotations.regenerate import regenerate
from labelmill.pipeline.annotations.write import image_sha256, write_mask, write_set
from labelmill.pipeline.generator.sampling import to_uint8
from labelmill.pipeline.pictures.png import decode_picture, encode_gray, encode_picture
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError, OutputError

SEEDS = (3, 1, 8, 40, 7)


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    write_small_annotations(tmp_path / "set", tiny_checkpoint, SEEDS)
    return tmp_path / "set"


def _message(folder: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_annotations(folder)
    return str(error.value)


def test_what_is_written_is_read(folder: Path, tiny_checkpoint: Path) -> None:
    annotations = read_annotations(folder)
    images_BHWC = to_uint8(sampler_of(tiny_checkpoint).sample(SEEDS[:4]).images_BCHW).numpy()
    assert tuple(map(int, annotations.keys)) == SEEDS[:4] and annotations.about.classes == CLASSES
    assert annotations.keys[0] == "0000000003" and len(annotations.about.images) == 5
    assert np.array_equal(annotations.images_NHWC, images_BHWC)
    assert annotations.masks_NHW.shape == (4, 32, 32)
    assert set(np.unique(annotations.masks_NHW)) == {0, 1, 2, 255}
    assert annotations.images[1].image_sha256 == image_sha256(images_BHWC[1])
    large_HWC = decode_picture((folder / "enlarged/0000000001.png").read_bytes(), 3)
    assert large_HWC is not None and large_HWC.shape == (128, 128, 3)
    assert np.array_equal(large_HWC[2::4, 2::4], images_BHWC[1])


def test_the_identity_is_that_of_what_is_learned_from(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_small_annotations(tmp_path / "again", tiny_checkpoint, SEEDS)
    write_small_annotations(tmp_path / "fewer", tiny_checkpoint, SEEDS[:3])
    before = read_annotations(folder).sha256
    assert read_annotations(tmp_path / "again").sha256 == before
    assert read_annotations(tmp_path / "fewer").sha256 != before
    mask_HW = read_annotations(folder).masks_NHW[0].copy()
    mask_HW[5, 5] = (mask_HW[5, 5] + 1) % 3
    write_mask(folder, "0000000003", mask_HW)
    assert read_annotations(folder).sha256 != before


def test_sets_lie_in_buckets_too(folder: Path, s3: S3Server) -> None:
    bucket = s3.create_bucket()
    store = Store.open(f"{bucket}/set")
    for file in sorted(folder.rglob("*.*")):
        store.create(str(file.relative_to(folder)), file.read_bytes())
    assert read_annotations(f"{bucket}/set").sha256 == read_annotations(folder).sha256


def test_images_are_made_again_with_the_settings_of_the_set(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_small_annotations(tmp_path, tiny_checkpoint, (5, 6, 7, 8, 9, 10), truncation_psi=0.9, noise="per_seed")
    annotations = read_annotations(tmp_path)
    sampler = sampler_of(tiny_checkpoint, truncation_psi=0.1)
    batches = list(regenerate(annotations, sampler, ("b8.conv1",), sha256_of(tiny_checkpoint)))
    assert [len(batch) for batch in batches] == [4, 1]
    images_BCHW = torch.cat([batch.images_BCHW for batch in batches])
    assert np.array_equal(to_uint8(images_BCHW).numpy(), annotations.images_NHWC)
    assert batches[0].features["b8.conv1"].shape[-2:] == (8, 8)


def test_another_checkpoint_is_refused_with_both_hashes(folder: Path, tiny_checkpoint: Path) -> None:
    annotations, sampler = read_annotations(folder), sampler_of(tiny_checkpoint)
    with pytest.raises(ConfigError, match=rf"{sha256_of(tiny_checkpoint)}.*{'0' * 64}"):
        next(regenerate(annotations, sampler, (), "0" * 64))


def test_images_that_come_out_differently_are_all_named(folder: Path) -> None:
    other = make_sampler(resolution=32)
    with pytest.raises(ConfigError, match="4 annotated images come out differently") as error:
        list(regenerate(read_annotations(folder), other, (), None))
    assert all(f"{seed:010d}: by up to" in str(error.value) for seed in SEEDS[:4])


@pytest.mark.parametrize(("levels", "is_refused"), [(2, False), (3, True)])
def test_rounding_is_no_difference(folder: Path, tiny_checkpoint: Path, levels: int, is_refused: bool) -> None:
    image_HWC = read_annotations(folder).images_NHWC[0].copy()
    value = int(image_HWC[4, 4, 0])
    image_HWC[4, 4, 0] = value + levels if value < 128 else value - levels
    (folder / "images/0000000003.png").write_bytes(encode_picture(image_HWC))
    about = json.loads((folder / "annotations.json").read_text())
    about["images"][0]["image_sha256"] = image_sha256(image_HWC)
    (folder / "annotations.json").write_text(json.dumps(about))
    batches = regenerate(read_annotations(folder), sampler_of(tiny_checkpoint), (), None)
    if is_refused:
        with pytest.raises(ConfigError, match="0000000003: by up to 3 levels"):
            list(batches)
    else:
        assert sum(len(batch) for batch in batches) == 4


def test_all_that_is_wrong_is_told_at_once(folder: Path) -> None:
    write_mask(folder, "0000000001", np.zeros((16, 32), np.uint8))
    write_mask(folder, "0000000041", np.zeros((32, 32), np.uint8))
    write_mask(folder, "0000000008", np.full((32, 32), 9, np.uint8))
    (folder / "masks/notes.txt").write_text("")
    (folder / "masks/0000000007.png").write_bytes(encode_picture(np.zeros((32, 32, 3), np.uint8)))
    (folder / "images/0000000003.png").write_bytes(encode_picture(np.zeros((32, 32, 3), np.uint8)))
    (folder / "images/0000000040.png").unlink()
    message = _message(folder)
    for problem in (
        "7 problems",
        "masks/0000000001.png: is 32 x 16; the images are 32 x 32 pixels",
        "masks/0000000041.png: the set has no such image; the nearest of its 5 images: 0000000040, 00000",
        "masks/0000000008.png: holds 9; allowed are 0 to 2 (background, dark, bright) and 255",
        "masks/notes.txt: is no PNG",
        "masks/0000000007.png: is a 8-bit RGB PNG",
        "images/0000000003.png: is not the image that annotations.json describes",
        "images/0000000040.png: is missing",
    ):
        assert problem in message, f"{problem}\n{message}"


def test_a_set_without_labels_or_with_one_class_teaches_nothing(folder: Path) -> None:
    for key in read_annotations(folder).keys:
        write_mask(folder, key, np.full((32, 32), 255, np.uint8))
    assert "no image has labels yet" in _message(folder)
    write_mask(folder, "0000000007", np.full((32, 32), 1, np.uint8))
    assert "all labels are dark" in _message(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 2}, "version"),
        ({"checkpoint_sha256": "x"}, "checkpoint_sha256"),
        ({"classes": ["background", "background"]}, "classes given twice: background"),
        ({"image_shape": {"height": 8192, "width": 32, "channels": 3}}, "at most 4096 per side"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_description_that_is_none(folder: Path, change: dict[str, object], problem: str) -> None:
    path = folder / "annotations.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert problem in _message(folder)
    path.write_text("{")
    assert "is no annotation set" in _message(folder)
    path.unlink()
    assert "`labelmill annotate pick" in _message(folder)


def test_a_set_is_written_once(folder: Path, tiny_checkpoint: Path) -> None:
    sampler = sampler_of(tiny_checkpoint)
    about = about_of(sampler, sha256_of(tiny_checkpoint))
    before = (folder / "annotations.json").read_bytes()
    write_set(folder, sampler, about, SEEDS, 4)
    assert (folder / "annotations.json").read_bytes() == before
    with pytest.raises(OutputError, match="holds another annotation set"):
        write_set(folder, sampler, about, SEEDS[:2], 4)
    (folder / "annotations.json").unlink()
    with pytest.raises(OutputError, match=r"holds other files, such as .*masks/"):
        write_set(folder, sampler, about, SEEDS, 4)


def test_an_interrupted_set_is_finished(folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    sampler = sampler_of(tiny_checkpoint)
    about = about_of(sampler, sha256_of(tiny_checkpoint))
    write_set(tmp_path / "cut", sampler, about, SEEDS, 4)
    (tmp_path / "cut/annotations.json").unlink()
    (tmp_path / "cut/images/0000000007.png").unlink()
    write_set(tmp_path / "cut", sampler, about, SEEDS, 4)
    for file in (tmp_path / "cut").rglob("*.*"):
        assert file.read_bytes() == (folder / file.relative_to(tmp_path / "cut")).read_bytes()


def test_gray_and_rectangular_images(tmp_path: Path) -> None:
    sampler = make_sampler(resolution=16, const_size=(4, 8), img_channels=1)
    about = write_set(tmp_path, sampler, about_of(sampler, "0" * 64), [4, 2], 2)
    mask_HW = np.zeros((16, 32), np.uint8)
    mask_HW[:, 20:] = 2
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/0000000002.png").write_bytes(encode_gray(mask_HW))
    annotations = read_annotations(tmp_path)
    assert about.image_shape.size == (16, 32) and annotations.images_NHWC.shape == (1, 16, 32, 1)
    assert len(list(regenerate(annotations, sampler, (), "0" * 64))) == 1
