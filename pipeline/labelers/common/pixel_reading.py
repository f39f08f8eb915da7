"""Features at single pixels, to learn from: no stack of upsampled features is ever made.

Shape suffixes: C channels, H height, W width, S pixels that are read.
"""

import torch
from torch import Tensor
from torch.nn import functional

# Pixels of an image that are read to learn; of smaller images, all.
MOST_PIXELS = 4096


def some_pixels(count: int, number: int, most: int = MOST_PIXELS) -> Tensor:
    """Which of `count` pixels of image `number` are read [S] int64: all, or as many as is enough, drawn for each image
    anew."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))[:most]


def read_pixels(features_CHW: Tensor, pixels_S: Tensor, size: tuple[int, ...]) -> Tensor:
    """Features [C, S] float32 at pixels of a height and width: what bilinear resizing to it would give there."""
    features_CHW = features_CHW.float()
    if features_CHW.shape[1:] == size:
        return features_CHW.flatten(1)[:, pixels_S]
    height, width = size
    rows_S, columns_S = (pixels_S // width + 0.5) / height * 2 - 1, (pixels_S % width + 0.5) / width * 2 - 1
    grid_S2 = torch.stack([columns_S, rows_S], dim=1)
    read = functional.grid_sample(
        features_CHW[None], grid_S2[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return read[0, :, 0]
