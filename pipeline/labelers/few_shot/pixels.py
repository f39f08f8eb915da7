"""Labeled pixels of the annotated images, with the features that a head of single pixels learns from.

Shape suffixes: S pixels, D features of a pixel, P directions kept, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.labelers.common.pixel_reading import MOST_PIXELS
from labelmill.pipeline.labelers.few_shot.shots import Mask, Shots
from labelmill.pipeline.labelers.few_shot.statistics import Projection, read_features
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.sample import IGNORE

# Sides of the grid of tiles that the bootstrap weighs: pixels of a tile are much alike.
_TILES = 4


@dataclass(frozen=True)
class LabeledPixels:
    """Pixels of all annotated images, on the CPU."""

    x_SP: Tensor
    """Float64, projected; without a projection float32."""
    labels_S: Tensor
    """int64."""
    weights_S: Tensor
    """Float64: how many labeled pixels of its image and class each stands for."""
    image_S: Tensor
    """int64: number of its image."""
    tile_S: Tensor
    """int64: number of its tile among those of all images."""
    num_classes: int

    @property
    def num_images(self) -> int:
        return int(self.image_S.max()) + 1

    def of_images(self, wanted: Sequence[int]) -> "LabeledPixels":
        """Those of some images, which keep their numbers."""
        chosen_S = torch.isin(self.image_S, torch.tensor(list(wanted)))
        return LabeledPixels(
            self.x_SP[chosen_S],
            self.labels_S[chosen_S],
            self.weights_S[chosen_S],
            self.image_S[chosen_S],
            self.tile_S[chosen_S],
            self.num_classes,
        )


def read_labeled_pixels(shots: Shots, layers: Sequence[str], projection: Projection | None) -> LabeledPixels:
    """At most MOST_PIXELS of every image, a batch of images at a time; features are projected as they are read."""
    x, labels, weights, images, tiles = [], [], [], [], []
    number, size = 0, shots.masks_NHW.shape[1:]
    for batch in shots.batches(layers):
        for index in range(len(batch)):
            mask_HW = shots.masks_NHW[number]
            pixels_S, weights_S = labeled_pixels(mask_HW, number)
            with repeatable_kernels():
                x_SD = read_features(batch.features, index, layers, pixels_S, size).cpu()
            x.append(x_SD if projection is None else projection(x_SD))
            labels.append(torch.from_numpy(mask_HW.astype(np.int64)).flatten()[pixels_S])
            weights.append(weights_S)
            images.append(torch.full_like(pixels_S, number))
            tiles.append(_tiles(pixels_S, size) + number * _TILES * _TILES)
            number += 1
    return LabeledPixels(
        torch.cat(x), torch.cat(labels), torch.cat(weights), torch.cat(images), torch.cat(tiles), len(shots.classes)
    )


def labeled_pixels(mask_HW: Mask, number: int) -> tuple[Tensor, Tensor]:
    """Which pixels of a mask are read [S] int64 in rising order, and their weights [S] float64: all that are labeled,
    or of too many as many of each class as is fair, small classes whole. number: of the image, for the draw."""
    mask_P = mask_HW.flatten()
    values, counts = np.unique(mask_P[mask_P != IGNORE], return_counts=True)
    if counts.sum() <= MOST_PIXELS:
        pixels_S = torch.from_numpy(np.flatnonzero(mask_P != IGNORE))
        return pixels_S, torch.ones(len(pixels_S), dtype=torch.float64)
    source = np.random.default_rng(number)
    # Half of the pixels by the classes' shares, half alike.
    quotas = np.minimum(counts, MOST_PIXELS // 2 * counts // counts.sum() + MOST_PIXELS // 2 // len(values))
    picked, weights = [], []
    for value, count, quota in zip(values, counts, quotas, strict=True):
        picked.append(source.permutation(np.flatnonzero(mask_P == value))[:quota])
        weights.append(np.full(quota, count / quota))
    order = np.argsort(np.concatenate(picked))
    return torch.from_numpy(np.concatenate(picked)[order]), torch.from_numpy(np.concatenate(weights)[order])


def _tiles(pixels_S: Tensor, size: Sequence[int]) -> Tensor:
    """The tile of each pixel of an image, 0 to 15."""
    height, width = size
    return pixels_S // width * _TILES // height * _TILES + pixels_S % width * _TILES // width
