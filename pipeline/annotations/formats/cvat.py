"""CVAT's XML for images (version 1.1): shapes by `z_order`, then by their order in the file.

CVAT's own exports of masks turn polygons and boxes into pixels by COCO's code, and ellipses by OpenCV
(cvat/apps/dataset_manager/formats/transformations.py); so does this. Polylines and points are strokes. Masks are runs
along the rows of their box, outside first.

Shape suffixes: H, W height and width; P points.
"""

import math
from collections.abc import Callable
from functools import partial
from xml.etree import ElementTree

import cv2
import numpy as np

from labelmill.pipeline.annotations.formats import coco_shapes, pillow_shapes
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

_MOST_RUNS = 2**24


def is_cvat(content: bytes) -> bool:
    """Whether text is CVAT's XML for images."""
    head = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith((b"<?xml", b"<annotations")) and b"<annotations" in head


def read_cvat(content: bytes, source: str, findings: Findings) -> list[DrawnImage]:
    """What the file says of its images, those without any shape left out; mistakes go to `findings`."""
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        findings.problems.append(f"{source}: is XML with a document type or entities, which CVAT does not write")
        return []
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError) as error:
        findings.problems.append(f"{source}: is not XML: {error}")
        return []
    drawn = []
    if root.find("track") is not None:
        findings.problems.append(f"{source}: is of a video; export the images' annotations as `CVAT for images 1.1`")
    for image in root.iter("image"):
        name = image.get("name", "")
        with findings.of(f"{source}: image {name}"):
            size = (_whole(image, "height"), _whole(image, "width"))
            check_size(size)
            shapes = [shape for shape in image if shape.get("label") is not None and shape.tag != "tag"]
            shapes.sort(key=lambda shape: _whole(shape, "z_order", 0))
            if shapes:
                regions = tuple(_region(number, shape) for number, shape in enumerate(shapes, 1))
                drawn.append(DrawnImage(source, name, size, regions))
    return drawn


def _region(number: int, shape: ElementTree.Element) -> Region:
    label = shape.get("label", "")
    name = f"{shape.tag} {number} ({label})"
    draw = _DRAW.get(shape.tag)
    if draw is None:
        raise BadShapeError(f"{name}: has no pixels; these have: {', '.join(_DRAW)}")
    return Region(label, partial(draw, shape), name)


def _polygon(shape: ElementTree.Element, canvas: Canvas) -> Inside:
    return coco_shapes.polygon(checked_polygon(_points(shape), canvas), canvas.size)


def _box(shape: ElementTree.Element, canvas: Canvas) -> Inside:
    left, top, right, bottom = (_number(shape, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    corners_P2 = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    turned_P2 = rotated(corners_P2, corners_P2.mean(axis=0), _number(shape, "rotation", 0))
    return coco_shapes.polygon(checked_points(turned_P2, canvas, 4), canvas.size)


def _ellipse(shape: ElementTree.Element, canvas: Canvas) -> Inside:
    x, y, radius_x, radius_y = (_number(shape, name) for name in ("cx", "cy", "rx", "ry"))
    return ellipse(x, y, radius_x, radius_y, _number(shape, "rotation", 0), canvas)


def _line(shape: ElementTree.Element, canvas: Canvas) -> Inside:
    return pillow_shapes.line(checked_points(_points(shape), canvas, 2), canvas)


def _dots(shape: ElementTree.Element, canvas: Canvas) -> Inside:
    return pillow_shapes.dots(checked_points(_points(shape), canvas, 1), canvas)


def _mask(shape: ElementTree.Element, canvas: Canvas) -> Inside:
    left, top, width, height = (_whole(shape, name) for name in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > canvas.width or top + height > canvas.height:
        raise BadShapeError(f"is a mask of {width} x {height} at {left}, {top}: not within its image")
    text = shape.get("rle", "")
    if len(text) > _MOST_RUNS:
        raise BadShapeError(f"has runs of {len(text):,} characters; at most {_MOST_RUNS:,}")
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadShapeError("has runs that are not whole numbers") from None
    inside_HW = np.zeros(canvas.size, bool)
    inside_HW[top : top + height, left : left + width] = coco_shapes.run_lengths(counts, (width, height)).T
    return inside_HW


_DRAW: dict[str, Callable[[ElementTree.Element, Canvas], Inside]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "polyline": _line,
    "points": _dots,
    "mask": _mask,
}


def ellipse(x: float, y: float, radius_x: float, radius_y: float, rotation: float, canvas: Canvas) -> Inside:
    """[H, W]: OpenCV's filled ellipse, centre and radii rounded to whole pixels. rotation: degrees, clockwise."""
    reach_P2 = np.array([[x - radius_x, y - radius_y], [x + radius_x, y + radius_y]])
    checked_points(reach_P2, canvas, 2)
    pixels_HW = np.zeros(canvas.size, np.uint8)
    if not math.isfinite(rotation) or min(radius_x, radius_y) < 0:
        raise BadShapeError("has a radius below 0, or a rotation that is no number")
    radii = (round(radius_x), round(radius_y))
    cv2.ellipse(pixels_HW, (round(x), round(y)), radii, rotation % 360, 0, 360, 1, thickness=-1)
    return pixels_HW != 0


def rotated(points_P2: Points, centre_2: Points, degrees: float) -> Points:
    """Points turned clockwise, as the y axis points down."""
    if not math.isfinite(degrees):
        raise BadShapeError("has a rotation that is no number")
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn_22 = np.array([[cosine, sine], [-sine, cosine]])
    return np.asarray((points_P2 - centre_2) @ turn_22 + centre_2, np.float64)


def _points(shape: ElementTree.Element) -> Points:
    try:
        return np.array([[float(value) for value in pair.split(",")] for pair in shape.get("points", "").split(";")])
    except ValueError:
        raise BadShapeError(f"a {shape.tag} has points that are not pairs of numbers") from None


def _number(shape: ElementTree.Element, name: str, default: float | None = None) -> float:
    text = shape.get(name)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise BadShapeError(f"{name} should be a number, found {text!r}") from None


def _whole(shape: ElementTree.Element, name: str, default: float | None = None) -> int:
    value = _number(shape, name, default)
    if not math.isfinite(value):
        raise BadShapeError(f"{name} should be a whole number, found {value}")
    return int(value)
