"""Which clusters are foreground: evidence calibrated over many images, without labels.

Within an image, the cluster that holds most of the border is background beyond doubt. Over many images, how often a
place belongs to it says where background lies: along the top and the sides, say, but not at the bottom where clothes
are. Nothing about the domain is written down; a cluster is background where it covers such places.

Shape suffixes: B batch, K clusters, P pixels (H * W), H height, W width.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.labelers.kmeans import Clusters, one_hot


@dataclass(frozen=True)
class ForegroundModel:
    """What calibration learned."""

    background_HW: Tensor
    """Share of images in which a place belongs to the cluster that dominates the border, float32."""
    threshold: Tensor
    """[] float32: clusters whose mean of it is higher are background."""
    sharpness: Tensor
    """[] float32: log odds of a cluster per unit of that mean."""

    @staticmethod
    def shapes(resolution: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the fields for images of a resolution."""
        return {"background_HW": (resolution, resolution), "threshold": (), "sharpness": ()}

    def probability(self, clusters: Clusters) -> Tensor:
        """Probability of foreground of each cluster [B, K] float32."""
        evidence_BK = _mean_over_clusters(clusters, self.background_HW.flatten())
        return torch.sigmoid((self.threshold - evidence_BK) * self.sharpness)


def calibrate(clusters: Clusters, resolution: int) -> ForegroundModel:
    """Learn from the clusters of many images [B, P = resolution^2]."""
    num_clusters = clusters.sizes_BK.shape[1]
    border_P = _border(resolution).to(clusters.sizes_BK.device)
    border_pixels_BK = one_hot(clusters.assignment_BP, num_clusters) @ border_P
    dominant_B1 = border_pixels_BK.argmax(dim=1, keepdim=True)
    background_P = (clusters.assignment_BP == dominant_B1).float().mean(dim=0)
    background_HW = _smooth(background_P.view(resolution, resolution))
    evidence_BK = _mean_over_clusters(clusters, background_HW.flatten())
    low, high = _two_means(evidence_BK.flatten(), clusters.sizes_BK.flatten())
    return ForegroundModel(background_HW, (low + high) / 2, 8.0 / (high - low).clamp_min(1e-6))


def _border(resolution: int) -> Tensor:
    """1 on a frame of a thirty-second of the image's width, else 0, flattened."""
    width = max(1, resolution // 32)
    border_HW = torch.ones(resolution, resolution)
    border_HW[width:-width, width:-width] = 0
    return border_HW.flatten()


def _mean_over_clusters(clusters: Clusters, map_P: Tensor) -> Tensor:
    """Mean [B, K] of a map over each cluster's pixels; 0 for an empty one."""
    members_BKP = one_hot(clusters.assignment_BP, clusters.sizes_BK.shape[1])
    return (members_BKP @ map_P) / clusters.sizes_BK.clamp_min(1)


def _smooth(map_HW: Tensor) -> Tensor:
    array_HW = map_HW.cpu().numpy().astype(np.float32)
    return torch.from_numpy(cv2.GaussianBlur(array_HW, (0, 0), array_HW.shape[0] / 64)).to(map_HW.device)


def _two_means(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the two groups of weighted numbers (k-means in one dimension)."""
    low, high = values.min(), values.max()
    for _ in range(32):
        is_high = ((values - high).abs() < (values - low).abs()).float() * weights
        is_low = weights - is_high
        low = (is_low * values).sum() / is_low.sum().clamp_min(1e-6)
        high = (is_high * values).sum() / is_high.sum().clamp_min(1e-6)
    return low, high
