"""What a file says of one image, whatever its format: regions with a label each, drawn from the first to the last.

Shape suffixes: H, W height and width; P points, each x and y in pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Inside = NDArray[np.bool_]
Points = NDArray[np.float64]

LARGEST_SIDE = 8192
"""Of the pictures that people draw on."""
_MOST_POINTS = 20_000
_MOST_CROSSING_POINTS = 1_500
_SLACK = 1e-6
_EDGE = 1.0
"""Pixels beyond the edge that tools let people place points in."""


class BadShapeError(ValueError):
    """A shape, or a file, that cannot be drawn. The message lacks its name."""


@dataclass(frozen=True)
class Region:
    """A part of an image with one label."""

    label: str
    draw: Callable[["Canvas"], Inside]
    """The region's pixels [H, W] at the size that people drew on. Raises BadShapeError."""
    name: str = ""
    """What messages call it, such as `shape 3 (hair)`."""


@dataclass(frozen=True)
class Canvas:
    """The size that people drew on."""

    height: int
    width: int
    scale: int
    """How many times larger it is than the generator's image."""
    stroke: int
    """Width of strokes in its pixels."""
    told: list[str] = field(default_factory=list)
    """What people should know of the shape that is drawn."""

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True)
class DrawnImage:
    """One image as a file describes it."""

    source: str
    """The file, and the place in it where it holds several images."""
    picture: str
    """What the file calls the image."""
    size: tuple[int, int]
    """Height and width that people drew on."""
    regions: tuple[Region, ...]
    """Later ones lie on top."""
    is_single: bool = False
    """Whether it is about one class by its name, so that others may say more of the same image."""
    embedded: str | None = field(default=None, repr=False)
    """The image itself as base64 text, where the file holds it."""
    image_sha256: str | None = None
    """Of the image's pixels, where the file states it."""


@dataclass
class Findings:
    """What is wrong with files, to be raised at once, and what people should know."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def of(self, source: str) -> Iterator[None]:
        """Collects the problem that a file, or a part of one, turns out to have."""
        try:
            yield
        except BadShapeError as error:
            self.problems.append(f"{source}: {error}")


def check_size(size: tuple[int, int]) -> None:
    """Raises BadShapeError for a picture of no size, or of one that no person draws on."""
    height, width = size
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise BadShapeError(f"says that its image is {width} x {height}; sides are from 1 to {LARGEST_SIDE}")


def checked_points(points: object, canvas: Canvas, least: int) -> Points:
    """Points [P, 2] float64 of x and y. Raises BadShapeError for too few, for what is no number, and where all lie
    outside of the image, or one so far that it must be a mistake."""
    try:
        points_P2 = np.asarray(points, np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        raise BadShapeError("its points are not pairs of numbers") from None
    if not np.isfinite(points_P2).all():
        raise BadShapeError("has a coordinate that is not a finite number")
    if not least <= len(points_P2) <= _MOST_POINTS:
        raise BadShapeError(f"has {len(points_P2)} points; {least} to {_MOST_POINTS:,} make such a shape")
    far_2 = np.array([canvas.width, canvas.height], np.float64)
    lowest_2, highest_2 = points_P2.min(axis=0), points_P2.max(axis=0)
    if (highest_2 < 0).any() or (lowest_2 > far_2).any():
        raise BadShapeError(f"lies outside of its image, which is {canvas.width} x {canvas.height}")
    if (lowest_2 < -far_2).any() or (highest_2 > 2 * far_2).any():
        raise BadShapeError(f"reaches far outside of its image, which is {canvas.width} x {canvas.height}")
    if (lowest_2 < -_EDGE).any() or (highest_2 > far_2 + _EDGE).any():
        canvas.told.append("reaches outside of its image, where it is cut off")
    return points_P2


def checked_polygon(points: object, canvas: Canvas) -> Points:
    """The corners [P, 2] of a polygon. Tells of one that crosses itself; raises as `checked_points` does."""
    points_P2 = checked_points(points, canvas, 3)
    if crosses_itself(points_P2):
        canvas.told.append("crosses itself; what lies inside follows the even-odd rule")
    return points_P2


def crosses_itself(points_P2: Points) -> bool:
    """Whether two sides of a polygon cross in the middle. Not looked for beyond some points."""
    if not 4 <= len(points_P2) <= _MOST_CROSSING_POINTS:
        return False
    ends_P2 = np.roll(points_P2, -1, axis=0)
    side_PP = _turn(points_P2[:, None], ends_P2[:, None], points_P2[None])
    end_side_PP = _turn(points_P2[:, None], ends_P2[:, None], ends_P2[None])
    parts_PP = (side_PP * end_side_PP < 0) & (np.abs(side_PP) > _SLACK) & (np.abs(end_side_PP) > _SLACK)
    return bool((parts_PP & parts_PP.T).any())


def _turn(start: Points, end: Points, point: Points) -> Points:
    """On which side of a line a point lies: twice the signed area of the triangle."""
    along, to = end - start, point - start
    return np.asarray(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0], np.float64)
