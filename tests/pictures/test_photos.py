"""Photos as people have them: in subfolders, turned by EXIF, of many formats, among other files."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelmill.pipeline.pictures.photos import PhotoError, find_photos, read_photo

RED = np.zeros((6, 9, 3), np.uint8)
RED[:, :, 0] = 250


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "png", "webp", "bmp", "tif", "TIFF"])
def test_every_format_is_found_and_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"photo.{ending}"
    Image.fromarray(RED).save(path)
    assert find_photos(tmp_path).files == {"photo": path}
    assert np.abs(read_photo(path).astype(int) - RED).max() < 6


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    upper_red = RED.copy()
    upper_red[3:] = (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    Image.fromarray(upper_red).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    image_HWC = read_photo(tmp_path / "a.jpg")
    assert image_HWC.shape == (9, 6, 3)
    assert image_HWC[4, 5, 0] > 200 and image_HWC[4, 0, 2] > 200


def test_names_are_paths_and_each_folder_is_looked_into_once(tmp_path: Path) -> None:
    for place in ("b.jpg", "a.x.jpg", "sub/b.png", "sub/deep/c.bmp", ".hidden/d.jpg", "out/e.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RED).save(tmp_path / place)
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = find_photos(tmp_path, leave_out=tmp_path / "out")
    assert list(found.files) == ["a.x", "b", "sub/b", "sub/deep/c"]
    assert found.unreadable == () and found.skipped == {} and found.skipped_text == ""


def test_what_is_no_photo_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("<html>")
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("a.heic", "b.HEIC", "list"):
        (tmp_path / name).touch()
    found = find_photos(tmp_path)
    reasons = {line.split(": ")[0].rpartition("/")[2]: line.split(": ")[1] for line in found.unreadable}
    assert reasons.keys() == {"empty.jpg", "text.png", "lost.jpg", "pipe.jpg"}
    assert reasons["empty.jpg"] == "is empty" and reasons["pipe.jpg"] == "is not a file"
    assert found.skipped == {"": 1, ".heic": 2} and "1 without an ending, 2 .heic" in found.skipped_text


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="holds no photo"):
        find_photos(tmp_path)
    with pytest.raises(PhotoError, match="typo: cannot be read: No such file"):
        find_photos(tmp_path / "typo")


def test_a_photo_that_is_too_large_for_opencv_is_named(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, data = struct.pack(">IIBBBBB", 2**16, 2**16, 8, 2, 0, 0, 0), zlib.compress(bytes(100))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "large.png").write_bytes(png)
    with pytest.raises(PhotoError, match=r"large\.png: has more pixels than OpenCV can read"):
        read_photo(tmp_path / "large.png")
