"""Which images of a pool to annotate: those that show most between them, or those that a labeler is least sure of.

No choice is known to beat random images at ten of them: each finds rare classes more often than the other in some
draws. `coverage` looks at features alone, so it needs no labels and no labeler.

Shape suffixes: B batch, N images of the pool, C channels of a layer, H, W height and width, S pixels per image,
P = N * S, D features of a pixel, K clusters.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.labelers.common.kmeans import KMeans, one_hot
from labelmill.pipeline.labelers.common.pixel_reading import read_pixels, some_pixels

CLUSTERS = 200
_ITERATIONS = 8
_LARGEST_LAYER = 64
"""Height and width of the layers that are looked at: finer ones draw textures."""
_MOST_NUMBERS = 2**26
_MOST_PIXELS, _LEAST_PIXELS = 128, 16
"""Of an image, in the sample that is clustered."""


def choose_coverage(sampler: Sampler, seeds: Sequence[int], count: int) -> list[int]:
    """`count` of the seeds, whose images between them show most clusters of the generator's features; ascending.

    Pixels of all images are clustered once, by features that are standardised per channel. Then images are taken one by
    one, always the one that shows most clusters that none before it has; of equals, the one whose clusters were shown
    least often.
    """
    shown_NK = shown_clusters(sampler, seeds)
    return sorted(seeds[index] for index in greedy_cover(shown_NK, count))


def choose_uncertain(sampler: Sampler, labeler: Labeler, seeds: Sequence[int], count: int) -> list[int]:
    """`count` of the seeds, those that the labeler is least confident of; ascending."""
    confidences = torch.cat(
        [labeler.label(batch).confidence_B.float().cpu() for batch in sampler.batches(seeds, labeler.layers)]
    )
    order = confidences.sort(stable=True).indices[:count].tolist()
    return sorted(seeds[index] for index in order)


def greedy_cover(shown_NK: Tensor, count: int) -> list[int]:
    """Which rows of a table of zeros and ones [N, K] are taken, in order. count: at most N."""
    num_images, num_clusters = shown_NK.shape
    assert count <= num_images
    times_K = torch.zeros(num_clusters, dtype=torch.float64)
    taken: list[int] = []
    free_N = torch.ones(num_images, dtype=torch.bool)
    for _ in range(count):
        new_N = shown_NK.double() @ (times_K == 0).double()
        rare_N = shown_NK.double() @ (1 / (1 + times_K))
        # Rarity of all clusters together stays below their number plus one.
        score_N = new_N * (num_clusters + 1) + rare_N
        best = int(score_N.masked_fill(~free_N, -1).argmax())
        taken.append(best)
        free_N[best] = False
        times_K += shown_NK[best]
    return taken


def shown_clusters(sampler: Sampler, seeds: Sequence[int]) -> Tensor:
    """Which clusters each image shows [N, K] as zeros and ones, on the CPU."""
    x_PD = _standardised(_features(sampler, seeds))
    num_clusters = min(CLUSTERS, len(x_PD))
    starts = max(num_clusters, min(len(x_PD), 4096))
    cluster = KMeans(num_clusters, restarts=1, iterations=_ITERATIONS, device=x_PD.device, start_points=starts)
    member_KP = one_hot(cluster(x_PD[None]).assignment_BP, num_clusters)[0]
    return (member_KP.unflatten(1, (len(seeds), -1)).sum(dim=2) > 0).float().T.cpu()


def _features(sampler: Sampler, seeds: Sequence[int]) -> Tensor:
    """Features [P, D] float32 at some pixels of each image, all layers side by side."""
    spec = sampler.generator.spec
    names = [name for name in spec.conv_names if _resolution(name) <= _LARGEST_LAYER]
    size = spec.size_at(min(spec.resolution, _LARGEST_LAYER))
    num_features = sum(dict(spec.channels)[_resolution(name)] for name in names)
    most = _MOST_NUMBERS // (num_features * len(seeds))
    most = max(_LEAST_PIXELS, min(_MOST_PIXELS, most))
    parts = []
    for batch in sampler.batches(seeds, names):
        for index in range(len(batch)):
            pixels_S = some_pixels(prod(size), batch.seeds[index] % 2**31, most).to(sampler.device)
            read = [read_pixels(batch.features[name][index], pixels_S, size) for name in names]
            parts.append(torch.cat(read).T)
    return torch.cat(parts)


def _resolution(name: str) -> int:
    """8 of b8.conv0."""
    return int(name.partition(".")[0].removeprefix("b"))


def _standardised(x_PD: Tensor) -> Tensor:
    """Each feature with mean 0 and deviation 1; features of dead channels 0."""
    deviation_D, mean_D = torch.std_mean(x_PD, dim=0, correction=0)
    is_dead_D = deviation_D <= 1e-4 * deviation_D.max()
    scale_D = torch.where(is_dead_D, 0, 1 / deviation_D.clamp_min(1e-12))
    return ((x_PD - mean_D) * scale_D).contiguous()
