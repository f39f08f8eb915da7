"""Batched k-means that repeats to the bit: fixed work, fixed random numbers, no atomic additions.

Every item of a batch is clustered on its own, from several k-means++ starts at once: scores are one matrix product over
all starts, sums are matrix products with the assignment as zeros and ones.

Shape suffixes: B batch, P points (pixels), D dimensions, R starts, K clusters, C = R * K, S points that starts are
drawn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Self, TypeVar

import torch
from torch import Tensor

START_POINTS = 1024
"""Starts are drawn from so many points at most: enough for a few clusters of one image."""
_RACE_SEED = 20230618


@dataclass(frozen=True)
class Clusters:
    """The best of all starts, for each item."""

    assignment_BP: Tensor
    """int64 in 0 to K - 1."""
    centroids_BKD: Tensor
    """float32. A cluster that lost all its points keeps its last centroid."""
    sizes_BK: Tensor
    """Points of each cluster, float32."""
    inertia_B: Tensor
    """Sum of squared distances to the nearest centroid."""

    def __len__(self) -> int:
        return len(self.inertia_B)

    def __getitem__(self, items: slice | Tensor) -> Self:
        """Some of the items."""
        return replace(self, **{field.name: getattr(self, field.name)[items] for field in fields(Clusters)})

    def padded(self, count: int) -> Self:
        """So many items, the last one repeated."""
        return self[torch.arange(count, device=self.inertia_B.device).clamp_max(len(self) - 1)]

    @staticmethod
    def joined(parts: Sequence["AnyClusters"]) -> "AnyClusters":
        """The items of several, in order."""
        tensors = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Clusters)}
        return replace(parts[0], **{name: torch.cat(some) for name, some in tensors.items()})


AnyClusters = TypeVar("AnyClusters", bound=Clusters)


@dataclass(frozen=True)
class PixelClusters(Clusters):
    """Clusters of the pixels of images, row by row."""

    size: tuple[int, int]
    """Height and width of the images."""

    @staticmethod
    def of(clusters: Clusters, size: tuple[int, int]) -> "PixelClusters":
        """Clusters of as many points as such an image has pixels."""
        assert clusters.assignment_BP.shape[1] == size[0] * size[1]
        return PixelClusters(**vars(clusters), size=size)


class KMeans:
    """k-means with k-means++ starts (Arthur and Vassilvitskii, 2007) and a fixed number of Lloyd iterations."""

    def __init__(
        self,
        num_clusters: int,
        *,
        restarts: int,
        iterations: int,
        device: str | torch.device = "cpu",
        start_points: int = START_POINTS,
    ) -> None:
        """start_points: starts are drawn from so many of the points, at least as many as clusters."""
        if min(num_clusters, restarts, iterations) < 1:
            raise ValueError(
                f"clusters, restarts and iterations must be at least 1, got {num_clusters}, {restarts}, {iterations}"
            )
        if num_clusters > start_points:
            raise ValueError(f"{num_clusters} clusters cannot start from {start_points} points; raise start_points")
        self.num_clusters, self.restarts, self.iterations = num_clusters, restarts, iterations
        source = torch.Generator().manual_seed(_RACE_SEED)
        race_KRS = torch.empty(num_clusters, restarts, start_points).exponential_(generator=source)
        self._race_KRS = race_KRS.to(device)

    def __call__(self, x_BPD: Tensor) -> Clusters:
        """Cluster points [B, P, D] float32, P at least 1. Of fewer points than clusters, some clusters are copies."""
        centroids_BCD = self._starts(x_BPD)
        for _ in range(self.iterations):
            centroids_BCD = self._improve(x_BPD, centroids_BCD)
        return self._finish(x_BPD, self._best(x_BPD, centroids_BCD))

    def _starts(self, x_BPD: Tensor) -> Tensor:
        """k-means++: each centre is a point, drawn with odds in proportion to its squared distance from the others.

        Drawing is a race: the greatest of odds over exponential variables wins with just those odds. The variables
        are fixed, so an item's starts never depend on its batch, and no cumulative sum is needed.
        """
        chosen_S = start_points(x_BPD.shape[1], self._race_KRS.shape[2]).to(x_BPD.device)
        x_BSD = x_BPD[:, chosen_S]
        square_BS = x_BSD.square().sum(dim=2)
        odds_BRS = torch.ones_like(square_BS)[:, None]
        centres: list[Tensor] = []
        for race_RS in self._race_KRS[:, :, : len(chosen_S)]:
            winner_BR = (odds_BRS / race_RS).argmax(dim=2)
            centre_BRD = torch.gather(x_BSD, 1, winner_BR[:, :, None].expand(-1, -1, x_BSD.shape[2]))
            distance_BRS = square_BS[:, None] + _scores(x_BSD, centre_BRD)
            odds_BRS = torch.minimum(odds_BRS, distance_BRS) if centres else distance_BRS
            odds_BRS = odds_BRS.clamp_min(0)
            centres.append(centre_BRD)
        return torch.stack(centres, dim=2).flatten(1, 2)

    def _improve(self, x_BPD: Tensor, centroids_BCD: Tensor) -> Tensor:
        """One Lloyd iteration. A point as near to two centroids counts for both."""
        scores_BRKP = self._by_start(_scores(x_BPD, centroids_BCD))
        is_nearest_BRKP = scores_BRKP <= scores_BRKP.amin(dim=2, keepdim=True)
        weights_BCP = is_nearest_BRKP.to(x_BPD.dtype).flatten(1, 2)
        sums_BCD = weights_BCP @ x_BPD
        counts_BC1 = weights_BCP.sum(dim=2, keepdim=True)
        return torch.where(counts_BC1 > 0, sums_BCD / counts_BC1.clamp_min(1), centroids_BCD)

    def _best(self, x_BPD: Tensor, centroids_BCD: Tensor) -> Tensor:
        """The centroids [B, K, D] of the start with the least inertia."""
        nearest_BRP = self._by_start(_scores(x_BPD, centroids_BCD)).amin(dim=2)
        best_B = nearest_BRP.sum(dim=2).argmin(dim=1)
        return self._by_start(centroids_BCD)[torch.arange(len(best_B), device=x_BPD.device), best_B]

    def _finish(self, x_BPD: Tensor, centroids_BKD: Tensor) -> Clusters:
        nearest_BP, assignment_BP = _scores(x_BPD, centroids_BKD).min(dim=1)
        inertia_B = (nearest_BP + x_BPD.square().sum(dim=2)).clamp_min(0).sum(dim=1)
        sizes_BK = one_hot(assignment_BP, self.num_clusters).sum(dim=2)
        return Clusters(assignment_BP, centroids_BKD, sizes_BK, inertia_B)

    def _by_start(self, values: Tensor) -> Tensor:
        return values.unflatten(1, (self.restarts, self.num_clusters))


@lru_cache(maxsize=64)
def start_points(num_points: int, most: int) -> Tensor:
    """Which points starts are drawn from [S] int64, in rising order: all, or `most` at random, always the same ones.

    Evenly spaced ones would lie in a few columns of an image: its width and their distance are powers of two.
    """
    if num_points <= most:
        return torch.arange(num_points)
    order_P = torch.randperm(num_points, generator=torch.Generator().manual_seed(_RACE_SEED))
    return order_P[:most].sort().values


def one_hot(assignment_BP: Tensor, num_clusters: int) -> Tensor:
    """Cluster indices as zeros and ones [B, K, P] float32, for sums by matrix product."""
    ids_K1 = torch.arange(num_clusters, device=assignment_BP.device)[:, None]
    return (assignment_BP[:, None] == ids_K1).float()


def _scores(x_BPD: Tensor, centroids_BCD: Tensor) -> Tensor:
    """|c|^2 - 2 x c [B, C, P]: the squared distance but for |x|^2, which all centroids share."""
    square_BC1 = centroids_BCD.square().sum(dim=2, keepdim=True)
    return torch.baddbmm(square_BC1, centroids_BCD, x_BPD.transpose(1, 2), alpha=-2)
