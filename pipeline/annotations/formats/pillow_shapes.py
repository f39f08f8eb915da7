"""Shapes as LabelMe draws them: Pillow's, outlines included (labelme.utils.shape.shape_to_mask, checked against its
output pixel by pixel).

Strokes (lines, points) have no area of their own. LabelMe draws them in the image's pixels; here the generator's pixels
that a stroke passes are what it labels, whole: where people draw on an enlarged image, a thin stroke would otherwise
label none.

Shape suffixes: H, W height and width; P points, each x and y.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from labelmill.pipeline.annotations.formats.drawn import Canvas, Inside, Points


def polygon(points_P2: Points, canvas: Canvas) -> Inside:
    """[H, W]: a polygon with its outline; of one that crosses itself, what the even-odd rule calls inside."""
    return _drawn(canvas.size, lambda draw: draw.polygon(_pairs(points_P2), outline=1, fill=1))


def rectangle(points_P2: Points, canvas: Canvas) -> Inside:
    """[H, W]: a rectangle by two opposite corners, both included."""
    (left, top), (right, bottom) = points_P2.min(axis=0).tolist(), points_P2.max(axis=0).tolist()
    return _drawn(canvas.size, lambda draw: draw.rectangle(((left, top), (right, bottom)), outline=1, fill=1))


def circle(points_P2: Points, canvas: Canvas) -> Inside:
    """[H, W]: a circle by its centre and a point on it."""
    (x, y), (edge_x, edge_y) = points_P2.tolist()
    radius = math.hypot(x - edge_x, y - edge_y)
    return _disc(canvas.size, x, y, radius)


def line(points_P2: Points, canvas: Canvas) -> Inside:
    """[H, W]: the generator's pixels that a line through these points passes, `canvas.stroke` wide."""
    width = max(1, round(canvas.stroke / canvas.scale))
    pairs = _pairs(points_P2 / canvas.scale)
    return _enlarged(_drawn(_native(canvas), lambda draw: draw.line(pairs, fill=1, width=width)), canvas)


def dots(points_P2: Points, canvas: Canvas) -> Inside:
    """[H, W]: the generator's pixels that these points lie in, and those within half of `canvas.stroke`."""
    radius = canvas.stroke / canvas.scale // 2
    height, width = _native(canvas)
    inside_HW = np.zeros((height, width), bool)
    for x, y in (points_P2 / canvas.scale).tolist():
        inside_HW[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)] = True
        if radius:
            inside_HW |= _disc((height, width), x, y, radius)
    return _enlarged(inside_HW, canvas)


def _disc(size: tuple[int, int], x: float, y: float, radius: float) -> Inside:
    box = ((x - radius, y - radius), (x + radius, y + radius))
    return _drawn(size, lambda draw: draw.ellipse(box, outline=1, fill=1))


def _native(canvas: Canvas) -> tuple[int, int]:
    return canvas.height // canvas.scale, canvas.width // canvas.scale


def _enlarged(inside_HW: Inside, canvas: Canvas) -> Inside:
    return np.repeat(np.repeat(inside_HW, canvas.scale, axis=0), canvas.scale, axis=1)


def _drawn(size: tuple[int, int], draw: Callable[[ImageDraw.ImageDraw], None]) -> Inside:
    image = Image.new("L", (size[1], size[0]))
    draw(ImageDraw.Draw(image))
    return np.asarray(image, np.uint8) != 0


def _pairs(points_P2: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points_P2.tolist()]
