"""Shapes as COCO's tools draw them: polygons, and run lengths, plain or packed into text.

After pycocotools' maskApi.c (rleFrPoly, rleFrString), bit for bit as its 2.0.11 computes them, in NumPy: its C code
trusts the numbers in a file. CVAT and Label Studio turn polygons into masks by the same code.

Shape suffixes: H, W height and width; P points, each x and y; N pixels or numbers.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.annotations.formats.drawn import BadShapeError, Inside, Points

_UPSAMPLING = 5.0
_MOST_TEXT = 2**24


def polygon(points_P2: Points, size: tuple[int, int]) -> Inside:
    """[H, W]: a polygon's inside, its boundary followed in steps of a fifth of a pixel."""
    height, width = size
    u_N, v_N = _boundary(np.trunc(_UPSAMPLING * points_P2 + 0.5).astype(np.int64))
    steps_N = np.nonzero(u_N[1:] != u_N[:-1])[0] + 1
    x_N = (np.minimum(u_N[steps_N], u_N[steps_N - 1]) + 0.5) / _UPSAMPLING - 0.5
    y_N = (np.minimum(v_N[steps_N], v_N[steps_N - 1]) + 0.5) / _UPSAMPLING - 0.5
    # Where the boundary passes the centre line of a column, in or out.
    is_column_N = (np.floor(x_N) == x_N) & (x_N >= 0) & (x_N <= width - 1)
    x_N, y_N = x_N[is_column_N].astype(np.int64), np.ceil(y_N[is_column_N].clip(0, height)).astype(np.int64)
    toggles_N = np.zeros(height * width + 1, np.uint8)  # modulo 256, which leaves odd and even as they are
    np.add.at(toggles_N, x_N * height + y_N, 1)
    return _columns(np.cumsum(toggles_N[:-1], dtype=np.uint8) % 2 == 1, size)


def run_lengths(counts: Sequence[int] | NDArray[np.int64], size: tuple[int, int]) -> Inside:
    """[H, W] of lengths of runs down the columns, outside first. Raises BadShapeError unless they fill the image."""
    try:
        counts_N = np.asarray(counts, np.int64)
    except OverflowError:
        raise BadShapeError("has a run that is longer than any image") from None
    total = int(counts_N.sum()) if counts_N.size else 0
    if (counts_N < 0).any() or (counts_N > size[0] * size[1]).any() or total != size[0] * size[1]:
        raise BadShapeError(f"has run lengths of {total} pixels in all; its image has {size[0] * size[1]}")
    return _columns(np.repeat(np.arange(len(counts_N)) % 2 == 1, counts_N), size)


def packed_run_lengths(text: str, size: tuple[int, int]) -> Inside:
    """[H, W] of run lengths packed into text (LEB128 of six bits, differences from the run before the last)."""
    if len(text) > _MOST_TEXT:
        raise BadShapeError(f"has run lengths of {len(text):,} characters; at most {_MOST_TEXT:,}")
    counts: list[int] = []
    number = shift = 0
    for character in text:
        value = ord(character) - 48
        if not 0 <= value < 64 or shift > 30:
            raise BadShapeError("has run lengths that are not COCO's text")
        number |= (value & 31) << shift
        shift += 5
        if value & 32:
            continue
        if value & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    if shift:
        raise BadShapeError("has run lengths that end in the middle of a number")
    return run_lengths(counts, size)


def _boundary(points_P2: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every step along the closed boundary, in fifths of pixels: x [N] and y [N]."""
    parts_u, parts_v = [], []
    for (start_x, start_y), (end_x, end_y) in zip(points_P2, np.roll(points_P2, -1, axis=0), strict=True):
        wide, high = abs(end_x - start_x), abs(end_y - start_y)
        if wide == high == 0:
            continue
        is_flat = wide >= high
        is_flipped = start_x > end_x if is_flat else start_y > end_y
        xs, ys, xe, ye = (end_x, end_y, start_x, start_y) if is_flipped else (start_x, start_y, end_x, end_y)
        steps_N = np.arange(max(wide, high) + 1)
        steps_N = steps_N[::-1] if is_flipped else steps_N
        slope = (ye - ys) / wide if is_flat else (xe - xs) / high
        other_N = np.trunc((ys if is_flat else xs) + slope * steps_N + 0.5).astype(np.int64)
        parts_u.append(steps_N + xs if is_flat else other_N)
        parts_v.append(other_N if is_flat else steps_N + ys)
    if not parts_u:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    return np.concatenate(parts_u), np.concatenate(parts_v)


def _columns(inside_N: NDArray[np.bool_], size: tuple[int, int]) -> Inside:
    """[H, W] of pixels column by column."""
    return np.ascontiguousarray(inside_N.reshape(size[1], size[0]).T)
