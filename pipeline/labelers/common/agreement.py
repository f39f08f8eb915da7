"""How well masks agree: the measure that `fit` judges everything by, because it has no labels.

Shape suffixes: B batch, H height, W width.
"""

import torch
from torch import Tensor


def soft_iou(first_BHW: Tensor, second_BHW: Tensor) -> Tensor:
    """IoU of masks or of probabilities of foreground [B], the mean of foreground's and background's.

    Intersection is the sum of minima, union that of maxima; with masks of 0 and 1 that is the IoU. Floats in [0, 1];
    the second may be one [H, W] for all. A side that is empty in both counts as 0.
    """
    pairs = (first_BHW, second_BHW), (1 - first_BHW, 1 - second_BHW)
    ious = [
        torch.minimum(first, second).sum(dim=(1, 2)) / torch.maximum(first, second).sum(dim=(1, 2)).clamp_min(1e-6)
        for first, second in pairs
    ]
    return (ious[0] + ious[1]) / 2
