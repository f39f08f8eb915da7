"""Centroids in feature space, and what they say of each pixel.

Shape suffixes: B batch, C channels of a layer, D features of a pixel over all layers, K clusters, h w resolution of the
highest layer, S pixels.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec, conv_name, row_resolution
from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.common.pixel_reading import read_pixels


def layer_resolutions(spec: GeneratorSpec) -> dict[str, int]:
    """Resolution of every convolution of a generator."""
    return {conv_name(row): row_resolution(row) for row in range(spec.num_ws - 1)}


def layer_channels(spec: GeneratorSpec) -> dict[str, int]:
    """Channels of every convolution of a generator."""
    widths = dict(spec.channels)
    return {name: widths[resolution] for name, resolution in layer_resolutions(spec).items()}


def highest_size(features: Mapping[str, Tensor], layers: Sequence[str]) -> tuple[int, int]:
    """Height and width of the highest of the layers."""
    height, width = max(features[name].shape[2:] for name in layers)
    return height, width


def read_layers(features: Mapping[str, Tensor], index: int, layers: Sequence[str], pixels_S: Tensor) -> Tensor:
    """Features [S, D] float32 of pixels of one image, layers side by side. Pixels are of the highest layer."""
    size = highest_size(features, layers)
    return torch.cat([read_pixels(features[name][index], pixels_S, size) for name in layers]).T.contiguous()


@dataclass(frozen=True)
class ClusterModel:
    """Clusters of pixels' features.

    A pixel belongs to the centroid that is nearest in features multiplied by `scales_D`. Probabilities are those of
    equally wide round clusters, softmax(-distance^2 / temperature).
    """

    layers: tuple[str, ...]
    centroids_KD: Tensor
    """Of the scaled features, float32."""
    scales_D: Tensor
    temperature: Tensor
    """[] float32, above 0."""

    @property
    def clustering(self) -> str:
        """A name for exactly these clusters."""
        digest = hashlib.sha256(" ".join(self.layers).encode())
        for tensor in (self.centroids_KD, self.scales_D):
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def distances(self, features: Mapping[str, Tensor]) -> Tensor:
        """Squared distances [B, h, w, K] float32 but for what all clusters share. features: [B, C, h, w] by layer.

        Each layer is one matrix product an image at its own resolution. Resizing a layer's part of the product is the
        same as resizing its features, which are hundreds of channels.
        """
        size = highest_size(features, self.layers)
        weights_DK = (self.centroids_KD * self.scales_D).T
        widths = [features[name].shape[1] for name in self.layers]
        # The part that no feature changes goes with the first layer; resizing leaves it as it is.
        offset_K = self.centroids_KD.square().sum(dim=1)
        total: Tensor | None = None
        for name, weights_CK in zip(self.layers, weights_DK.split(widths), strict=True):
            # Synthesis leaves channels last in memory: no copy is made.
            x_BSC = features[name].float().permute(0, 2, 3, 1).flatten(1, 2)
            start = offset_K if total is None else torch.zeros_like(offset_K)
            part_BSK = torch.baddbmm(start, x_BSC, weights_CK.expand(len(x_BSC), -1, -1), alpha=-2)
            part_BhwK = part_BSK.unflatten(1, features[name].shape[2:])
            if part_BhwK.shape[1:3] != size:
                part_BhwK = resize(part_BhwK.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
            total = part_BhwK if total is None else total + part_BhwK
        assert total is not None
        return total

    def nearest(self, features: Mapping[str, Tensor]) -> Tensor:
        """The cluster of each pixel [B, h, w] int64."""
        return self.distances(features).argmin(dim=3)

    def probabilities(self, features: Mapping[str, Tensor]) -> Tensor:
        """Probability of each cluster in each pixel [B, h, w, K] float32."""
        return torch.softmax(self.distances(features) / -self.temperature, dim=3)
