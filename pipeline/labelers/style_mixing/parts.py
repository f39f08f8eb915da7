"""Parts of the foreground that mean the same in every image: a codebook of clusters, fitted once.

All images share the donors, so that clusters of different images can be compared by how the donors recolour them: hair
takes the donor's hair colour, whoever wears it. A cluster is described by that response and by where it lies, and the
foreground's clusters of many images fall into as many groups as there are to be parts.

Shape suffixes: B batch, N variants, K clusters, P pixels, F description, Q parts, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.labelers.common.kmeans import KMeans, PixelClusters, one_hot
from labelmill.pipeline.labelers.style_mixing.foreground import on_pixels

_PLACE = 2
"""Numbers in a description that say where: row and column."""

# Pixels that the codebook is learned from, evenly over the foreground of all images.
_MOST_PIXELS = 16384
_RESTARTS, _ITERATIONS = 16, 50


@dataclass(frozen=True)
class PartsModel:
    """The codebook."""

    centres_QF: Tensor
    """Descriptions of the parts, float32, the largest part first."""
    scales_F: Tensor
    """What descriptions are multiplied by, so that response and place spread alike."""

    @staticmethod
    def shapes(num_parts: int, num_variants: int, num_channels: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the fields."""
        size = num_variants * num_channels + _PLACE
        return {"centres_QF": (num_parts, size), "scales_F": (size,)}


def fit_parts(clusters: PixelClusters, foreground_BK: Tensor, num_variants: int, num_parts: int) -> PartsModel:
    """Group the foreground's clusters of many images, each with the weight of its pixels.

    foreground_BK: probability of foreground of each cluster.
    """
    belongs_BP = torch.gather(foreground_BK, 1, clusters.assignment_BP) > 0.5
    # Without any foreground all parts are as good as none.
    image_S, pixel_S = torch.nonzero(belongs_BP if belongs_BP.any() else ~belongs_BP, as_tuple=True)
    count = min(len(image_S), _MOST_PIXELS)
    chosen = (torch.arange(count, device=image_S.device) * len(image_S)) // count
    image_S, pixel_S = image_S[chosen], pixel_S[chosen]
    described_SF = describe_parts(clusters, num_variants)[image_S, clusters.assignment_BP[image_S, pixel_S]]
    scales_F = _scales(described_SF)
    found = KMeans(num_parts, restarts=_RESTARTS, iterations=_ITERATIONS, device=described_SF.device)(
        (described_SF * scales_F)[None]
    )
    return PartsModel(found.centroids_BKD[0][found.sizes_BK[0].argsort(descending=True, stable=True)], scales_F)


def part_maps(clusters: PixelClusters, foreground_BK: Tensor, num_variants: int, model: PartsModel) -> Tensor:
    """Probability of each part in each pixel [B, Q, H, W]: its cluster's of foreground, in the cluster's part."""
    described_BKF = describe_parts(clusters, num_variants) * model.scales_F
    distance_BKQ = (described_BKF[:, :, None] - model.centres_QF).square().sum(dim=3)
    is_part_BKQ = functional.one_hot(distance_BKQ.argmin(dim=2), len(model.centres_QF))
    maps = [on_pixels(clusters, foreground_BK * is_part_BK) for is_part_BK in is_part_BKQ.float().unbind(dim=2)]
    return torch.stack(maps, dim=1)


def describe_parts(clusters: PixelClusters, num_variants: int) -> Tensor:
    """What tells clusters apart [B, K, F]: their centred colours over the variants, and their mean row and column.

    Rows and columns run from -1 to 1.
    """
    response_BKNC = clusters.centroids_BKD.unflatten(2, (num_variants, -1))
    response_BKNC = response_BKNC - response_BKNC.mean(dim=2, keepdim=True)
    rows, columns = ((torch.arange(side, device=response_BKNC.device) + 0.5) / side * 2 - 1 for side in clusters.size)
    place_PF = torch.cartesian_prod(rows, columns)
    members_BKP = one_hot(clusters.assignment_BP, clusters.sizes_BK.shape[1])
    place_BKF = (members_BKP @ place_PF) / clusters.sizes_BK.clamp_min(1)[:, :, None]
    return torch.cat([response_BKNC.flatten(2), place_BKF], dim=2)


def _scales(described_SF: Tensor) -> Tensor:
    """Factors that bring the total variance of the response to 1, and that of the place."""
    variance_F = described_SF.var(dim=0, correction=0)
    sizes = (len(variance_F) - _PLACE, _PLACE)
    return torch.cat([part.sum().clamp_min(1e-12).rsqrt().expand(len(part)) for part in variance_F.split(sizes)])
