"""Mask edges snapped to an image's: the guided filter, from maps of any lower resolution to the image's own.

Within each small window a map is taken to be linear in the image's colours (He, Sun and Tang, Guided Image Filtering,
PAMI 2013; colour guide, equations 19 to 21). The linear coefficients are found at the map's resolution and applied at
the image's (He and Sun, Fast Guided Filter, 2015), which both sharpens what is coarse and cleans what is noisy.

Shape suffixes: B batch, K maps, C colours, D colours a second time, h w resolution of the maps, H W of the images.
"""

import torch
from torch import Tensor
from torch.nn import functional

# Variance of colour, in units of the image's range [-1, 1], below which a window counts as flat.
_FLAT_VARIANCE = 0.01


def snap_to_edges(maps_BKhw: Tensor, images_BCHW: Tensor, radius: int) -> Tensor:
    """Maps at the images' resolution [B, K, H, W], their edges moved to those of the images.

    The images' sides are a multiple of the maps'. radius: of the windows, in pixels of the maps.
    """
    small_BChw = downsample(images_BCHW, maps_BKhw.shape[2:])
    slopes_BKChw, offsets_BKhw = _linear_models(maps_BKhw, small_BChw, radius)
    size = images_BCHW.shape[2:]
    slopes_BKCHW = resize(slopes_BKChw.flatten(1, 2), size).unflatten(1, slopes_BKChw.shape[1:3])
    return (slopes_BKCHW * images_BCHW[:, None]).sum(dim=2) + resize(offsets_BKhw, size)


def downsample(images_BCHW: Tensor, size: tuple[int, ...]) -> Tensor:
    """Means over squares [B, C, height, width]; these, the size, divide the images' by one number."""
    height, width = size
    factor = images_BCHW.shape[2] // height
    if factor == 1:
        return images_BCHW
    return images_BCHW.unflatten(3, (width, factor)).mean(dim=4).unflatten(2, (height, factor)).mean(dim=3)


def resize(maps_BKhw: Tensor, size: tuple[int, ...]) -> Tensor:
    """Bilinear, by the centres of pixels. size: height and width."""
    if maps_BKhw.shape[2:] == size:
        return maps_BKhw
    return functional.interpolate(maps_BKhw, size=size, mode="bilinear", align_corners=False)


def resample(maps_BKhw: Tensor, size: tuple[int, ...]) -> Tensor:
    """Means where maps become smaller, bilinear where they grow. size: height and width, of the maps' shape."""
    return downsample(maps_BKhw, size) if size[0] < maps_BKhw.shape[2] else resize(maps_BKhw, size)


def _linear_models(maps_BKhw: Tensor, images_BChw: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Slopes [B, K, C, h, w] and offsets [B, K, h, w] of the maps over the colours, averaged over windows."""
    means_BChw, means_BKhw = box_mean(images_BChw, radius), box_mean(maps_BKhw, radius)
    squares_BCDhw = box_mean(images_BChw[:, :, None] * images_BChw[:, None], radius)
    products_BKChw = box_mean(maps_BKhw[:, :, None] * images_BChw[:, None], radius)
    covariance_BCDhw = squares_BCDhw - means_BChw[:, :, None] * means_BChw[:, None]
    covariance_BKChw = products_BKChw - means_BKhw[:, :, None] * means_BChw[:, None]
    channels = range(images_BChw.shape[1])
    for channel in channels:
        covariance_BCDhw[:, channel, channel] += _FLAT_VARIANCE
    slopes_BKChw = _solve(covariance_BCDhw, covariance_BKChw)
    offsets_BKhw = means_BKhw - (slopes_BKChw * means_BChw[:, None]).sum(dim=2)
    return box_mean(slopes_BKChw, radius), box_mean(offsets_BKhw, radius)


def _solve(matrix_BCDhw: Tensor, right_BKChw: Tensor) -> Tensor:
    """Gaussian elimination in each pixel, no pivots: the matrices are symmetric and positive definite.

    Written out over the few channels, it repeats to the bit on every device.
    """
    rows = [list(row_BDhw.unbind(dim=1)) for row_BDhw in matrix_BCDhw.unbind(dim=1)]
    right = list(right_BKChw.unbind(dim=2))
    count = len(rows)
    for pivot in range(count):
        for row in range(pivot + 1, count):
            factor_Bhw = rows[row][pivot] / rows[pivot][pivot]
            for column in range(pivot, count):
                rows[row][column] = rows[row][column] - factor_Bhw * rows[pivot][column]
            right[row] = right[row] - factor_Bhw[:, None] * right[pivot]
    solved: list[Tensor] = [torch.empty(0)] * count
    for row in reversed(range(count)):
        known_BKhw = right[row]
        for column in range(row + 1, count):
            known_BKhw = known_BKhw - rows[row][column][:, None] * solved[column]
        solved[row] = known_BKhw / rows[row][row][:, None]
    return torch.stack(solved, dim=2)


def box_mean(maps: Tensor, radius: int) -> Tensor:
    """Means over windows of 2 radius + 1 pixels a side, over the last two axes; windows end at the border."""
    counts_HW = _box_sum(_box_sum(torch.ones_like(maps[(0,) * (maps.ndim - 2)]), radius, -1), radius, -2)
    return _box_sum(_box_sum(maps, radius, -1), radius, -2) / counts_HW


def _box_sum(maps: Tensor, radius: int, axis: int) -> Tensor:
    """Sums over windows along an axis, zeros beyond the border.

    Sums of 1, 2, 4, ... neighbours are joined as the binary digits of the window's width ask: few passes, and no
    cumulative sum, which loses precision and has no fixed order on a GPU.
    """
    if radius == 1:
        return _three_sum(maps, axis)
    padding = (radius, radius) if axis == -1 else (0, 0, radius, radius)
    run, length = functional.pad(maps, padding), maps.shape[axis]
    total, start, width = torch.zeros_like(maps), 0, 1
    while width <= 2 * radius + 1:
        if (2 * radius + 1) & width:
            total = total + run.narrow(axis, start, length)
            start += width
        size = run.shape[axis] - width
        if 2 * width <= 2 * radius + 1:
            run = run.narrow(axis, 0, size) + run.narrow(axis, width, size)
        width *= 2
    return total


def _three_sum(maps: Tensor, axis: int) -> Tensor:
    """What `_box_sum` gives for a radius of 1, to the bit, without padding: by far the commonest radius."""
    total, rest = maps.clone(), maps.shape[axis] - 1
    total.narrow(axis, 0, rest).add_(maps.narrow(axis, 1, rest))
    total.narrow(axis, 1, rest).add_(maps.narrow(axis, 0, rest))
    return total
