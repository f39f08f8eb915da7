"""Pascal VOC's layout, read back by torchvision's own dataset."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.discs import disc, write_discs
from PIL import Image
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.dataset.export import unpacked
from labelmill.pipeline.dataset.export_voc import as_jpeg
from labelmill.pipeline.dataset.manifest import read_index, read_manifest
from labelmill.pipeline.pictures.mask_png import decode_mask
from labelmill.pipeline.pictures.overlay import class_colours
from labelmill.pipeline.shards.reader import Member
from labelmill.pipeline.store.store import Store


def test_torchvision_reads_every_split_to_the_pixel(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    output = write_discs(tmp_path / "out", samples=20)
    done = CliRunner().invoke(app, ["export", output, str(tmp_path / "voc"), "--format", "voc"], catch_exceptions=False)
    assert done.exit_code == 0 and "20 images with masks" in done.output
    seen = 0
    for split in read_index(Store.open(output)).splits:
        for image, mask in datasets.VOCSegmentation(tmp_path / "voc", year="2012", image_set=split, download=False):
            seen += 1
            assert image.mode == "RGB" and mask.mode == "P" and image.size == mask.size
    assert seen == 20
    for path in (tmp_path / "voc" / "VOCdevkit" / "VOC2012" / "SegmentationClass").iterdir():
        _, mask_HW = disc(int(path.stem))
        assert np.array_equal(decode_mask(path.read_bytes()), mask_HW)
        shown_HWC, colours = np.asarray(Image.open(path).convert("RGB")), np.asarray(class_colours(3))
        assert np.array_equal(shown_HWC, colours[mask_HW]) and len(np.unique(shown_HWC)) > 2


def test_images_are_jpeg_whatever_shards_hold(tmp_path: Path) -> None:
    output = write_discs(tmp_path / "out", samples=4)
    CliRunner().invoke(app, ["export", output, str(tmp_path / "voc"), "--format", "voc"], catch_exceptions=False)
    store = Store.open(output)
    manifest = read_manifest(store)
    for shard in read_index(store).shardlist:
        for sample in unpacked(store, shard, manifest):
            image = sample["image_HWC"]
            path = tmp_path / "voc" / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{image.key}.jpg"
            assert manifest.image_format == "png"
            shown_HWC = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
            _, jpeg = cv2.imencode(".jpg", disc(int(image.key))[0][:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
            assert np.array_equal(shown_HWC, cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB))
            assert as_jpeg(Member(path.name, memoryview(path.read_bytes())), "jpg") == path.read_bytes()
    refused = CliRunner().invoke(app, ["export", output, str(tmp_path / "other"), "--format", "yolo"])
    assert refused.exit_code == 2 and "there are coco and voc" in refused.output
