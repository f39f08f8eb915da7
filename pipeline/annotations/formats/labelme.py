"""LabelMe's JSON: one file per image, shapes in the order in which they lie on each other.

labelme itself is a GPL program of 700 MB with its libraries: only its format is read. Its labels `_background_` and
`__ignore__` mean what they say.

Shape suffixes: H, W height and width.
"""

import base64
import binascii
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labelmill.pipeline.annotations.formats import pillow_shapes
from labelmill.pipeline.annotations.formats.drawn import (
    BadShapeError,
    Canvas,
    DrawnImage,
    Findings,
    Inside,
    Points,
    Region,
    check_size,
    checked_points,
    checked_polygon,
)
from labelmill.pipeline.annotations.formats.parsed import parsed
from labelmill.pipeline.pictures.png import decode_gray, read_png_header

_PNG_OVERHEAD = 2**16


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True)

    label: str
    points: list[list[float]]
    shape_type: str | None = None
    mask: str | None = Field(None, repr=False)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    imagePath: str
    imageHeight: int
    imageWidth: int
    imageData: str | None = Field(None, repr=False)
    shapes: list[_Shape]


_DRAWN: dict[str, tuple[int, int | None, Callable[[Points, Canvas], Inside]]] = {
    "polygon": (3, None, pillow_shapes.polygon),
    "oriented_rectangle": (4, 4, pillow_shapes.polygon),
    "rectangle": (2, 2, pillow_shapes.rectangle),
    "circle": (2, 2, pillow_shapes.circle),
    "line": (2, 2, pillow_shapes.line),
    "linestrip": (2, None, pillow_shapes.line),
    "point": (1, 1, pillow_shapes.dots),
    "points": (1, None, pillow_shapes.dots),
}
"""Least and largest number of points, and the way to pixels."""


def is_labelme(values: Any) -> bool:
    """Whether JSON is LabelMe's."""
    return isinstance(values, dict) and "shapes" in values and "imagePath" in values


def read_labelme(values: Any, source: str, findings: Findings) -> list[DrawnImage]:
    """What the file says of its image; none where it says nothing usable, which `findings` then tell."""
    file = parsed(_File, values, source, findings)
    if file is None:
        return []
    size = (file.imageHeight, file.imageWidth)
    with findings.of(source):
        check_size(size)
        regions = tuple(_region(number, shape) for number, shape in enumerate(file.shapes, 1))
        return [DrawnImage(source, file.imagePath, size, regions, embedded=file.imageData)]
    return []


def _region(number: int, shape: _Shape) -> Region:
    name = f"shape {number} ({shape.label})"
    return Region(shape.label, partial(_draw, shape), name)


def _draw(shape: _Shape, canvas: Canvas) -> Inside:
    kind = shape.shape_type or "polygon"
    if kind == "mask":
        return _mask(shape, canvas)
    if kind not in _DRAWN:
        raise BadShapeError(f"is of the type {kind!r}; these have pixels: mask, {', '.join(_DRAWN)}")
    least, most, draw = _DRAWN[kind]
    points_P2 = checked_polygon(shape.points, canvas) if least > 2 else checked_points(shape.points, canvas, least)
    if most is not None and len(points_P2) > most:
        raise BadShapeError(f"has {len(points_P2)} points; a {kind} has {most}")
    return draw(points_P2, canvas)


def _mask(shape: _Shape, canvas: Canvas) -> Inside:
    """[H, W]: a PNG of the pixels within two corners, both included."""
    corners_P2 = checked_points(shape.points, canvas, 2)
    if shape.mask is None or len(corners_P2) != 2:
        raise BadShapeError("is a mask without pixels, or without its two corners")
    (left, top), (right, bottom) = corners_P2.astype(int).tolist()
    height, width = bottom - top + 1, right - left + 1
    if left < 0 or top < 0 or right >= canvas.width or bottom >= canvas.height or height < 1 or width < 1:
        raise BadShapeError(f"is a mask from {left}, {top} to {right}, {bottom}: not within its image")
    if len(shape.mask) > 3 * (height * width + _PNG_OVERHEAD):
        raise BadShapeError(f"is a mask of {width} x {height} in {len(shape.mask):,} characters, which is too many")
    try:
        png = base64.b64decode(shape.mask, validate=True)
    except (binascii.Error, ValueError):
        raise BadShapeError("is a mask that is not base64 text") from None
    header = read_png_header(png)
    if header is None or (header.height, header.width) != (height, width):
        raise BadShapeError(f"is a mask whose PNG is not of its corners' size, {width} x {height}")
    pixels_HW = decode_gray(png)
    if pixels_HW is None:
        raise BadShapeError("is a mask whose PNG cannot be decoded to gray")
    inside_HW = np.zeros(canvas.size, bool)
    inside_HW[top : bottom + 1, left : right + 1] = pixels_HW != 0
    return inside_HW
