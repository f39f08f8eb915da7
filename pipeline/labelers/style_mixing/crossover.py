"""The row of w to mix from: as low as layout and foreground allow, because lower rows change colours more.

Two measures, by row, on a few images. Layout agreement compares edges of images and their variants. Foreground
agreement compares masks that the variants' clusters give with masks that the images' own colours give, which need no
variants at all: it falls where shapes move, and where the variants let background and foreground be confused.

Shape suffixes: B batch, N variants, C channels, H height, W width, L rows of w, D style.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.generator.spec import num_rows
from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.kmeans import Clusters, PixelClusters
from labelmill.pipeline.labelers.style_mixing.foreground import (
    border_affinity,
    border_share,
    calibrate_affinity,
    cluster_probability,
    on_pixels,
)
from labelmill.pipeline.labelers.style_mixing.mixing import mix_in_passes
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer
from labelmill.pipeline.process.device import repeatable_kernels

# Images that are all alike, as with a psi of 0, leave nothing between strangers and an image itself to measure by.
_LEAST_STRANGENESS = 1e-6


@dataclass(frozen=True)
class CrossoverTable:
    """How much layout survives, how well foregrounds agree and how much colour moves, for mixing from each row on."""

    layout_agreement: dict[int, float]
    """By row: mean edge agreement of images and their variants; 0 as between strangers, 1 as with itself."""
    foreground_agreement: dict[int, float]
    """By row: mean IoU of masks from the variants and masks from the images' own colours."""
    colour_change: dict[int, float]
    """By row: mean absolute change of a pixel, in units of the image's range of 2."""

    def choose(self, min_layout_agreement: float, max_foreground_loss: float) -> int:
        """The lowest row that both measures allow.

        From it on, layout agreement never falls short; of the rows of which that is true, its foreground agreement is
        at most so much below the best. The last row if none has the layout agreement: that one changes colour only.
        """
        rows = sorted(self.layout_agreement, reverse=True)
        short = next((i for i, row in enumerate(rows) if self.layout_agreement[row] < min_layout_agreement), len(rows))
        allowed = rows[: max(1, short)]
        best = max(self.foreground_agreement[row] for row in allowed)
        return min(row for row in allowed if self.foreground_agreement[row] >= best - max_foreground_loss)


def measure_crossovers(
    generator: Generator,
    batches: Sequence[Batch],
    donors_NLD: Tensor,
    clusterer: VariantClusterer,
    resolution: int | None = None,
) -> CrossoverTable:
    """Mix the images with the donors from every row on, and compare edges, foregrounds and colours.

    batches: of two images or more together, which are measured as one set. resolution: where synthesis stops; None
    for the whole image.
    """
    stop = resolution or generator.spec.resolution
    originals = [_originals(generator, batch, stop) for batch in batches]
    edges_B2HW = torch.cat([original.edges_B2HW for original in originals])
    strangers = field_agreement(edges_B2HW, edges_B2HW.roll(1, dims=0)).mean().item()
    own_BHW = _foreground(Clusters.joined([clusterer.of_colours(o.images_BCHW) for o in originals]), border_share)
    affinity = functools.partial(border_affinity, num_variants=len(donors_NLD))
    layout: dict[int, float] = {}
    foreground: dict[int, float] = {}
    colour: dict[int, float] = {}
    for row in range(1, num_rows(stop)):
        mixed = [_mixed(generator, original, donors_NLD, clusterer, row, resolution) for original in originals]
        mean = torch.cat([part.agreement_BN for part in mixed]).mean().item()
        layout[row] = round((mean - strangers) / max(1 - strangers, _LEAST_STRANGENESS), 4)
        masks_BHW = _foreground(Clusters.joined([part.clusters for part in mixed]), affinity)
        foreground[row] = round(soft_iou(masks_BHW, own_BHW).mean().item(), 4)
        colour[row] = round(torch.cat([part.change_B for part in mixed]).mean().item() / 2, 4)
    return CrossoverTable(layout, foreground, colour)


@dataclass(frozen=True)
class _Originals:
    """Images before anything is mixed, and their edges, at the resolution where variants stop."""

    batch: Batch
    images_BCHW: Tensor
    edges_B2HW: Tensor


def _originals(generator: Generator, batch: Batch, resolution: int) -> _Originals:
    with repeatable_kernels():
        images_BCHW = generator.synthesize(batch.ws_BLD, batch.noise, resolution=resolution).images_BCHW
    return _Originals(batch, images_BCHW, edge_field(images_BCHW))


@dataclass(frozen=True)
class _Mixed:
    """How variants from one row on differ from their images."""

    agreement_BN: Tensor
    change_B: Tensor
    clusters: PixelClusters


def _mixed(
    generator: Generator,
    original: _Originals,
    donors_NLD: Tensor,
    clusterer: VariantClusterer,
    row: int,
    resolution: int | None,
) -> _Mixed:
    agreements, changes, clusters = [], [], []
    size = clusterer.batch_size
    passes = mix_in_passes(generator, original.batch, donors_NLD, row, resolution, batch_size=size)
    for positions, variants_BNCHW in passes:
        clusters.append(clusterer(variants_BNCHW))
        part, count = slice(positions.start, positions.stop), len(positions)
        agreements.append(_edge_agreement(variants_BNCHW[:count], original.edges_B2HW[part]))
        changes.append((variants_BNCHW[:count] - original.images_BCHW[part, None]).abs().mean(dim=(1, 2, 3, 4)))
    return _Mixed(torch.cat(agreements), torch.cat(changes), Clusters.joined(clusters)[: len(original.batch)])


def _foreground(clusters: PixelClusters, affinity: Callable[[PixelClusters], Tensor]) -> Tensor:
    """Masks [B, H, W] float32 of clusters that are calibrated among themselves."""
    affinity_BK = affinity(clusters)
    model = calibrate_affinity(clusters, affinity_BK)
    return (on_pixels(clusters, cluster_probability(clusters, affinity_BK, model)) > 0.5).float()


def _edge_agreement(variants_BNCHW: Tensor, edges_B2HW: Tensor) -> Tensor:
    """Of every variant with its image [B, N]."""
    edges_BN2HW = edge_field(variants_BNCHW.flatten(0, 1)).unflatten(0, variants_BNCHW.shape[:2])
    return field_agreement(edges_B2HW[:, None], edges_BN2HW)


def edge_field(images_BCHW: Tensor) -> Tensor:
    """Edges as doubled angles [B, 2, H, W]: length is the gradient's magnitude, direction twice its angle.

    Doubling makes the field blind to the sign of contrast, which recolouring may turn. Summed over channels before
    the root (Di Zenzo, 1986), so an edge needs contrast in any colour, not in brightness.
    """
    kernel = torch.tensor([-0.5, 0.0, 0.5], device=images_BCHW.device)
    channels = images_BCHW.shape[1]
    padded = functional.pad(images_BCHW, (1, 1, 1, 1), mode="replicate")
    dx = functional.conv2d(padded[:, :, 1:-1], kernel.view(1, 1, 1, 3).expand(channels, -1, -1, -1), groups=channels)
    dy = functional.conv2d(padded[:, :, :, 1:-1], kernel.view(1, 1, 3, 1).expand(channels, -1, -1, -1), groups=channels)
    doubled = torch.stack([(dx.square() - dy.square()).sum(dim=1), 2 * (dx * dy).sum(dim=1)], dim=1)
    return doubled / doubled.norm(dim=1, keepdim=True).clamp_min(1e-8).sqrt()


def field_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity of edge fields over their last three axes."""
    product = (first * second).sum(dim=(-3, -2, -1))
    lengths = first.square().sum(dim=(-3, -2, -1)) * second.square().sum(dim=(-3, -2, -1))
    return product / lengths.sqrt().clamp_min(1e-12)
