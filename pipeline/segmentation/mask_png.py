"""Masks out of PNG files, refusing every kind of PNG that OpenCV would read as something else."""

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.errors import LabelmillError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Where a PNG's header says of bit depth and colour type.
_BIT_DEPTH, _COLOUR_TYPE, _HEADER_BYTES = 24, 25, 33
_GRAY = 0
_KINDS = {2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}
_WANTED = "masks are 8-bit gray PNG, each pixel its class index, 255 to ignore"


class MaskError(LabelmillError):
    """Masks that cannot be scored. The message names the first offenders and what would work."""


def decode_mask(png: bytes) -> NDArray[np.uint8]:
    """Class indices [H, W] uint8 as stored. Raises MaskError, whose message lacks the file's name."""
    if len(png) < _HEADER_BYTES or not png.startswith(_SIGNATURE):
        raise MaskError(f"is no PNG; {_WANTED}")
    bit_depth, colour_type = png[_BIT_DEPTH], png[_COLOUR_TYPE]
    if colour_type != _GRAY or bit_depth != 8:
        kind = _KINDS.get(colour_type, "gray")
        raise MaskError(f"is a {bit_depth}-bit {kind} PNG; {_WANTED}")
    try:
        mask_HW = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # more pixels than OpenCV takes
        mask_HW = None
    if mask_HW is None or mask_HW.ndim != 2 or mask_HW.dtype != np.uint8:
        raise MaskError("is a PNG that cannot be decoded to gray: damaged, cut, or too large")
    return mask_HW.astype(np.uint8, copy=False)
