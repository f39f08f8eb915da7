"""PNG: pixels come back exactly, headers are read without decoding, and nobody else encodes."""

import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import labelmill
from labelmill.pipeline.pictures.png import (
    GRAY,
    HEADER_BYTES,
    PALETTE,
    PngHeader,
    decode_gray,
    encode_gray,
    encode_picture,
    read_png_header,
)

ROOT = Path(labelmill.__file__).parent.parent
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(image_HWC=sizes.flatmap(lambda size: arrays(np.uint8, (*size, 3))))
def test_colours_come_back_as_another_library_reads_them(image_HWC: np.ndarray) -> None:
    png = encode_picture(image_HWC)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), image_HWC)
    assert read_png_header(png) == PngHeader(*image_HWC.shape[:2], bit_depth=8, colour_type=2)
    assert encode_picture(np.asfortranarray(image_HWC)) == png
    assert decode_gray(png) is None


@pytest.mark.parametrize(("dtype", "bit_depth"), [(np.uint8, 8), (np.uint16, 16)])
def test_grays_come_back_in_their_depth(dtype: type, bit_depth: int) -> None:
    pixels_HW = np.random.default_rng(0).integers(0, 2**bit_depth, (5, 7)).astype(dtype)
    png = encode_gray(pixels_HW)
    assert read_png_header(png) == PngHeader(5, 7, bit_depth, GRAY)
    decoded_HW = decode_gray(memoryview(png))
    assert decoded_HW is not None and decoded_HW.dtype == dtype and np.array_equal(decoded_HW, pixels_HW)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels_HW)


def test_a_gray_picture_has_one_channel() -> None:
    image_HWC = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert encode_picture(image_HWC) == encode_gray(image_HWC[:, :, 0])


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.float32)]
)
def test_what_is_no_gray_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        encode_gray(pixels)


def test_palettes_are_told_from_grays() -> None:
    stream = io.BytesIO()
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(stream, "PNG", bits=8)
    header = read_png_header(stream.getvalue())
    assert header is not None and header.colour_type == PALETTE


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", cv2.imencode(".jpg", np.zeros((9, 9), np.uint8))[1].tobytes()]
)
def test_what_is_no_png_has_no_header(data: bytes) -> None:
    assert read_png_header(data) is None


def test_a_header_alone_is_read_but_not_decoded() -> None:
    png = bytearray(encode_gray(np.zeros((4, 4), np.uint8))[:HEADER_BYTES])
    png[16:24] = b"\x7f\xff\xff\xff" * 2
    assert read_png_header(png) == PngHeader(2**31 - 1, 2**31 - 1, 8, GRAY)
    assert decode_gray(bytes(png)) is None


def test_nobody_else_encodes_png() -> None:
    modules = [path for package in ("pipeline", "schemas", "workers") for path in (ROOT / package).rglob("*.py")]
    encoding = re.compile(r"""imencode\(\s*["']\.png""")
    assert [path.name for path in modules if encoding.search(path.read_text(encoding="utf-8"))] == ["png.py"]
