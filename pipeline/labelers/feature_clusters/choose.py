"""Which layer and how many clusters, without labels.

Everything is judged on a sample of pixels of all images of `fit`, clustered three times: all of them, those of every
other image, and those of the images between.

- Stability: how well the two halves agree on all pixels (adjusted Rand index: Hubert and Arabie, 1985). Clusters that
  mean the same in every image come out whichever images are looked at.
- Explained colour: how much of the variance of an image's colours lies between its clusters. Clusters of coarse layers
  are cut where no edge is.

`layers: auto` takes the layer with the highest product of the two, at the same k. On the bundled generator that is the
better one of the two that it compares, but narrowly (.346 and .342): clusters of coarse layers are more stable, and
over all its layers explained colour alone follows the mIoU of the best possible naming more closely than the product.

Of a list of `clusters` that prompts name, those k are left whose named clusters bear most classes; of these, those with
about the least share of pixels in unsure clusters; of these, the least is taken. A mean over classes loses more by a
class that no cluster bears than by anything within classes, and what too large a k cuts to pieces becomes unsure.
Stability would not tell: it counts pairs of pixels, most of which lie in the background, however it is cut.

Without prompts, every cluster counts alike: it is stable where the halves' clusters of it share more than half of the
pixels that either has (Jaccard), and dissolved otherwise (Hennig, 2007). The k with the most stable clusters less
dissolved ones is taken; of equals, the largest, because a person can join clusters but not part them.

The paper chooses layer and k by eye.

Shape suffixes: S pixels, F pixels of the first images, D features of a pixel, E embedding, K clusters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.labelers.common.joint_upsampling import resample
from labelmill.pipeline.labelers.common.kmeans import KMeans
from labelmill.pipeline.labelers.common.pixel_reading import read_pixels, some_pixels
from labelmill.pipeline.labelers.feature_clusters.streamed_kmeans import squared_distances

# Pixels of the sample, over all images, and numbers that it may hold.
_SAMPLE_PIXELS, _SAMPLE_NUMBERS = 32768, 2**26

START_POINTS = 8192
"""Pixels of the sample that k-means starts are drawn from: small parts are in few of them."""

# Shares of unsure pixels that differ by no more are alike: a cluster more or less is a little under the margin.
_ALIKE = 0.02

# Deviations below this share of the largest belong to dead channels.
_DEAD = 1e-4


@dataclass(frozen=True)
class PixelSample:
    """Some pixels of many images."""

    features: Mapping[str, Tensor]
    """[S, C] float32 by layer."""
    colours_SC: Tensor
    image_S: Tensor
    """Number of each pixel's image, int64."""
    dense_FE: Tensor | None = None
    """What the prompt model sees there, of the first pixels only, float32; None where nobody asks."""

    def of(self, layers: Sequence[str]) -> Tensor:
        """Features of the layers side by side [S, D]."""
        return torch.cat([self.features[name] for name in layers], dim=1)


class SampleCollector:
    """Collects the sample, a batch at a time."""

    def __init__(
        self,
        layers: Sequence[str],
        num_features: int,
        size: tuple[int, int],
        num_images: int,
        dense: Callable[[Tensor], Tensor] | None = None,
        num_dense: int = 0,
    ) -> None:
        """num_features: of a pixel over all layers. size: height and width at which pixels are read.

        dense: from images [B, 3, H, W] to a prompt model's dense features [B, E, h, w], which are read of the first
        `num_dense` images.
        """
        self._layers, self._size = tuple(layers), size
        self._every, self._per_image = sample_plan(num_features, prod(size), num_images)
        self._num_seen = self._num_images = 0
        self._read: dict[str, list[Tensor]] = {name: [] for name in self._layers}
        self._colours: list[Tensor] = []
        self._images: list[Tensor] = []
        self._dense, self._num_dense = dense, num_dense
        self._read_dense: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        """Read a batch that has the layers' features."""
        colours_BChw = resample(batch.images_BCHW.float(), self._size)
        dense_BEhw = None
        if self._dense is not None and self._num_images < self._num_dense:
            dense_BEhw = self._dense(batch.rgb())
        for index in range(len(batch)):
            self._num_seen += 1
            if (self._num_seen - 1) % self._every:
                continue
            pixels_S = some_pixels(prod(self._size), self._num_images, self._per_image).to(colours_BChw.device)
            for name in self._layers:
                self._read[name].append(read_pixels(batch.features[name][index], pixels_S, self._size).T)
            self._colours.append(colours_BChw[index].flatten(1)[:, pixels_S].T)
            self._images.append(torch.full_like(pixels_S, self._num_images))
            if dense_BEhw is not None and self._num_images < self._num_dense:
                self._read_dense.append(read_pixels(dense_BEhw[index], pixels_S, self._size).T)
            self._num_images += 1

    def sample(self) -> PixelSample:
        """All that was read."""
        features = {name: torch.cat(read).contiguous() for name, read in self._read.items()}
        dense_FE = torch.cat(self._read_dense) if self._read_dense else None
        return PixelSample(features, torch.cat(self._colours), torch.cat(self._images), dense_FE)


def sample_plan(num_features: int, num_pixels: int, num_images: int) -> tuple[int, int]:
    """Of every how manyth image the sample holds pixels, and of how many of its `num_pixels`."""
    most = min(_SAMPLE_PIXELS, _SAMPLE_NUMBERS // num_features)
    return -(-num_images // most), min(num_pixels, max(1, most // num_images))


class ClusteringTrial(BaseModel):
    """What one layer or one k gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stability: float
    explained_colour: float
    stable_clusters: int
    """Clusters that come out of both halves."""
    classes_found: int | None = None
    """Classes of `names` that a cluster bears; null where k was not chosen, or not by prompts."""
    unsure_share: float | None = None
    """Of the sample's pixels in clusters that prompts are unsure about."""

    @property
    def merit(self) -> float:
        return max(0.0, self.stability) * self.explained_colour


@dataclass(frozen=True)
class SampleClusters:
    """Clusters of a sample."""

    centroids_KD: Tensor
    cluster_S: Tensor
    """The cluster of each pixel, int64."""
    trial: ClusteringTrial


def channel_scales(x_SD: Tensor, normalisation: str) -> Tensor:
    """What features are multiplied by before clustering [D]; 0 for channels that never change."""
    if normalisation == "none":
        return torch.ones_like(x_SD[0])
    deviation_D = x_SD.var(dim=0, correction=0).sqrt()
    alive_D = deviation_D > _DEAD * deviation_D.max()
    return torch.where(alive_D, 1 / deviation_D.clamp_min(1e-12), 0)


def cluster_sample(sample: PixelSample, x_SD: Tensor, kmeans: KMeans) -> SampleClusters:
    """Cluster scaled features of the sample's pixels: all of them, and either half."""
    is_odd_S = sample.image_S % 2 == 1
    parts = (x_SD, x_SD[~is_odd_S], x_SD[is_odd_S])
    whole_KD, even_KD, odd_KD = (kmeans(part_SD[None]).centroids_BKD[0] for part_SD in parts)
    whole_S, even_S, odd_S = (squared_distances(x_SD, c_KD).argmin(dim=1) for c_KD in (whole_KD, even_KD, odd_KD))
    num_clusters = len(whole_KD)
    counts_KK = contingency(even_S, odd_S, num_clusters)
    trial = ClusteringTrial(
        stability=round(adjusted_rand_index(counts_KK), 4),
        explained_colour=round(explained_colour(sample, whole_S, num_clusters), 4),
        stable_clusters=num_stable(counts_KK),
    )
    return SampleClusters(whole_KD, whole_S, trial)


def contingency(first_S: Tensor, second_S: Tensor, num_clusters: int) -> Tensor:
    """Pixels [K, K] float64 on the CPU by their clusters in two clusterings."""
    pairs_S = first_S.cpu() * num_clusters + second_S.cpu()
    return torch.bincount(pairs_S, minlength=num_clusters**2).double().view(num_clusters, num_clusters)


def adjusted_rand_index(counts_KK: Tensor) -> float:
    """Agreement of two clusterings of the same items: 1 for equal ones, 0 on average for random ones."""

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    first, second = pairs(counts_KK.sum(dim=1)), pairs(counts_KK.sum(dim=0))
    every = pairs(counts_KK.sum())
    expected = first * second / max(every, 1)
    most = (first + second) / 2
    return 1.0 if most == expected else (pairs(counts_KK) - expected) / (most - expected)


def num_stable(counts_KK: Tensor) -> int:
    """Clusters of either clustering that share more than half of their joint pixels with one of the other's, which then
    can be one only."""
    joint_KK = counts_KK.sum(dim=1, keepdim=True) + counts_KK.sum(dim=0, keepdim=True) - counts_KK
    return int((2 * counts_KK > joint_KK).sum())


def explained_colour(sample: PixelSample, cluster_S: Tensor, num_clusters: int) -> float:
    """Share of the variance of colours within images that lies between an image's clusters."""
    colours_SC = sample.colours_SC.double().cpu()
    image_S = sample.image_S.cpu()
    within = _variance_within(colours_SC, image_S * num_clusters + cluster_S.cpu())
    return 1 - within / max(_variance_within(colours_SC, image_S), 1e-12)


def _variance_within(values_SC: Tensor, group_S: Tensor) -> float:
    """Sum of squared distances to the means of groups. On the CPU, where sums by index have a fixed order."""
    num_groups = int(group_S.max()) + 1
    sums = torch.zeros(num_groups, values_SC.shape[1], dtype=torch.float64).index_add_(0, group_S, values_SC)
    counts = torch.bincount(group_S, minlength=num_groups).clamp_min(1)
    return float((values_SC - (sums / counts[:, None])[group_S]).square().sum())


def best_number(trials: Mapping[int, ClusteringTrial]) -> int:
    """The k whose clusters bear most classes, or without prompts the one with most stable clusters less dissolved."""
    named = {number: (trial.classes_found, trial.unsure_share) for number, trial in trials.items()}
    most = max((found for found, _ in named.values() if found is not None), default=None)
    unsure = {number: share for number, (found, share) in named.items() if found == most and share is not None}
    if unsure:
        return min(number for number, share in unsure.items() if share <= min(unsure.values()) + _ALIKE)
    return max(trials, key=lambda number: (2 * trials[number].stable_clusters - number, number))


def best_layers(trials: Mapping[str, ClusteringTrial]) -> str:
    """The layer of the highest merit; of equals the first."""
    return max(trials, key=lambda name: trials[name].merit)
