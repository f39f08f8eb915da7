"""The guided filter against least squares window by window, and what it is for: edges."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.labelers.common.joint_upsampling import box_mean, downsample, resample, resize, snap_to_edges


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 7])
def test_means_over_windows_end_at_the_border(radius: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 9, 11)
    expected = torch.empty_like(maps)
    for row in range(9):
        for column in range(11):
            window = maps[..., max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
            expected[..., row, column] = window.mean(dim=(-2, -1))
    torch.testing.assert_close(box_mean(maps, radius), expected)


def guided(map_HW: np.ndarray, image_CHW: np.ndarray, radius: int) -> np.ndarray:
    """The definition: in each window the best linear model of the map, with a penalty of .01 on its slopes, and in
    each pixel the mean of the models of all windows that hold it."""
    channels, height, width = image_CHW.shape
    slopes, offsets = np.zeros((height, width, channels)), np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            window = np.s_[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
            colours, values = image_CHW[:, *window].reshape(channels, -1).T, map_HW[window].ravel()
            # Ridge regression as least squares with rows for the penalty.
            count = len(values)
            penalty = np.sqrt(0.01 * count) * np.eye(channels)
            design = np.vstack(
                [np.hstack([colours, np.ones((count, 1))]), np.hstack([penalty, np.zeros((channels, 1))])]
            )
            model, *_ = np.linalg.lstsq(design, np.concatenate([values, np.zeros(channels)]), rcond=None)
            slopes[row, column], offsets[row, column] = model[:-1], model[-1]
    result = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            window = np.s_[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
            result[row, column] = slopes[window].mean(axis=(0, 1)) @ image_CHW[:, row, column] + offsets[window].mean()
    return result


@pytest.mark.parametrize(("channels", "radius", "width"), [(1, 1, 10), (3, 1, 10), (3, 2, 10), (4, 2, 10), (1, 2, 6)])
def test_at_one_resolution_it_is_the_guided_filter(channels: int, radius: int, width: int) -> None:
    torch.manual_seed(1)
    images_BCHW, maps_BKHW = torch.rand(2, channels, 10, width) * 2 - 1, torch.rand(2, 3, 10, width)
    found = snap_to_edges(maps_BKHW, images_BCHW, radius).numpy()
    for image in range(2):
        for part in range(3):
            expected = guided(maps_BKHW[image, part].double().numpy(), images_BCHW[image].double().numpy(), radius)
            np.testing.assert_allclose(found[image, part], expected, atol=2e-5)


def picture(size: int) -> tuple[Tensor, Tensor]:
    """A disc off the middle, red on a blue slope, and its mask."""
    row, column = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    mask = ((row - 0.47 * size) ** 2 + (column - 0.56 * size) ** 2 < (0.31 * size) ** 2).float()
    blue = 0.6 - row / size * 0.4
    return torch.stack([2 * mask - 1, torch.zeros_like(mask), blue * (1 - mask)])[None], mask[None, None]


@pytest.mark.parametrize("columns", [slice(0, 64), slice(8, 56)])
def test_a_coarse_map_gets_the_images_edges(columns: slice) -> None:
    image, mask = (tensor[..., columns] for tensor in picture(64))
    coarse = (downsample(mask, (16, mask.shape[3] // 4)) > 0.5).float()
    snapped = snap_to_edges(coarse, image, radius=2) > 0.5
    blurred = resize(coarse, mask.shape[2:]) > 0.5
    wrong = (snapped != mask.bool()).sum().item()
    assert wrong <= 5
    assert (blurred != mask.bool()).sum().item() > 50


def test_noise_within_a_window_is_cleaned() -> None:
    image, mask = picture(32)
    noisy = mask.clone()
    noisy[0, 0, 14, 14], noisy[0, 0, 2, 3] = 0.0, 1.0
    assert torch.equal(snap_to_edges(noisy, image, radius=2) > 0.5, mask.bool())


def test_a_flat_image_only_blurs() -> None:
    maps = torch.rand(1, 1, 8, 8)
    expected = box_mean(box_mean(maps, 1), 1)
    torch.testing.assert_close(snap_to_edges(maps, torch.zeros(1, 3, 8, 8), 1), expected)


def test_resampling() -> None:
    torch.manual_seed(2)
    maps = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(downsample(maps, (2, 2))[1, 2, 1, 0], maps[1, 2, 4:, :4].mean())
    torch.testing.assert_close(resample(maps, (4, 4)), downsample(maps, (4, 4)))
    expected = functional.interpolate(maps, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(maps, (16, 16)), expected)
    assert torch.equal(resample(maps, (8, 8)), maps)
    wide = maps[:, :, :4]
    torch.testing.assert_close(resample(wide, (2, 4))[1, 2, 1, 3], wide[1, 2, 2:, 6:].mean())
    expected = functional.interpolate(wide, size=(8, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(wide, (8, 16)), expected)
