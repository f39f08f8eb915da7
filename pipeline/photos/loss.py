"""How far reconstructions are from photos, one number per photo, so that none depends on its neighbours.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.schemas.inversion import ReconstructionLossConfig

Features = Callable[[Tensor], list[Tensor]]

_SMALLEST_SCALE = 4


class ReconstructionLoss:
    """Pixels and gradients at several scales, and features of a network, of photos that are given once."""

    def __init__(self, config: ReconstructionLossConfig, photos_BCHW: Tensor, features: Features | None = None) -> None:
        """features: activations [B, ...] of images, in comparable units; None: pixels alone."""
        self.config, self.features = config, features if config.perceptual > 0 else None
        self._photos = _scales(photos_BCHW, config.scales)
        self._photo_features = [] if self.features is None else [each.detach() for each in self.features(photos_BCHW)]

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """[B] float32."""
        config = self.config
        scales = zip(_scales(images_BCHW, config.scales), self._photos, strict=True)
        loss_B = torch.stack([self._at_scale(image, photo) for image, photo in scales]).sum(dim=0)
        if self.features is not None:
            pairs = zip(self.features(images_BCHW), self._photo_features, strict=True)
            differences = torch.stack([_mean((mine - theirs).square()) for mine, theirs in pairs])
            loss_B = loss_B + config.perceptual * differences.sum(dim=0)
        return loss_B

    def _at_scale(self, image_BCHW: Tensor, photo_BCHW: Tensor) -> Tensor:
        difference = image_BCHW - photo_BCHW
        down, right = difference.diff(dim=2).abs(), difference.diff(dim=3).abs()
        return self.config.pixel * _mean(difference.square()) + self.config.gradient * (_mean(down) + _mean(right))


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def _scales(images_BCHW: Tensor, most: int) -> list[Tensor]:
    scales = [images_BCHW]
    while len(scales) < most and min(scales[-1].shape[2:]) >= 2 * _SMALLEST_SCALE:
        scales.append(functional.avg_pool2d(scales[-1], 2))
    return scales
