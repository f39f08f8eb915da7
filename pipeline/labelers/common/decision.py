"""From soft maps of the classes to masks at the images' resolution.

Shape suffixes: B batch, K parts of the foreground, C colours, h w resolution of the maps, H W of the images.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.joint_upsampling import snap_to_edges

# Below any probability that counts; keeps a sum above 0.
_LEAST = 1e-6
# Of the images that are decided together.
_MOST_PIXELS = 2**18


@dataclass(frozen=True)
class Decision:
    """Masks, and how close they were."""

    masks_BHW: Tensor
    """uint8: 0 background, 1 to K the parts of the foreground."""
    foreground_BHW: Tensor
    """Probability of foreground, float32 in [0, 1]; a mask's foreground is where it passes a half."""
    parts_BKHW: Tensor
    """How likely each part is beside the others, float32; without parts where the foreground is one."""

    def sharpness(self) -> Tensor:
        """How near probabilities are to the mask that was made of them: their soft IoU with it [B]."""
        return soft_iou((self.masks_BHW != 0).float(), self.foreground_BHW)

    def probabilities(self) -> Tensor:
        """Of background and each part, float32 [B, 1 + K, H, W], summing to 1: the parts share the foreground."""
        foreground_B1HW = self.foreground_BHW[:, None]
        if not self.parts_BKHW.shape[1]:
            return torch.cat([1 - foreground_B1HW, foreground_B1HW], dim=1)
        return torch.cat([1 - foreground_B1HW, foreground_B1HW * shares(self.parts_BKHW)], dim=1)


def shares(parts_BKHW: Tensor) -> Tensor:
    """Divided by their sum, so that they sum to 1; all alike where none is above 0."""
    parts_BKHW = parts_BKHW.clamp_min(_LEAST)
    return parts_BKHW / parts_BKHW.sum(dim=1, keepdim=True)


def decide(maps_BKhw: Tensor, images_BCHW: Tensor, radius: int) -> Decision:
    """Snap the parts' probabilities to the images' edges and decide each pixel.

    Foreground is where the parts together pass a half, and there the likeliest part. radius: see `snap_to_edges`.
    """
    foreground_B1hw = maps_BKhw.sum(dim=1, keepdim=True).clamp(0, 1)
    maps_BKhw = torch.cat([foreground_B1hw, maps_BKhw], dim=1) if maps_BKhw.shape[1] > 1 else foreground_B1hw
    snapped_BKHW = snap_to_edges(maps_BKhw, images_BCHW.float(), radius)
    foreground_BHW = snapped_BKHW[:, 0].clamp(0, 1)
    return Decision(likeliest(foreground_BHW, snapped_BKHW[:, 1:]), foreground_BHW, snapped_BKHW[:, 1:])


def images_at_once(size: tuple[int, int], batch_size: int) -> int:
    """How many images of a batch are decided together, so that memory does not grow with it: a divisor of it, for sizes
    choose kernels and thereby bits. size: height and width."""
    most = max(1, _MOST_PIXELS // prod(size))
    return max(count for count in range(1, batch_size + 1) if batch_size % count == 0 and count <= most)


def likeliest(foreground_BHW: Tensor, parts_BKHW: Tensor) -> Tensor:
    """Masks [B, H, W] uint8: background (0) where foreground does not pass a half, else the likeliest part.

    Without parts the foreground is one.
    """
    part_BHW = parts_BKHW.max(dim=1).indices + 1 if parts_BKHW.shape[1] else torch.ones_like(foreground_BHW)
    return torch.where(foreground_BHW > 0.5, part_BHW, 0).to(torch.uint8)
