"""From exact renders to training batches that also cover how generated images fall short of renders.

Image and mask move, scale and bend together, by fractions of a pixel; the image alone is blurred, blotched, noised,
recoloured and recompressed. Each batch is a function of its random source alone.

Shape suffixes: B batch, H, W height and width, C channels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.renders import FINE_IMAGE, Renders

_RENDERED, _AVERAGED = 0.35, 0.25  # shares of images drawn at their size, and averaged to it; others are warped
_BENDS = 4  # control points a side of the field that bends a picture


def training_batch(renders: Renders, indices: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """images_BCHW float32 in [-1, 1] and masks_BHW int64 of the renders at these indices."""
    kinds_B = random.random(len(indices))
    side = renders.resolution
    images_BCHW = torch.empty(len(indices), 3, side, side)
    masks_BHW = torch.empty(len(indices), side, side, dtype=torch.int64)
    for position, index in enumerate(indices):
        if kinds_B[position] < _RENDERED:
            images_BCHW[position] = _image(renders.images_NHWC[index])
        else:
            images_BCHW[position] = functional.avg_pool2d(_image(renders.fine_images_NHWC[index]), FINE_IMAGE)
        masks_BHW[position] = torch.from_numpy(renders.masks_NHW[index].astype(np.int64))
    warped = np.flatnonzero(kinds_B >= _RENDERED + _AVERAGED)
    if len(warped):
        images_BCHW[warped], masks_BHW[warped] = warp(renders, np.asarray(indices)[warped], random)
    mirrored = np.flatnonzero(random.random(len(indices)) < 0.5)
    images_BCHW[mirrored] = images_BCHW[mirrored].flip(3)
    masks_BHW[mirrored] = masks_BHW[mirrored].flip(2)
    return degrade(images_BCHW, random), masks_BHW


def warp(renders: Renders, indices: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Scale, turn, move and bend fine renders, then reduce them: colours by averaging, classes by points."""
    points_BHW2 = _sampling_points(len(indices), renders.resolution, random)
    mask_side = renders.fine_masks_NHW.shape[-1]
    fine_BCHW = torch.stack([_image(renders.fine_images_NHWC[index]) for index in indices])
    # Twice as many points as pixels each way, averaged, as a renderer does.
    moved_BCHW = functional.grid_sample(fine_BCHW, points_BHW2, padding_mode="border", align_corners=False)
    centres_BHW2 = functional.avg_pool2d(points_BHW2.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    columns_rows = ((centres_BHW2 + 1) * (mask_side / 2)).floor().clamp(0, mask_side - 1).long()
    masks_BHW = torch.from_numpy(np.stack([renders.fine_masks_NHW[index] for index in indices]).astype(np.int64))
    batch_B11 = torch.arange(len(indices))[:, None, None]
    return functional.avg_pool2d(moved_BCHW, 2), masks_BHW[batch_B11, columns_rows[..., 1], columns_rows[..., 0]]


def _sampling_points(num: int, resolution: int, random: np.random.Generator) -> Tensor:
    """Where each of 2R x 2R points of the new picture looks in the old one, [B, 2R, 2R, 2] in [-1, 1]."""
    angle_B = np.deg2rad(random.uniform(-8, 8, num))
    cos_B, sin_B = (turn(angle_B) / random.uniform(0.94, 1.2, num) for turn in (np.cos, np.sin))
    shift_B2 = random.uniform(-4, 4, (num, 2)) / resolution  # up to two pixels
    rows = np.stack([cos_B, -sin_B, shift_B2[:, 0], sin_B, cos_B, shift_B2[:, 1]], axis=1).reshape(num, 2, 3)
    side = 2 * resolution
    points_BHW2 = functional.affine_grid(torch.from_numpy(rows).float(), [num, 3, side, side], align_corners=False)
    strength_B111 = random.uniform(0, 1.2, (num, 1, 1, 1)) * 2 / resolution  # in pixels of the new picture
    bends_B2HW = strength_B111 * random.standard_normal((num, 2, _BENDS, _BENDS))
    field_B2HW = functional.interpolate(torch.from_numpy(bends_B2HW).float(), (side, side), mode="bicubic")
    return points_BHW2 + field_B2HW.permute(0, 2, 3, 1)


def degrade(images_BCHW: Tensor, random: np.random.Generator) -> Tensor:
    """Other colours, blotches, blur or sharpening, noise and JPEG, each on some images; [-1, 1] to [-1, 1]."""
    images_BCHW = _recolour(images_BCHW, random)
    images_BCHW = images_BCHW + _blotches(len(images_BCHW), images_BCHW.shape[-1], random)
    images_BCHW = _blur(images_BCHW, random)
    noise_B111 = _sometimes(random, len(images_BCHW), 0.5, 0.0, 0.12)
    images_BCHW = images_BCHW + noise_B111 * _normal(random, tuple(images_BCHW.shape))
    images_BCHW = images_BCHW.clamp(-1, 1)
    for position in np.flatnonzero(random.random(len(images_BCHW)) < 0.2):
        images_BCHW[position] = _jpeg(images_BCHW[position], int(random.integers(50, 96)))
    return images_BCHW


def _recolour(images_BCHW: Tensor, random: np.random.Generator) -> Tensor:
    """Gain and offset a channel, contrast, saturation."""
    num = len(images_BCHW)
    gain_B311 = _numbers(random.uniform(0.8, 1.2, (num, 1, 1, 1)) * random.uniform(0.92, 1.08, (num, 3, 1, 1)))
    offset_B311 = _numbers(random.normal(0, 0.08, (num, 1, 1, 1)) + random.normal(0, 0.05, (num, 3, 1, 1)))
    grey_B1HW = images_BCHW.mean(dim=1, keepdim=True)
    saturation_B111 = _numbers(random.uniform(0.7, 1.3, (num, 1, 1, 1)))
    return (grey_B1HW + saturation_B111 * (images_BCHW - grey_B1HW)) * gain_B311 + offset_B311


def _blotches(num: int, size: int, random: np.random.Generator) -> Tensor:
    """Smooth stains of a few pixels, which generators leave."""
    total_BCHW = torch.zeros(num, 3, size, size)
    for side in (size // 8, size // 4, size // 2):
        strength_B111 = _sometimes(random, num, 0.4, 0.0, 0.1)
        small_BCHW = strength_B111 * _normal(random, (num, 3, side, side))
        total_BCHW += functional.interpolate(small_BCHW, (size, size), mode="bicubic")
    return total_BCHW


def _blur(images_BCHW: Tensor, random: np.random.Generator) -> Tensor:
    """Blur with a 3 x 3 or, in every fifth image, exaggerate what such a blur takes away."""
    side_B111 = _numbers(random.uniform(0.0, 0.3, (len(images_BCHW), 1, 1, 1)))  # a neighbour's weight; 1/3: a box
    padded_BCHW = functional.pad(images_BCHW, (1, 1, 1, 1), mode="replicate")
    size = images_BCHW.shape[-1]
    left, here, right = (padded_BCHW[:, :, :, k : k + size] for k in range(3))
    across = side_B111 * left + (1 - 2 * side_B111) * here + side_B111 * right
    above, here, below = (across[:, :, k : k + size] for k in range(3))
    blurred_BCHW = side_B111 * above + (1 - 2 * side_B111) * here + side_B111 * below
    kind_B111 = random.random((len(images_BCHW), 1, 1, 1))
    amount_B111 = np.where(kind_B111 < 0.45, 1.0, np.where(kind_B111 < 0.65, -0.6, 0.0))
    return images_BCHW + _numbers(amount_B111) * (blurred_BCHW - images_BCHW)


def _jpeg(image_CHW: Tensor, quality: int) -> Tensor:
    pixels_HWC = ((image_CHW + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    coded, content = cv2.imencode(".jpg", pixels_HWC[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert coded
    decoded_HWC = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)
    return _image(decoded_HWC[:, :, ::-1])


def _image(image_HWC: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1).float() / 127.5 - 1


def _sometimes(random: np.random.Generator, num: int, share: float, least: float, most: float) -> Tensor:
    """[B, 1, 1, 1]: uniform in [least, most] on a share of the images, else 0."""
    values_B = np.where(random.random(num) < share, random.uniform(least, most, num), 0.0)
    return _numbers(values_B)[:, None, None, None]


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(random.standard_normal(shape, np.float32))


def _numbers(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
