"""Pixels clustered by how they change over style-mixed variants.

Shape suffixes: B batch, N variants, C channels, H height, W width, P pixels (H * W), D style, L rows of w.
"""

import torch
from torch import Tensor

from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.labelers.common.kmeans import Clusters, KMeans, PixelClusters
from labelmill.pipeline.labelers.style_mixing.mixing import mix_in_passes
from labelmill.schemas.config import NumericsConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

# Deviations below this share of the image's range are noise; dividing by less would only blow it up.
_LEAST_DEVIATION = 0.05


def pixel_vectors(variants_BNCHW: Tensor, normalisation: str) -> Tensor:
    """Each pixel's colours over the variants [B, P, N * C] float32, normalised over its variants."""
    x_BPNC = variants_BNCHW.float().flatten(3).permute(0, 3, 1, 2)
    if normalisation != "none":
        x_BPNC = x_BPNC - x_BPNC.mean(dim=2, keepdim=True)
    if normalisation == "standardised":
        x_BPNC = x_BPNC / (x_BPNC.square().mean(dim=2, keepdim=True).sqrt() + _LEAST_DEVIATION)
    return x_BPNC.flatten(2).contiguous()


class VariantClusterer:
    """Variants of images to clusters of their pixels, with a configuration's settings."""

    def __init__(
        self,
        config: StyleMixingConfig,
        device: str | torch.device = "cpu",
        batch_size: int = NumericsConfig().batch_size,
    ) -> None:
        """batch_size: the configured one of the batches that are to be clustered."""
        self.batch_size = batch_size
        self.normalisation = config.normalisation
        self.kmeans = KMeans(config.clusters, restarts=config.restarts, iterations=config.iterations, device=device)

    def __call__(self, variants_BNCHW: Tensor) -> PixelClusters:
        return self._of(variants_BNCHW, self.normalisation)

    def of_colours(self, images_BCHW: Tensor) -> PixelClusters:
        """Clusters of each image's own colours, without variants, one image at a time."""
        return Clusters.joined([self._of(image_1CHW[:, None], "none") for image_1CHW in images_BCHW.split(1)])

    def _of(self, variants_BNCHW: Tensor, normalisation: str) -> PixelClusters:
        height, width = variants_BNCHW.shape[3:]
        return PixelClusters.of(self.kmeans(pixel_vectors(variants_BNCHW, normalisation)), (height, width))

    def of_batch(
        self, generator: Generator, batch: Batch, donors_NLD: Tensor, crossover: int, resolution: int | None = None
    ) -> PixelClusters:
        """Clusters of each image, a fixed number of images at a time.

        resolution: of the variants; None for the images'.
        """
        passes = mix_in_passes(generator, batch, donors_NLD, crossover, resolution, batch_size=self.batch_size)
        return Clusters.joined([self(variants_BNCHW) for _, variants_BNCHW in passes])[: len(batch)]
