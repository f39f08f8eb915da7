"""How far the fine detail of one set of images is from another's.

The sliced Wasserstein distance of Karras et al. (2018, section 5) between 7x7 patches of the finest level of a
Laplacian pyramid. Patches are not normalised here, unlike there, so that detail which is too faint counts as well;
a level is what an image holds beyond its 2x2 means, enlarged bilinearly (the discriminator's detail channels).

Shape suffixes: B batch, C channels, H height, W width, N images, P patches, D numbers of a patch, K directions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.generator.discriminator import with_detail

PATCH = 7
PATCHES_PER_IMAGE = 128
NUM_DIRECTIONS = 512
_DIRECTIONS_AT_ONCE = 32
SCALE = 1_000.0
"""Distances are given times this, as in the paper."""

Floats = NDArray[np.float32]


def detail_patches(images_BCHW: Tensor, seed: int) -> Floats:
    """Patches at random places, [B * 128, C * 49], of images float32 in [-1, 1] of even sides of 8 or more."""
    random, channels = np.random.RandomState(seed), images_BCHW.shape[1]
    detail_BCHW = with_detail(images_BCHW, 1.0)[:, channels:].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(detail_BCHW, (PATCH, PATCH), axis=(2, 3))
    shape = (len(images_BCHW), PATCHES_PER_IMAGE)
    rows_BP, columns_BP = (random.randint(0, size, shape) for size in windows.shape[2:4])
    index_B1 = np.arange(len(images_BCHW))[:, None]
    patches = windows[index_B1, :, rows_BP, columns_BP]
    return np.ascontiguousarray(patches.reshape(shape[0] * shape[1], -1), np.float32)


def sliced_distance(first_PD: Floats, second_PD: Floats, seed: int = 0) -> float:
    """Mean over random directions of the 1-Wasserstein distance between projections, times 1,000.

    Of equally many patches: the mean difference of their sorted projections.
    """
    assert first_PD.shape == second_PD.shape, (first_PD.shape, second_PD.shape)
    directions_DK = np.random.RandomState(seed).randn(first_PD.shape[1], NUM_DIRECTIONS).astype(np.float32)
    directions_DK /= np.linalg.norm(directions_DK, axis=0)
    totals: list[float] = []
    for some_DK in np.split(directions_DK, NUM_DIRECTIONS // _DIRECTIONS_AT_ONCE, axis=1):
        first_KP, second_KP = (np.sort((patches_PD @ some_DK).T, axis=1) for patches_PD in (first_PD, second_PD))
        totals += [float(total) for total in np.abs(first_KP - second_KP).mean(axis=1)]
    return SCALE * float(np.mean(totals))


def detail_distance(first_BCHW: Tensor, second_BCHW: Tensor) -> float:
    """Between as many images of one size; patches lie elsewhere in each set."""
    return sliced_distance(detail_patches(first_BCHW, seed=0), detail_patches(second_BCHW, seed=1))
