"""Boxes around things, and which of those that a detector gives can be used."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.instances import MOST_INSTANCES

# Boxes of one class that share so much of their union are one thing seen twice.
_DUPLICATE_IOU = 0.95


class TooManyInstancesError(LabelmillError):
    """An image has more boxes than an instance picture has numbers for."""


@dataclass(frozen=True)
class Box:
    """A box within an image, in pixels from its upper left corner."""

    label: str
    """Its class."""
    score: float
    """0 to 1."""
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def corner_and_size(self) -> tuple[float, float, float, float]:
        """Left, top, width and height, as COCO has them, to a thousandth of a pixel."""
        return (round(self.left, 3), round(self.top, 3), round(self.width, 3), round(self.height, 3))

    def iou(self, other: "Box") -> float:
        """Intersection over union of both areas."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        shared = max(0.0, across) * max(0.0, down)
        return shared / (self.width * self.height + other.width * other.height - shared)


@dataclass(frozen=True)
class FoundBox:
    """What a detector says, unchecked."""

    label: Any
    score: Any
    box: Any
    """Four numbers: left, top, width, height."""


def usable_boxes(found: Iterable[FoundBox], size: tuple[int, int], image: str) -> tuple[tuple[Box, ...], list[str]]:
    """The boxes that can be used, those of highest score first, and a line for each other one.

    size: the image's height and width; boxes are cut off at its border. image: its name, for the lines. Raises
    TooManyInstancesError for more than an instance picture has numbers for.
    """
    usable: list[Box] = []
    problems: list[str] = []
    for number, each in enumerate(found, start=1):
        box = _box(each)
        problem = box if isinstance(box, str) else _problem(box, size)
        if problem is None:
            assert isinstance(box, Box)
            usable.append(_within(box, size))
        else:
            problems.append(_line(image, f"box {number}", each.box, problem))
    usable.sort(key=lambda box: -box.score)
    kept: list[Box] = []
    for box in usable:
        if any(box.label == other.label and box.iou(other) >= _DUPLICATE_IOU for other in kept):
            name = f"box of {box.label!r} with score {box.score:g}"
            problems.append(_line(image, name, list(box.corner_and_size), "is there already, with a score as high"))
        else:
            kept.append(box)
    if len(kept) > MOST_INSTANCES:
        raise TooManyInstancesError(
            f"{image}: has {len(kept)} boxes, and at most {MOST_INSTANCES} instances of an image are numbered; raise "
            f"the detector's least score, or leave boxes out"
        )
    return tuple(kept), problems


def _line(image: str, name: str, values: Any, problem: str) -> str:
    return f"instances: {image}: {name} {str(values)[:80]} {problem}; it is left out"


def _box(found: FoundBox) -> Box | str:
    """The box, or what is wrong with the numbers themselves."""
    values, score = found.box, found.score
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(_is_number(value) for value in values):
        return "is not four numbers [x, y, width, height]"
    if not isinstance(found.label, str) or not found.label.strip():
        return "has no class"
    if not _is_number(score) or not 0 <= score <= 1:
        return f"has a score of {str(score)[:20]}, which is not from 0 to 1"
    x, y, width, height = map(float, values)
    if not all(isfinite(value) for value in (x, y, width, height, x + width, y + height)):
        return "holds values that are no finite numbers"
    return Box(found.label, float(score), x, y, x + width, y + height)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problem(box: Box, size: tuple[int, int]) -> str | None:
    if box.width < 0 or box.height < 0:
        return "has swapped corners: its width or height is negative"
    if box.width == 0 or box.height == 0:
        return "is empty: its width or height is 0"
    height, width = size
    if box.right <= 0 or box.bottom <= 0 or box.left >= width or box.top >= height:
        return f"lies outside the image of {width} x {height} pixels"
    within = _within(box, size)
    if within.width * within.height <= 1:
        return "covers one pixel of the image at most, in which nothing can be told apart"
    return None


def _within(box: Box, size: tuple[int, int]) -> Box:
    height, width = size
    return replace(
        box,
        left=max(0.0, box.left),
        top=max(0.0, box.top),
        right=min(float(width), box.right),
        bottom=min(float(height), box.bottom),
    )
