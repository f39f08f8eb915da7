"""k-means over more pixels than memory holds: Lloyd iterations whose sums are gathered a mini-batch at a time.

Starts come from k-means on a sample of pixels (kmeans.py). Then every pass goes over all its images once, and centroids
move at its end. Unlike mini-batch k-means (Sculley, 2010), which moves them all the time at falling rates, the result
is Lloyd's own and does not depend on the order of images. Work and order are fixed, sums are products with zeros and
ones: the same images give the same bits.

Shape suffixes: S pixels, D features of a pixel, K clusters.
"""

import torch
from torch import Tensor

# Scores of so many pixels and clusters are held at once.
_MOST_SCORES = 2**24


def squared_distances(x_SD: Tensor, centroids_KD: Tensor) -> Tensor:
    """|c|^2 - 2 x c [S, K]: squared distances but for |x|^2, which all centroids share. One matrix product."""
    return torch.addmm(centroids_KD.square().sum(dim=1)[None], x_SD, centroids_KD.T, alpha=-2)


def mean_distance(x_SD: Tensor, centroids_KD: Tensor) -> Tensor:
    """Mean squared distance of pixels to their nearest centroid [] float32, above 0."""
    parts = x_SD.split(max(1, _MOST_SCORES // len(centroids_KD)))
    sums = [
        (squared_distances(part_SD, centroids_KD).amin(dim=1) + part_SD.square().sum(dim=1)).sum() for part_SD in parts
    ]
    return (torch.stack(sums).sum() / len(x_SD)).clamp_min(1e-12)


class StreamedKMeans:
    """Centroids, and the sums of the pass under way, float64 so that many images lose nothing."""

    def __init__(self, centroids_KD: Tensor, num_fixed: int = 0) -> None:
        """centroids_KD: the starts, float32. num_fixed: so many of the first take their pixels but never move."""
        self.centroids_KD, self._num_fixed = centroids_KD, num_fixed
        self._clear()

    def add(self, x_SD: Tensor) -> None:
        """Count pixels [S, D] float32 for their nearest centroids."""
        num_clusters = len(self.centroids_KD)
        for part_SD in x_SD.split(max(1, _MOST_SCORES // num_clusters)):
            nearest_S = squared_distances(part_SD, self.centroids_KD).argmin(dim=1)
            member_KS = (nearest_S == torch.arange(num_clusters, device=x_SD.device)[:, None]).float()
            self._sums_KD += (member_KS @ part_SD).double()
            self._counts_K += member_KS.sum(dim=1).double()

    def move(self) -> None:
        """End a pass: each centroid becomes the mean of its pixels; one without any stays, and so do fixed ones."""
        means_KD = (self._sums_KD / self._counts_K.clamp_min(1)[:, None]).float()
        moving_K = self._counts_K > 0
        moving_K[: self._num_fixed] = False
        self.centroids_KD = torch.where(moving_K[:, None], means_KD, self.centroids_KD)
        self._clear()

    def _clear(self) -> None:
        self._sums_KD = torch.zeros_like(self.centroids_KD, dtype=torch.float64)
        self._counts_K = torch.zeros(len(self.centroids_KD), dtype=torch.float64, device=self.centroids_KD.device)
