"""Probabilities of classes as bytes: a gray map per class, all of them in one picture, one below the other.

Shape suffixes: K classes, H, W height and width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Levels = NDArray[np.uint8]

FULL = 255
"""What the levels of all classes sum to at each pixel."""
_TOLERANCE = 1e-3
# Rounded at once, so that large images take no more memory than small ones.
_MOST_VALUES = 2**22


def to_levels(probabilities_KHW: Tensor) -> Levels:
    """Probabilities float32 [K, H, W] as uint8 levels that sum to 255 at each pixel.

    Each is off by less than one level, and the order of the classes stays: what is left over by rounding down goes to
    the largest remainders, among equal ones to the first class (Hamilton's method).
    """
    rows = max(1, _MOST_VALUES // (probabilities_KHW.shape[0] * probabilities_KHW.shape[2]))
    return np.concatenate([_to_levels(block_KhW).cpu().numpy() for block_KhW in probabilities_KHW.split(rows, 1)], 1)


def _to_levels(probabilities_KHW: Tensor) -> Tensor:
    sums_HW = probabilities_KHW.sum(dim=0)
    is_sound = bool(((probabilities_KHW >= 0) & (probabilities_KHW <= 1)).all())
    assert is_sound and bool(((sums_HW - 1).abs() <= _TOLERANCE).all()), "probabilities are from 0 to 1 and sum to 1"
    exact_KHW = probabilities_KHW / sums_HW * FULL
    levels_KHW = exact_KHW.floor()
    left_HW = FULL - levels_KHW.sum(dim=0)
    order_KHW = (exact_KHW - levels_KHW).sort(dim=0, descending=True, stable=True).indices
    first_K = torch.arange(len(levels_KHW), device=left_HW.device)
    return levels_KHW.scatter_add(0, order_KHW, (first_K[:, None, None] < left_HW).float()).byte()


def stacked(levels_KHW: Levels) -> Levels:
    """The maps one below the other [K * H, W]."""
    return levels_KHW.reshape(-1, levels_KHW.shape[-1])


def unstacked(pixels_HW: Levels, num_classes: int) -> Levels:
    """The maps [K, H, W] of a picture of them [K * H, W]."""
    return pixels_HW.reshape(num_classes, -1, pixels_HW.shape[1])


def sum_problem(levels_KHW: Levels) -> str | None:
    """What is wrong with the levels' sums, as the end of a sentence about them; None if nothing is."""
    sums_HW = levels_KHW.sum(axis=0, dtype=np.uint16)
    wrong_N2 = np.argwhere(sums_HW != FULL)
    if not len(wrong_N2):
        return None
    row, column = wrong_N2[0]
    return f"sum to {sums_HW[row, column]} instead of {FULL} in row {row}, column {column}"
