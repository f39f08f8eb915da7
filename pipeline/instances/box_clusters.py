"""What of a box is the thing in it: clusters that fill the box more than its surroundings.

Pixels of a box and its surroundings are vectors of their colours over style-mixed variants. A cluster's share of the
box, over its share of the surroundings, is the evidence that it belongs to the thing. Several numbers of clusters vote:
one alone loses 1 point of mIoU on pictures of two people.

A box is clustered by itself, in sizes that follow from the box alone, so that its bits do not depend on other images.

Shape suffixes: N variants, C channels, H height, W width, D dimensions, P pixels, K clusters, h w sides of a crop.
"""

from dataclasses import dataclass
from math import ceil, floor, log

import torch
from torch import Tensor

from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.labelers.common.kmeans import KMeans, one_hot
from labelmill.pipeline.labelers.style_mixing.variant_clusters import pixel_vectors
from labelmill.schemas.instances import InstanceSettings

# Probability per unit of log ratio of shares: 2 is nearly hard. Chosen with the rest of the settings' defaults.
_SHARPNESS = 4.0
# Shares are never 0: a cluster that the surroundings lack is no more certain than this.
_LEAST_SHARE = 1e-3


@dataclass(frozen=True)
class Crop:
    """A box and its surroundings, cut out of an image."""

    rows: slice
    columns: slice
    distance_hw: Tensor
    """How far pixels' centres lie outside the box, in units of its width across and its height down; 0 and less
    inside. float32."""


class BoxClusterer:
    """Variants of one image and a box to how likely each pixel is of the thing in it."""

    def __init__(self, settings: InstanceSettings, device: str | torch.device = "cpu") -> None:
        self._settings = settings
        self._kmeans = [
            KMeans(count, restarts=settings.restarts, iterations=settings.iterations, device=device)
            for count in settings.clusters
        ]

    def __call__(self, variants_NCHW: Tensor, crop: Crop) -> Tensor:
        """Probability [h, w] float32 at the crop's pixels."""
        x_1PD = pixel_vectors(variants_NCHW[None, :, :, crop.rows, crop.columns], self._settings.normalisation)
        distance_P = crop.distance_hw.flatten()
        votes = [self._vote(kmeans, x_1PD, distance_P) for kmeans in self._kmeans]
        return torch.stack(votes).mean(dim=0).view(crop.distance_hw.shape)

    def _vote(self, kmeans: KMeans, x_1PD: Tensor, distance_P: Tensor) -> Tensor:
        """Probability of each pixel [P] by one clustering."""
        assignment_1P = kmeans(x_1PD).assignment_BP
        members_KP = one_hot(assignment_1P, kmeans.num_clusters)[0]
        inside_K = _shares(members_KP, distance_P <= 0)
        outside_K = _shares(members_KP, distance_P > self._settings.box_error)
        evidence_K = (inside_K / outside_K).log() - log(self._settings.tau)
        return torch.sigmoid(_SHARPNESS * evidence_K)[assignment_1P[0]]


def _shares(members_KP: Tensor, where_P: Tensor) -> Tensor:
    """Share of these pixels that each cluster has [K]."""
    return members_KP @ where_P.float() / where_P.sum().clamp_min(1) + _LEAST_SHARE


def crop_around(box: Box, size: tuple[int, int], settings: InstanceSettings, device: torch.device) -> Crop:
    """A box, what it may have missed, and a ring of a pixel at least around both. size: the image's height, width."""
    across = settings.box_error * box.width + max(1.0, settings.margin * box.width)
    down = settings.box_error * box.height + max(1.0, settings.margin * box.height)
    rows = slice(max(0, floor(box.top - down)), min(size[0], ceil(box.bottom + down)))
    columns = slice(max(0, floor(box.left - across)), min(size[1], ceil(box.right + across)))
    y_h = torch.arange(rows.start, rows.stop, device=device) + 0.5
    x_w = torch.arange(columns.start, columns.stop, device=device) + 0.5
    down_h = torch.maximum(box.top - y_h, y_h - box.bottom) / box.height
    across_w = torch.maximum(box.left - x_w, x_w - box.right) / box.width
    return Crop(rows, columns, torch.maximum(down_h[:, None], across_w[None]))
