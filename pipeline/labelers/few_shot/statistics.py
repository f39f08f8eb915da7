"""What images without annotations tell of features: how they vary, and which of it is mere colour.

Shape suffixes: B batch, N variants, S pixels, C channels, D features of a pixel over all layers, P directions kept,
L rows of w.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.labelers.common.pixel_reading import read_pixels, some_pixels
from labelmill.pipeline.process.device import repeatable_kernels

# Pixels per image: those of an image resemble each other, so that more images say more than more pixels.
_PIXELS = 1024

# A feature that varies by less than this share of the one that varies most counts as constant.
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class FeatureStatistics:
    """Float64, on the CPU, where what follows repeats to the bit."""

    mean_D: Tensor
    covariance_DD: Tensor
    recolouring_DD: Tensor | None
    """Covariance of a pixel's features over the style-mixed variants of its image; None where nobody asked."""


@dataclass(frozen=True)
class Projection:
    """A linear map to the directions that a head learns from."""

    mean_D: Tensor
    matrix_DP: Tensor

    def __call__(self, x_SD: Tensor) -> Tensor:
        """Float64 [S, P]."""
        return (x_SD.double() - self.mean_D) @ self.matrix_DP


class StatisticsCollector:
    """Sums over images, a batch at a time."""

    def __init__(self, widths: Mapping[str, int], size: tuple[int, int]) -> None:
        """widths: channels by layer. size: of the maps whose pixels are read."""
        self._layers, self._size = tuple(widths), size
        self._num_features = sum(widths.values())
        self._total, self._recolouring = self._zeros(), self._zeros()
        self._sum_D = torch.zeros(self._num_features, dtype=torch.float64)
        self._num_images = self._num_pixels = self._num_free = 0

    def add(self, batch: Batch) -> None:
        """Learn how features vary over images and pixels."""
        for index in range(len(batch)):
            x_SD = self._read(batch.features, index, self._pixels(self._num_images))
            self._total += _product(x_SD, x_SD)
            self._sum_D += x_SD.double().sum(dim=0).cpu()
            self._num_pixels += len(x_SD)
            self._num_images += 1

    def add_variants(self, number: int, variants: Iterable[Mapping[str, Tensor]]) -> None:
        """Learn how features vary over an image's variants, whose features [N, C, h, w] by layer come in parts."""
        pixels_S = self._pixels(number)
        read = [self._read(some, index, pixels_S) for some in variants for index in range(len(some[self._layers[0]]))]
        x_NSD = torch.stack(read)
        x_NSD -= x_NSD.mean(dim=0)
        for x_SD in x_NSD:
            self._recolouring += _product(x_SD, x_SD)
        self._num_free += (len(read) - 1) * len(pixels_S)

    def statistics(self) -> FeatureStatistics:
        """What was learned. The images' covariance is that around their common mean."""
        mean_D = self._sum_D / self._num_pixels
        covariance_DD = self._total / self._num_pixels - mean_D[:, None] * mean_D
        recolouring_DD = self._recolouring / self._num_free if self._num_free else None
        return FeatureStatistics(mean_D, covariance_DD, recolouring_DD)

    def _zeros(self) -> Tensor:
        return torch.zeros(self._num_features, self._num_features, dtype=torch.float64)

    def _pixels(self, number: int) -> Tensor:
        return some_pixels(self._size[0] * self._size[1], number, _PIXELS)

    def _read(self, features: Mapping[str, Tensor], index: int, pixels_S: Tensor) -> Tensor:
        return read_features(features, index, self._layers, pixels_S, self._size)


def read_features(
    features: Mapping[str, Tensor], index: int, layers: Iterable[str], pixels_S: Tensor, size: tuple[int, ...]
) -> Tensor:
    """Features [S, D] float32 at pixels of one image, layers side by side. size: height and width that pixels count
    in."""
    read = [read_pixels(features[name][index], pixels_S.to(features[name].device), size) for name in layers]
    return torch.cat(read).T


def variant_features(
    generator: Generator, batch: Batch, donors_NLD: Tensor, crossover: int, layers: Iterable[str]
) -> Iterable[dict[str, Tensor]]:
    """Features [1, C, h, w] by layer of a single image's variants, one at a time: rows of w from `crossover` on are a
    donor's. One after another, for their features are many."""
    assert len(batch) == 1
    with repeatable_kernels():
        for donor_LD in donors_NLD:
            ws_BLD = batch.ws_BLD.clone()
            ws_BLD[:, crossover:] = donor_LD[crossover:]
            yield generator.synthesize(ws_BLD, batch.noise, taps=tuple(layers)).features


def project(statistics: FeatureStatistics, normalisation: str, components: int | None) -> Projection:
    """The directions that a head learns from: features as they are (`none`), `standardised`, or in units in which a
    standard deviation of 1 over images and one over recolourings weigh alike (`style`).

    A penalty on the squared coefficients of a linear head then is one on w' (I + S) w, S the covariance of standardised
    features under recolouring. components: the leading principal ones of features so scaled; None: all. Both come from
    one generalised eigenproblem, C v = lambda (I + S) v.
    """
    covariance_DD = statistics.covariance_DD
    variance_D = covariance_DD.diagonal()
    floor = _LEAST_VARIANCE * variance_D.max().clamp_min(1e-12)
    scale_D = variance_D.clamp_min(floor).rsqrt() if normalisation != "none" else torch.ones_like(variance_D)
    metric_DD = torch.eye(len(scale_D), dtype=torch.float64)
    if normalisation == "style":
        assert statistics.recolouring_DD is not None
        metric_DD = metric_DD + statistics.recolouring_DD * scale_D * scale_D[:, None]
    if components is None or components >= len(scale_D):
        # Any square root of the metric gives the same lengths.
        matrix_DP = torch.linalg.inv(torch.linalg.cholesky(metric_DD)).T
    else:
        matrix_DP = _principal(covariance_DD * scale_D * scale_D[:, None], metric_DD, components)
    return Projection(statistics.mean_D, scale_D[:, None] * matrix_DP)


def _principal(covariance_DD: Tensor, metric_DD: Tensor, count: int) -> Tensor:
    """The `count` directions of the largest variance [D, P], of length 1 in the metric, the largest first."""
    size = len(covariance_DD)
    _, vectors = scipy.linalg.eigh(
        covariance_DD.numpy(), metric_DD.numpy(), subset_by_index=[size - count, size - 1], check_finite=True
    )
    return torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1]))


def _product(x_SD: Tensor, y_SD: Tensor) -> Tensor:
    """X'Y [D, D] float64 on the CPU."""
    return (x_SD.T @ y_SD).double().cpu()
