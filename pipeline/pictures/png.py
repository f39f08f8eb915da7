"""PNG: every lossless picture that labelmill writes, and what a PNG's header says.

Shape suffixes: H, W height and width; C the channels red, green, blue, or gray alone.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Gray = NDArray[np.uint8] | NDArray[np.uint16]

GRAY, PALETTE = 0, 3
"""Colour types, as a PNG's header numbers them."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDTH, _HEIGHT, _BIT_DEPTH, _COLOUR_TYPE = slice(16, 20), slice(20, 24), 24, 25
HEADER_BYTES = 33
"""Signature and IHDR, after which a PNG may carry text."""


@dataclass(frozen=True)
class PngHeader:
    """What a PNG says of its pixels before the first of them."""

    height: int
    width: int
    bit_depth: int
    colour_type: int


def encode_picture(image_HWC: NDArray[np.uint8]) -> bytes:
    """RGB or gray [H, W, C] uint8 as an 8-bit PNG of as many channels."""
    assert image_HWC.dtype == np.uint8 and image_HWC.ndim == 3 and image_HWC.shape[2] in (1, 3), image_HWC.shape
    if image_HWC.shape[2] == 1:
        return encode_gray(image_HWC[:, :, 0])
    return _encoded(np.asarray(cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGB2BGR), np.uint8))


def encode_cutout(image_HWC: NDArray[np.uint8]) -> bytes:
    """RGB with straight alpha [H, W, 4] uint8 as an 8-bit PNG."""
    assert image_HWC.dtype == np.uint8 and image_HWC.ndim == 3 and image_HWC.shape[2] == 4, image_HWC.shape
    return _encoded(np.asarray(cv2.cvtColor(np.ascontiguousarray(image_HWC), cv2.COLOR_RGBA2BGRA), np.uint8))


def encode_palette(indices_HW: NDArray[np.uint8], colours_N3: NDArray[np.uint8]) -> bytes:
    """[H, W] uint8 as a palette PNG whose index n is shown in colour n [N, 3], N at most 256; indices stay as they
    are."""
    image, content = Image.fromarray(indices_HW, "P"), io.BytesIO()
    image.putpalette(colours_N3.tobytes())
    image.save(content, "PNG")
    return content.getvalue()


def encode_gray(pixels_HW: Gray) -> bytes:
    """[H, W] uint8 or uint16 as a gray PNG of 8 or 16 bits."""
    assert pixels_HW.dtype in (np.uint8, np.uint16) and pixels_HW.ndim == 2, (pixels_HW.dtype, pixels_HW.shape)
    return _encoded(pixels_HW)


def read_png_header(png: bytes | memoryview) -> PngHeader | None:
    """None for what is not a PNG. Nothing is decoded, so a lie about the size costs nothing."""
    head = bytes(png[:HEADER_BYTES])
    if len(head) < HEADER_BYTES or not head.startswith(_SIGNATURE):
        return None
    return PngHeader(
        height=int.from_bytes(head[_HEIGHT], "big"),
        width=int.from_bytes(head[_WIDTH], "big"),
        bit_depth=head[_BIT_DEPTH],
        colour_type=head[_COLOUR_TYPE],
    )


def decode_gray(png: bytes | memoryview) -> Gray | None:
    """[H, W] uint8 or uint16 of a gray PNG, 1 bit as 0 and 255; None for what cannot be decoded to gray."""
    try:
        pixels_HW = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        return None
    if pixels_HW is None or pixels_HW.ndim != 2:
        return None
    if pixels_HW.dtype == np.uint16:
        return pixels_HW.astype(np.uint16, copy=False)
    return pixels_HW.astype(np.uint8, copy=False) if pixels_HW.dtype == np.uint8 else None


def decode_picture(png: bytes | memoryview, channels: int) -> NDArray[np.uint8] | None:
    """[H, W, C] uint8 of a PNG, as gray (1) or as RGB (3); None for what cannot be decoded. Look at the header first:
    memory follows from the size that it states."""
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        pixels = cv2.imdecode(np.frombuffer(png, np.uint8), flag)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8).reshape(*pixels.shape[:2], channels)


def _encoded(pixels: Gray) -> bytes:
    # No parameters: any would double time and size.
    done, encoded = cv2.imencode(".png", np.ascontiguousarray(pixels))
    assert done, f"OpenCV cannot write a PNG of {pixels.shape}"
    return bytes(encoded.tobytes())
