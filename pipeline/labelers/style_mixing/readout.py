"""Masks read from the generator's features by one linear map, learned from masks of style mixing in closed form.

A generator's features tell linearly what a pixel shows (Xu and Zheng, Linear Semantics in Generative Adversarial
Networks, CVPR 2021). A ridge regression of the masks of many images on the features of their pixels therefore finds
what the masks have in common, and averages out what clusters got wrong in one image or another.

No stack of upsampled features is ever made: resizing and a linear map commute, so features become scores at their own
resolution, and scores are resized. To learn, features are read at single pixels.

Shape suffixes: B batch, C channels, D all features of a pixel, K parts of the foreground, Q outputs (the parts, and the
foreground by either half of the images), S pixels that are read, H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec, conv_name, row_resolution
from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.common.linear_maps import layer_scores
from labelmill.pipeline.labelers.common.pixel_reading import read_pixels, some_pixels

# Convolutions of these resolutions are read. Below, they are too coarse; above, they hold texture, not meaning.
_LOWEST_RESOLUTION, _HIGHEST_RESOLUTION = 16, 256

# Penalty on a weight, as share of its feature's variance. From 1e-4 to 1e-2 it changes nothing.
_RIDGE = 1e-3

# Beside the common read-out there are two that every other image taught: how far they agree tells how sure a mask is.
NUM_HALVES = 2

_NOT_LAYERS = ("place", "bias")


def readout_layers(spec: GeneratorSpec) -> tuple[str, ...]:
    """Names of the convolutions that a generator's read-out needs."""
    lowest = min(_LOWEST_RESOLUTION, spec.resolution)
    rows = range(spec.num_ws - 1)
    return tuple(conv_name(row) for row in rows if lowest <= row_resolution(row) <= _HIGHEST_RESOLUTION)


def readout_size(spec: GeneratorSpec) -> tuple[int, int]:
    """Height and width of the maps that a generator's read-out gives."""
    return spec.size_at(min(spec.resolution, _HIGHEST_RESOLUTION))


def readout_shapes(spec: GeneratorSpec, num_parts: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a generator's read-out by name: its layers, `place` and `bias`."""
    widths, outputs = dict(spec.channels), num_parts + NUM_HALVES
    resolutions = {conv_name(row): row_resolution(row) for row in range(spec.num_ws - 1)}
    layers = {name: (widths[resolutions[name]], outputs) for name in readout_layers(spec)}
    return {**layers, "place": (outputs,), "bias": (outputs,)}


@dataclass(frozen=True)
class Readout:
    """A linear map from a pixel's features and place to the probabilities of the outputs."""

    weights: Mapping[str, Tensor]
    """float32: [C, Q] by layer; [Q] by `place`, for the share of images that have background there, and `bias`."""
    background_HW: Tensor
    """That share, at the resolution of the maps."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Convolutions whose features it reads."""
        return tuple(name for name in self.weights if name not in _NOT_LAYERS)

    def __call__(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Maps of the parts [B, K, H, W], and of both halves [B, 2, H, W], float32, mostly in [0, 1].

        features: [B, C, h, w] by layer, of all layers that it was taught with.
        """
        size = self.background_HW.shape
        maps_BQHW = self.weights["bias"][:, None, None] + self.weights["place"][:, None, None] * self.background_HW
        for name in self.layers:
            maps_BQHW = maps_BQHW + resize(layer_scores(features[name], self.weights[name]), size)
        return maps_BQHW[:, :-NUM_HALVES], maps_BQHW[:, -NUM_HALVES:]


class ReadoutFit:
    """Collects the normal equations of the regression, an image at a time."""

    def __init__(self, spec: GeneratorSpec, num_parts: int, background_HW: Tensor) -> None:
        """background_HW: share of images in which a place is background, of `readout_size`."""
        self._background_HW = background_HW
        self._shapes = readout_shapes(spec, num_parts)
        num_features = sum(shape[0] for name, shape in self._shapes.items() if name not in _NOT_LAYERS) + 2
        # Sums over millions of pixels: float64, and on the CPU, where solving it repeats to the bit.
        self._squares = [torch.zeros(num_features, num_features, dtype=torch.float64) for _ in range(NUM_HALVES)]
        self._products = [torch.zeros(num_features, num_parts, dtype=torch.float64) for _ in range(NUM_HALVES)]
        self._num_images = 0

    def add(self, features: Mapping[str, Tensor], parts_KHW: Tensor) -> None:
        """Learn from one image: features [C, h, w] by layer, and each part's mask of 0 and 1."""
        size, half = self._background_HW.shape, self._num_images % NUM_HALVES
        pixels_S = some_pixels(size.numel(), self._num_images).to(parts_KHW.device)
        place_1S = self._background_HW.flatten()[pixels_S][None]
        read = [read_pixels(features[name], pixels_S, size) for name in self._shapes if name not in _NOT_LAYERS]
        x_DS = torch.cat([*read, place_1S, torch.ones_like(place_1S)])
        y_KS = parts_KHW.float().flatten(1)[:, pixels_S]
        self._squares[half] += (x_DS @ x_DS.T).double().cpu()
        self._products[half] += (x_DS @ y_KS.T).double().cpu()
        self._num_images += 1

    def solve(self) -> Readout:
        """The read-out that all images taught, which are two at least."""
        assert self._num_images >= NUM_HALVES
        both = _ridge(self._squares[0] + self._squares[1], self._products[0] + self._products[1])
        pairs = zip(self._squares, self._products, strict=True)
        halves = [_ridge(squares, products.sum(dim=1, keepdim=True)) for squares, products in pairs]
        solved_DQ = torch.cat([both, *halves], dim=1).float().to(self._background_HW.device)
        pieces = solved_DQ.split([1 if name in _NOT_LAYERS else shape[0] for name, shape in self._shapes.items()])
        weights = {name: piece.view(self._shapes[name]) for name, piece in zip(self._shapes, pieces, strict=True)}
        return Readout(weights, self._background_HW)


def _ridge(squares_DD: Tensor, products_DK: Tensor) -> Tensor:
    """Weights [D, K] of the regression with the constant, the last feature, unpenalised."""
    count = squares_DD[-1, -1]
    means_D, target_K = squares_DD[-1, :-1] / count, products_DK[-1] / count
    covariance_DD = squares_DD[:-1, :-1] / count - means_D[:, None] * means_D
    covariance_DK = products_DK[:-1] / count - means_D[:, None] * target_K
    variance_D = covariance_DD.diagonal()
    penalty_D = _RIDGE * variance_D.clamp_min(1e-6 * variance_D.max().clamp_min(1e-12))
    weights_DK = torch.linalg.solve(covariance_DD + penalty_D.diag(), covariance_DK)
    return torch.cat([weights_DK, (target_K - means_D @ weights_DK)[None]])
