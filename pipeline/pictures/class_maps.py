"""Probabilities of classes as bytes: a gray map per class, all of them in one picture, one below the other.

Shape suffixes: B batch, K classes, H, W height and width, X anything.
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


def to_levels(probabilities_KHW: Tensor) -> Tensor:
    """Probabilities float32 [K, H, W] as uint8 levels [K, H, W] that sum to 255 at each pixel, on the same device.

    Each is off by less than one level, and the order of the classes stays: what is left over by rounding down goes to
    the largest remainders, among equal ones to the first class (Hamilton's method). What are no probabilities
    (`sum_to_one`) gives levels that mean nothing.
    """
    rows = max(1, _MOST_VALUES // (probabilities_KHW.shape[0] * probabilities_KHW.shape[2]))
    return torch.cat([_to_levels(block_KhW) for block_KhW in probabilities_KHW.split(rows, 1)], 1)


def batch_levels(probabilities_BKHW: Tensor) -> Tensor:
    """`to_levels` of each image."""
    return torch.stack([to_levels(probabilities_KHW) for probabilities_KHW in probabilities_BKHW])


def are_shares(values_BX: Tensor) -> Tensor:
    """Which images [B] have values from 0 to 1 alone, bool, on the same device."""
    return ((values_BX >= 0) & (values_BX <= 1)).flatten(1).all(dim=1)


def sum_to_one(probabilities_BKHW: Tensor) -> Tensor:
    """Which images [B] have probabilities: from 0 to 1, and summing to 1 over the classes at each pixel."""
    is_one_BHW = (probabilities_BKHW.sum(dim=1) - 1).abs() <= _TOLERANCE
    return are_shares(probabilities_BKHW) & is_one_BHW.flatten(1).all(dim=1)


def _to_levels(probabilities_KHW: Tensor) -> Tensor:
    exact_KHW = probabilities_KHW / probabilities_KHW.sum(dim=0) * FULL
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
