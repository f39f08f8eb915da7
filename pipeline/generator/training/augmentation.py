"""Differentiable augmentation of what the discriminator sees, so that it does not learn few images by heart.

Zhao et al. 2020, section 3.2 and its code's policy for StyleGAN2, "color,translation,cutout": reals and generated
images alike, in every step of both networks. All randomness comes from a given generator.

Shape suffixes: B batch, C channels, H height, W width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.schemas.training import Augmentation, DomainData, TrainingData

FEW_IMAGES = 5_000
"""Fewer images than this are augmented unless told otherwise; the paper gains most up to some thousands."""
TRANSLATION = 0.125
"""Largest shift, as a share of the side."""
CUTOUT = 0.5
"""Side of the square that is blanked, as a share of the image's."""


def is_augmented(asked: Augmentation, data: TrainingData, num_images: int) -> bool:
    """Whether a training augments. `auto` does for few images; a domain that draws its own is not short of them."""
    if asked == "auto":
        return num_images < FEW_IMAGES and not isinstance(data, DomainData)
    return asked == "diffaugment"


def augment(images_BCHW: Tensor, random: torch.Generator) -> Tensor:
    """Images of other brightness, saturation and contrast, shifted, with a square of zeros."""
    return _cut_out(_translate(_recolour(images_BCHW, random), random), random)


def _recolour(images_BCHW: Tensor, random: torch.Generator) -> Tensor:
    brightness, saturation, contrast = torch.rand(3, len(images_BCHW), 1, 1, 1, generator=random).to(images_BCHW.device)
    images_BCHW = images_BCHW + (brightness - 0.5)
    gray_B1HW = images_BCHW.mean(dim=1, keepdim=True)
    images_BCHW = (images_BCHW - gray_B1HW) * (saturation * 2) + gray_B1HW
    mean_B111 = images_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return (images_BCHW - mean_B111) * (contrast + 0.5) + mean_B111


def _translate(images_BCHW: Tensor, random: torch.Generator) -> Tensor:
    batch, _, height, width = images_BCHW.shape
    shifts = []
    for size in (height, width):
        most = int(size * TRANSLATION + 0.5)
        shifts.append(torch.randint(-most, most + 1, (batch, 1), generator=random).to(images_BCHW.device))
    rows_BH = (torch.arange(height, device=images_BCHW.device) + shifts[0]).add(1).clamp(0, height + 1)
    columns_BW = (torch.arange(width, device=images_BCHW.device) + shifts[1]).add(1).clamp(0, width + 1)
    padded_BHWC = functional.pad(images_BCHW, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    index_B11 = torch.arange(batch, device=images_BCHW.device)[:, None, None]
    return padded_BHWC[index_B11, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)


def _cut_out(images_BCHW: Tensor, random: torch.Generator) -> Tensor:
    batch, _, height, width = images_BCHW.shape
    inside = []
    for size in (height, width):
        side = int(size * CUTOUT + 0.5)
        centre_B1 = torch.randint(0, size + (1 - side % 2), (batch, 1), generator=random)
        position = torch.arange(size) - centre_B1 + side // 2
        inside.append(((position >= 0) & (position < side)).to(images_BCHW.device))
    hole_BHW = inside[0][:, :, None] & inside[1][:, None, :]
    return images_BCHW * ~hole_BHW[:, None]
