"""What a segmenter learns from: cross-entropy with masks, or with shares of the classes.

Shape suffixes: B batch, H height, W width, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.schemas.sample import IGNORE


def segmentation_loss(logits_BKHW: Tensor, masks_BHW: Tensor, shares_BKHW: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over pixels whose mask is not 255; 0 where there is none.

    logits_BKHW: float32. masks_BHW: int64 class indices. shares_BKHW: float32, the target in place of the mask's class:
    what each pixel is of each class, summing to 1 where the mask is not 255.
    """
    known_BHW = masks_BHW != IGNORE
    if shares_BKHW is None:
        total = functional.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORE, reduction="sum")
    else:
        entropy_BHW = functional.cross_entropy(logits_BKHW, shares_BKHW, reduction="none")
        total = (entropy_BHW * known_BHW).sum()
    return total / known_BHW.sum().clamp_min(1)


def shares_of_alpha(alphas_BHW: Tensor) -> Tensor:
    """Shares of background and foreground [B, 2, H, W] float32 of opacities uint8."""
    foreground_BHW = alphas_BHW.float() / 255
    return torch.stack([1 - foreground_BHW, foreground_BHW], dim=1)


def shares_of_levels(levels_BKHW: Tensor) -> Tensor:
    """Shares float32 of levels uint8, which sum to 255 as stored, and to nearly that once they were resized."""
    levels_BKHW = levels_BKHW.float()
    return levels_BKHW / levels_BKHW.sum(dim=1, keepdim=True).clamp_min(1)
