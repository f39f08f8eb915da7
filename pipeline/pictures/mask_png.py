"""Masks out of PNG files, refusing every kind of PNG whose pixels are not plainly class indices."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labelmill.pipeline.pictures.png import GRAY, PALETTE, Gray, PngHeader, decode_gray, read_png_header
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.sample import IGNORE

_KINDS = {2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
_WANTED = "masks are 8-bit gray PNG, each pixel its class index, 255 to ignore"
_CONVERT = (
    "masks are PNG whose pixels are class indices, 255 to ignore: 8-bit gray, palette indices or 1-bit. Convert with "
    'OpenCV: cv2.imwrite("a.png", indices_HW) of a uint8 array'
)


class MaskError(LabelmillError):
    """Masks that cannot be scored. The message names the first offenders and what would work."""


def decode_shard_mask(png: bytes) -> NDArray[np.uint8]:
    """The pixels [H, W] uint8 of an 8-bit gray PNG, as shards hold masks. Raises MaskError, whose message lacks the
    file's name, for any other."""
    header = _header(png)
    if header.colour_type != GRAY or header.bit_depth != 8:
        raise MaskError(f"is a {_kind(header)} PNG; {_WANTED}")
    return _gray(png).astype(np.uint8, copy=False)


def decode_mask(png: bytes) -> NDArray[np.uint8]:
    """Class indices [H, W] uint8 of a PNG that a person brings: gray of 8 bits, of 1 bit, or of 16 bits whose values
    8 could hold, or a palette's indices. Raises MaskError, whose message lacks the file's name, where pixels may mean
    something else: colours, 2 or 4 bits of gray, which tools make of gray levels, and palettes of grays."""
    header = _header(png)
    if header.colour_type == PALETTE:
        return _palette_indices(png)
    if header.colour_type != GRAY or header.bit_depth not in (1, 8, 16):
        raise MaskError(f"is a {_kind(header)} PNG; {_CONVERT}")
    gray_HW = _gray(png)
    if header.bit_depth == 1:  # OpenCV's 0 and 255
        return (gray_HW != 0).astype(np.uint8)
    if gray_HW.size and gray_HW.max() > IGNORE:
        raise MaskError(f"is a 16-bit gray PNG that holds {gray_HW.max()}; {_CONVERT}")
    return gray_HW.astype(np.uint8, copy=False)


def _header(png: bytes) -> PngHeader:
    header = read_png_header(png)
    if header is None:
        raise MaskError(f"is not a PNG; {_CONVERT}")
    return header


def _kind(header: PngHeader) -> str:
    return f"{header.bit_depth}-bit {_KINDS.get(header.colour_type, 'gray')}"


def _gray(png: bytes) -> Gray:
    """[H, W] as OpenCV reads a gray PNG: 1 bit as 0 and 255."""
    gray_HW = decode_gray(png)
    if gray_HW is None:
        raise MaskError("is a PNG that cannot be decoded to gray: damaged, cut, or too large")
    return gray_HW


def _palette_indices(png: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            indices_HW = np.asarray(image, np.uint8)
            colours_N3 = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MaskError(f"is a palette PNG that cannot be decoded: {error}") from error
    used = np.unique(indices_HW)
    if used.size and used[-1] >= len(colours_N3):
        raise MaskError(f"is a palette PNG that holds {used[-1]}, but has only {len(colours_N3)} colours")
    is_gray = bool((colours_N3[used] == colours_N3[used][:, :1]).all())
    if is_gray and (colours_N3[used][:, 0] != used).any():
        raise MaskError(
            f"is a palette PNG of grays that differ from their indices, as tools that shrink files make them: which of "
            f"the two are classes? {_CONVERT}"
        )
    return indices_HW
