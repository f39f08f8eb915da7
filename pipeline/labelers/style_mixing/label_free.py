"""The foreground that style mixing finds without labels, as evidence for methods that tell classes apart.

Shape suffixes: B batch, K classes, H height, W width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.style_mixing.readout import Readout

# The read-out gives the foreground's probability as a regression does, mostly within .1 of 0 or 1; log odds of a pixel
# that it puts at .6 are then 2.
_WIDTH = 0.05


def foreground_probability(readout: Readout, features: Mapping[str, Tensor], size: tuple[int, ...]) -> Tensor:
    """Of each pixel [B, H, W] float32. size: of the maps."""
    parts_B1HW, _ = readout(features)
    return torch.sigmoid((resize(parts_B1HW, tuple(size))[:, 0] - 0.5) / _WIDTH)


def with_foreground(probabilities_BKHW: Tensor, foreground_BHW: Tensor) -> Tensor:
    """Probabilities [..., B, K, H, W], the background's first, times those of the foreground, as if both had looked at
    other evidence; sums are 1."""
    background_B1HW, others_BKHW = probabilities_BKHW[..., :1, :, :], probabilities_BKHW[..., 1:, :, :]
    foreground_B1HW = foreground_BHW[:, None]
    both_BKHW = torch.cat([background_B1HW * (1 - foreground_B1HW), others_BKHW * foreground_B1HW], dim=-3)
    return both_BKHW / both_BKHW.sum(dim=-3, keepdim=True).clamp_min(1e-12)


def within_foreground(maps_BKHW: Tensor, foreground_BHW: Tensor) -> Tensor:
    """Maps of classes [B, K, H, W], the background's first, that compete within a foreground which alone decides where
    the background is; sums are 1 where any class but the background has a share."""
    foreground_B1HW, others_BKHW = foreground_BHW[:, None], maps_BKHW[:, 1:]
    shares_BKHW = others_BKHW / others_BKHW.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.cat([1 - foreground_B1HW, shares_BKHW * foreground_B1HW], dim=1)
