"""Segments to paint with: parts of each image that the generator makes of similar features, at several levels.

Features of all layers up to MOST_EDGE are standardised per channel and projected to their main directions, which one
projection per layer at the layer's own resolution does: no stack of upsampled features is ever made. Beside them stand
the image's colours, with as much variance in all. (On the bundled avatars, segments of both hold classes together
better than twice as many of colours alone, and than those of features alone.) Each image's pixels are clustered on
their own, clusters are snapped to the image's edges, and their connected components are the segments; small ones join
the neighbour that they share most of their border with.

Shape suffixes: B batch, C channels of a layer, D main directions, F features of all layers, S pixels that are read,
P pixels, K clusters, h w resolution of the clusters, H W of the image.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.common.joint_upsampling import downsample, resize, snap_to_edges
from labelmill.pipeline.labelers.common.kmeans import KMeans
from labelmill.pipeline.labelers.common.pixel_reading import read_pixels, some_pixels

Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Level:
    """How finely images are cut up."""

    name: str
    clusters: int
    """Of each image, before they fall apart into connected segments."""
    least_share: float
    """Share of the image below which a segment joins a neighbour."""


LEVELS = (Level("coarse", 12, 1 / 400), Level("medium", 32, 1 / 1000), Level("fine", 96, 1 / 4000))
MOST_EDGE = 256
"""Height and width that clusters have at most; snapping takes them to those of the image."""
_DIRECTIONS = 24
_PIXELS_READ = 256
_IMAGES_READ = 32
_ITERATIONS = 10


@dataclass(frozen=True)
class Directions:
    """From features to what is clustered: a matrix [D, C] per layer, and an offset [D] for all."""

    matrices: dict[str, Tensor]
    offset_D: Tensor

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.matrices)


def layers_of(spec: GeneratorSpec) -> list[str]:
    """Convolutions whose features are looked at."""
    return [name for name in spec.conv_names if _resolution(name) <= MOST_EDGE]


def main_directions(batches: Iterator[Batch], spec: GeneratorSpec) -> Directions:
    """The main directions of some images' features, from batches that tap `layers_of`; _IMAGES_READ images are enough.

    Each channel counts alike within its layer, and each layer alike.
    """
    names = layers_of(spec)
    size = spec.size_at(min(spec.resolution, MOST_EDGE))
    parts: list[Tensor] = []
    for batch in batches:
        for index in range(min(len(batch), _IMAGES_READ - len(parts))):
            pixels_S = some_pixels(prod(size), batch.seeds[index] % 2**31, _PIXELS_READ)
            device = batch.images_BCHW.device
            read = [read_pixels(batch.features[name][index], pixels_S.to(device), size).cpu() for name in names]
            parts.append(torch.cat(read).T)
        if len(parts) >= _IMAGES_READ:
            break
    channels = [dict(spec.channels)[_resolution(name)] for name in names]
    return _directions(torch.cat(parts).double(), dict(zip(names, channels, strict=True)))


def _directions(x_SF: Tensor, channels: dict[str, int]) -> Directions:
    deviation_F, mean_F = torch.std_mean(x_SF, dim=0, correction=0)
    weight_F = torch.cat([torch.full((count,), count**-0.5, dtype=x_SF.dtype) for count in channels.values()])
    scale_F = torch.where(deviation_F > 1e-4 * deviation_F.max(), weight_F / deviation_F.clamp_min(1e-12), 0)
    scaled_SF = (x_SF - mean_F) * scale_F
    _, _, directions_RF = torch.linalg.svd(scaled_SF, full_matrices=False)
    matrix_DF = directions_RF[:_DIRECTIONS] * scale_F
    matrices = dict(zip(channels, matrix_DF.float().split(list(channels.values()), dim=1), strict=True))
    return Directions(matrices, (-matrix_DF @ mean_F).float())


def segment_maps(batch: Batch, directions: Directions, spec: GeneratorSpec) -> Iterator[list[Labels]]:
    """Per image of a batch that taps the directions' layers: per level of LEVELS a map [H, W] of segments 0, 1, ..."""
    for index in range(len(batch)):
        features = {name: batch.features[name][index] for name in directions.layers}
        x_Dhw = _projected(features, directions, spec.size_at(min(spec.resolution, MOST_EDGE)))
        image_CHW = batch.images_BCHW[index].float().cpu()
        small_Chw = downsample(image_CHW[None], x_Dhw.shape[1:])[0]
        seen_Dhw = torch.cat([_of_unit_variance(x_Dhw), _of_unit_variance(small_Chw)])
        yield [_segments(seen_Dhw, image_CHW, level) for level in LEVELS]


def _projected(features: dict[str, Tensor], directions: Directions, size: tuple[int, int]) -> Tensor:
    total_Dhw = directions.offset_D[:, None, None].expand(-1, *size).clone()
    for name, matrix_DC in directions.matrices.items():
        features_CHW = features[name].float().cpu()
        total_Dhw += resize(torch.einsum("dc,chw->dhw", matrix_DC, features_CHW)[None], size)[0]
    return total_Dhw


def _of_unit_variance(x_Dhw: Tensor) -> Tensor:
    """Scaled and moved so that the variances of all directions add up to 1."""
    centred_Dhw = x_Dhw - x_Dhw.mean(dim=(1, 2), keepdim=True)
    return centred_Dhw / centred_Dhw.square().mean(dim=(1, 2)).sum().sqrt().clamp_min(1e-12)


def _segments(x_Dhw: Tensor, image_CHW: Tensor, level: Level) -> Labels:
    x_PD = x_Dhw.flatten(1).T.contiguous()
    count = min(level.clusters, len(x_PD))
    found = KMeans(count, restarts=1, iterations=_ITERATIONS, start_points=4096)(x_PD[None])
    clusters_hw = found.assignment_BP[0].unflatten(0, x_Dhw.shape[1:])
    clusters_HW = _snapped(clusters_hw, image_CHW, count)
    return joined(components(clusters_HW), level.least_share * clusters_HW.size)


def _snapped(clusters_hw: Tensor, image_CHW: Tensor, count: int) -> Labels:
    """Clusters at the image's resolution, one after the other: no stack of them is ever made."""
    best_HW = torch.full(image_CHW.shape[1:], -torch.inf)
    clusters_HW = torch.zeros(image_CHW.shape[1:], dtype=torch.int32)
    for cluster in range(count):
        share_hw = (clusters_hw == cluster).float()
        share_HW = snap_to_edges(share_hw[None, None], image_CHW[None], radius=1)[0, 0]
        is_best_HW = share_HW > best_HW
        best_HW = torch.where(is_best_HW, share_HW, best_HW)
        clusters_HW[is_best_HW] = cluster
    return clusters_HW.numpy()


def components(clusters_HW: Labels) -> Labels:
    """Connected parts of equal clusters, by four neighbours, numbered 0, 1, ..."""
    segments_HW = np.zeros(clusters_HW.shape, np.int32)
    total = 0
    for cluster in np.unique(clusters_HW):
        count, parts_HW = cv2.connectedComponents((clusters_HW == cluster).astype(np.uint8), connectivity=4)
        inside_HW = parts_HW > 0
        segments_HW[inside_HW] = parts_HW[inside_HW] + (total - 1)
        total += count - 1
    return segments_HW


def joined(segments_HW: Labels, least: float) -> Labels:
    """Segments of fewer pixels than `least` joined, the smallest first, to the neighbour with the longest common
    border; numbered 0, 1, ... from the top left. segments_HW: numbered 0, 1, ... in any order."""
    sizes = np.bincount(segments_HW.ravel()).tolist()
    borders = _borders(segments_HW)
    parent = list(range(len(sizes)))
    queue = sorted((size, segment) for segment, size in enumerate(sizes) if size < least)
    while queue:
        size, segment = heapq.heappop(queue)
        if parent[segment] != segment or sizes[segment] != size or not borders[segment]:
            continue
        other = max(borders[segment], key=lambda each: (borders[segment][each], -each))
        parent[segment] = other
        sizes[other] += size
        for neighbour, length in borders.pop(segment).items():
            del borders[neighbour][segment]
            if neighbour != other:
                borders[other][neighbour] = borders[neighbour][other] = borders[other].get(neighbour, 0) + length
        if sizes[other] < least:
            heapq.heappush(queue, (sizes[other], other))
    roots = np.array([_root(parent, segment) for segment in range(len(parent))], np.int32)
    return _renumbered(roots[segments_HW])


def _borders(segments_HW: Labels) -> dict[int, dict[int, int]]:
    """Length of the common border with each neighbour, by segment."""
    count = int(segments_HW.max()) + 1
    borders: dict[int, dict[int, int]] = {segment: {} for segment in range(count)}
    pairs = [(segments_HW[:, 1:], segments_HW[:, :-1]), (segments_HW[1:], segments_HW[:-1])]
    keys = [(np.minimum(a, b).astype(np.int64) * count + np.maximum(a, b))[a != b] for a, b in pairs]
    found, lengths = np.unique(np.concatenate(keys), return_counts=True)
    for key, length in zip(found.tolist(), lengths.tolist(), strict=True):
        first, second = divmod(key, count)
        borders[first][second] = borders[second][first] = length
    return borders


def _root(parent: Sequence[int], segment: int) -> int:
    while parent[segment] != segment:
        segment = parent[segment]
    return segment


def _renumbered(segments_HW: Labels) -> Labels:
    _, first, inverse = np.unique(segments_HW.ravel(), return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first)).astype(np.int32)
    return rank[inverse].reshape(segments_HW.shape)


def _resolution(name: str) -> int:
    """8 of b8.conv0."""
    return int(name.partition(".")[0].removeprefix("b"))
