"""Masks at the generator's resolution to masks at the photo's, their edges moved to the photo's own.

Shape suffixes: h, w of the generator's images; H, W of the photo.
"""

import torch
from torch import Tensor

from labelmill.pipeline.labelers.common.joint_upsampling import snap_to_edges
from labelmill.pipeline.photos.frame import Frame
from labelmill.pipeline.pictures.photos import Pixels
from labelmill.schemas.sample import IGNORE

LARGEST_GUIDE = 1024
"""Longest side at which edges are looked for; what is larger is enlarged from there."""
OUTSIDE = IGNORE
"""Mask value of what `fit: crop` cut off."""


class Snapping:
    """One photo, and the way from maps of its frame to itself."""

    def __init__(self, image_HWC: Pixels, frame: Frame, channels: int, radius: int, device: torch.device) -> None:
        """frame: of the generator's size. radius: of the windows in which colours tell sides apart, in the generator's
        pixels; 0 moves no edge."""
        self._frame, self._radius, self._photo = frame, radius, image_HWC.shape[:2]
        self._large = frame.enlarged(LARGEST_GUIDE)
        guide_CHW = torch.from_numpy(self._large.put(image_HWC, channels)).to(device)
        self._guide_1CHW = guide_CHW[None]

    def soft(self, map_hw: Tensor) -> Tensor:
        """A map in [0, 1] [h, w] float32 on the part of the photo that the frame shows."""
        if self._radius == 0:
            return self._frame.take_back(map_hw)
        snapped_HW = snap_to_edges(map_hw[None, None], self._guide_1CHW, self._radius)[0, 0]
        return self._large.take_back(snapped_HW).clamp(0, 1)

    def mask(self, mask_hw: Tensor) -> Tensor:
        """Classes [H, W] uint8 on the CPU: foreground where it passes a half, and there the likeliest class. One class
        after the other: all at once would fill the memory."""
        foreground = self.soft((mask_hw != 0).float())
        best, classes = torch.zeros_like(foreground), torch.zeros_like(foreground, dtype=torch.uint8)
        for value in mask_hw.unique().tolist():
            if value == 0:
                continue
            share = self.soft((mask_hw == value).float())
            # Also where no class stands out, foreground is the first of them.
            wins = (share > best) | (classes == 0)
            classes.masked_fill_(wins, value)
            best = torch.maximum(best, share)
        return self._whole(torch.where(foreground > 0.5, classes, 0), OUTSIDE)

    def alpha(self, alpha_hw: Tensor) -> Tensor:
        """[H, W] uint8 on the CPU, 255 opaque."""
        return self._whole((self.soft(alpha_hw) * 255).round().to(torch.uint8), 0)

    def instances(self, instances_hw: Tensor) -> Tensor:
        """[H, W] int64 on the CPU, edges as they are."""
        return self._whole(self._frame.take_back(instances_hw.float(), mode="nearest").long(), 0)

    def _whole(self, part: Tensor, outside: int) -> Tensor:
        return self._frame.on_photo(part.cpu(), outside)


def mask_agreement(first_hw: Tensor, second_hw: Tensor) -> float:
    """Mean IoU of two masks over the classes that occur in either, ignored pixels of both left out."""
    known = (first_hw != IGNORE) | (second_hw != IGNORE)
    first, second = first_hw[known], second_hw[known]
    values = [value for value in torch.cat([first, second]).unique().tolist() if value != IGNORE]
    ious = [_iou(first == value, second == value) for value in values]
    return sum(ious) / len(ious) if ious else 0.0


def _iou(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum()) / float((first | second).sum())


def radius_for(size: tuple[int, int]) -> int:
    """Of the windows, in pixels of images of this size: a sixteenth of the shorter side."""
    return max(1, min(size) // 16)
