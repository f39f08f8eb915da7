"""Label Studio's JSON: tasks with one annotation each, whose results are brush strokes, polygons and other shapes.

Coordinates are percentages. Polygons and boxes become pixels by COCO's code, as in Label Studio's own converter.
Brushes are RGBA pictures, packed by the scheme of thi.ng/rle-pack (label_studio_sdk.converter.brush.decode_rle), of
which the alpha channel counts.

Shape suffixes: H, W height and width; N numbers or bits.
"""

from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, RootModel

from labelmill.pipeline.annotations.formats import coco_shapes, pillow_shapes
from labelmill.pipeline.annotations.formats.cvat import ellipse, rotated
from labelmill.pipeline.annotations.formats.drawn import (
    BadShapeError,
    Canvas,
    DrawnImage,
    Findings,
    Inside,
    Region,
    check_size,
    checked_points,
    checked_polygon,
)
from labelmill.pipeline.annotations.formats.parsed import parsed

_KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "keypointlabels")
_OPAQUE = 128


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)

    format: str | None = None
    rle: list[int] | None = Field(None, repr=False)
    points: list[list[float]] | None = None
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0
    radiusX: float = 0
    radiusY: float = 0
    rotation: float = 0
    brushlabels: list[str] | None = None
    polygonlabels: list[str] | None = None
    rectanglelabels: list[str] | None = None
    ellipselabels: list[str] | None = None
    keypointlabels: list[str] | None = None


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: str
    value: _Value | None = None
    original_width: int = 0
    original_height: int = 0
    image_rotation: float = 0


class _Annotation(BaseModel):
    model_config = ConfigDict(frozen=True)

    was_cancelled: bool = False
    result: list[_Result]


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: int | None = None
    data: dict[str, Any]
    annotations: list[_Annotation]


class _File(RootModel[list[_Task]]):
    pass


def is_label_studio(values: Any) -> bool:
    """Whether JSON is Label Studio's."""
    return isinstance(values, list) and bool(values) and isinstance(values[0], dict) and "annotations" in values[0]


def read_label_studio(values: Any, source: str, findings: Findings) -> list[DrawnImage]:
    """What the file says of its images, tasks without results left out; mistakes go to `findings`."""
    file = parsed(_File, values, source, findings)
    drawn = []
    for number, task in enumerate(file.root if file is not None else [], 1):
        place = f"{source}: task {task.id if task.id is not None else number}"
        with findings.of(place):
            drawn += _of_task(task, place)
    return drawn


def _of_task(task: _Task, place: str) -> list[DrawnImage]:
    annotations = [each for each in task.annotations if not each.was_cancelled and each.result]
    if len(annotations) > 1:
        raise BadShapeError(f"has {len(annotations)} annotations; keep one of them, and remove or cancel the others")
    results = [each for each in annotations[0].result if each.type in _KINDS] if annotations else []
    if not results:
        return []
    sizes = {(each.original_height, each.original_width) for each in results}
    if len(sizes) > 1 or any(each.image_rotation for each in results):
        raise BadShapeError("has results of several image sizes, or of a rotated image; label it as it is")
    size = sizes.pop()
    check_size(size)
    regions = tuple(_region(number, each) for number, each in enumerate(results, 1))
    return [DrawnImage(place, _picture(task), size, regions)]


def _picture(task: _Task) -> str:
    """What the task calls its image: `image`, as templates name it, or else the first text that it has."""
    texts = [value for value in (task.data.get("image"), *task.data.values()) if isinstance(value, str)]
    if not texts:
        raise BadShapeError("names no image in its data")
    return texts[0]


def _region(number: int, result: _Result) -> Region:
    labels = getattr(result.value, result.type, None)
    if result.value is None or not labels or len(labels) > 1:
        raise BadShapeError(f"result {number} ({result.type}): has {labels or 'no'} label; a pixel has one class")
    name = f"result {number} ({labels[0]})"
    return Region(labels[0], partial(_draw, result.type, result.value), name)


def _draw(kind: str, value: _Value, canvas: Canvas) -> Inside:
    of_percent_2 = np.array([canvas.width, canvas.height]) / 100
    if kind == "brushlabels":
        if value.rle is None:
            raise BadShapeError("is a brush without pixels; export JSON, not JSON-MIN")
        return _brush(value.rle, canvas)
    if kind == "polygonlabels":
        if any(len(point) != 2 for point in value.points or []):
            raise BadShapeError("its points are not pairs of numbers")
        points_P2 = np.array(value.points or [], np.float64).reshape(-1, 2)
        return coco_shapes.polygon(checked_polygon(points_P2 * of_percent_2, canvas), canvas.size)
    x, y = np.array([value.x, value.y]) * of_percent_2
    if kind == "keypointlabels":
        return pillow_shapes.dots(checked_points([[x, y]], canvas, 1), canvas)
    if kind == "ellipselabels":
        radius_x, radius_y = np.array([value.radiusX, value.radiusY]) * of_percent_2
        return ellipse(x, y, radius_x, radius_y, value.rotation, canvas)
    width, height = np.array([value.width, value.height]) * of_percent_2
    corners_P2 = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    turned_P2 = rotated(corners_P2, corners_P2[0], value.rotation)
    return coco_shapes.polygon(checked_points(turned_P2, canvas, 4), canvas.size)


def _brush(packed: list[int], canvas: Canvas) -> Inside:
    """[H, W]: where the packed RGBA picture is opaque."""
    if any(not 0 <= byte <= 255 for byte in packed):
        raise BadShapeError("is a brush whose numbers are not bytes")
    pixels_N = unpacked(bytes(packed), 4 * canvas.height * canvas.width)
    return pixels_N.reshape(*canvas.size, 4)[:, :, 3] >= _OPAQUE


def unpacked(packed: bytes, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """The bytes [N] that thi.ng/rle-pack packed. Raises BadShapeError unless they are exactly this many."""
    bits = _Bits(packed)
    total, word_bits = bits.number(32), bits.number(5) + 1
    length_bits = [bits.number(4) + 1 for _ in range(4)]
    if total != count or word_bits != 8:
        raise BadShapeError(f"is a brush of {total} bytes; a picture of this size has {count}")
    pixels_N = np.zeros(count, np.uint8)
    start = 0
    while start < count:
        is_run = bits.number(1)
        length = bits.number(length_bits[bits.number(2)]) + 1
        end = start + length
        if end > count:
            raise BadShapeError("is a brush whose runs are longer than its picture")
        pixels_N[start:end] = bits.number(8) if is_run else bits.bytes(length)
        start = end
    return pixels_N


class _Bits:
    """Reads numbers of any width from bytes, the highest bit first."""

    def __init__(self, packed: bytes) -> None:
        self._bits_N = np.unpackbits(np.frombuffer(packed, np.uint8))
        self._place = 0

    def number(self, width: int) -> int:
        """The next bits as a number."""
        number = 0
        for bit in self._next(width).tolist():
            number = number << 1 | bit
        return number

    def bytes(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The next numbers of eight bits."""
        return np.packbits(self._next(8 * count))

    def _next(self, width: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        self._place += width
        if self._place > len(self._bits_N):
            raise BadShapeError("is a brush that ends early")
        return self._bits_N[self._place - width : self._place]
