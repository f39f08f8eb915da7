"""`python -m labelmill.pipeline.benchmark.oracle.domain_distance`: how far generated avatars are from drawn ones.

The Fréchet distance of Heusel et al. (2017, section 4): features of both sets of images are taken for Gaussian, and
the squared 2-Wasserstein distance between the Gaussians is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The features
are oracle B's, which was trained on this very domain, not Inception's. Means and covariances of a sample are not
those of the distribution, which makes the estimate too large by about 1 / N; renders against other renders, as many
on each side, show by how much. Distances of different numbers of images must not be compared.

The oracle looks at 32 px: larger images are reduced to that by means of blocks of pixels, so that its distance is one
of structure. What it cannot see is measured beside it, as the distance of detail (detail_distance). `--resolution`
measures at another size than the generator's: smaller images are enlarged bicubically, to compare generators that grew
out of each other.

Beside both, how many of the pixels each class has.

Shape suffixes: B batch, C channels, H height, W width, N images, D features, K classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.renders import DISTANCE_SEEDS, RESOLUTION
from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.benchmark.oracle.detail_distance import detail_distance
from labelmill.pipeline.benchmark.oracle.images import GENERATOR, generated_images, open_portraits, rendered_images
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, open_oracle
from labelmill.pipeline.generator.training.frechet import Floats, frechet_distance
from labelmill.schemas.errors import LabelmillError

NUM_IMAGES = 2_000
TRUNCATIONS = (1.0, 0.7)
"""All that the generator learned, and what datasets are made from by default."""


@dataclass(frozen=True)
class Population:
    """A set of images, and what is measured of it."""

    images_NCHW: Tensor
    features_ND: Floats
    shares_K: Floats
    """Each class's share of all pixels, by the oracle's masks."""


@dataclass(frozen=True)
class Distance:
    """Between the renders and another set."""

    structure: float
    """Fréchet distance by the oracle, on images reduced to its size."""
    detail: float
    """Sliced Wasserstein distance of fine detail, times 1,000."""


@dataclass(frozen=True)
class DomainDistance:
    """Generated images beside renders; everything by one oracle and from the same number of images."""

    num_images: int
    classes: tuple[str, ...]
    resolution: int
    """Of renders and images, in pixels."""
    distances: dict[str, Distance]
    """Between the renders and each other set, by its name."""
    shares: dict[str, Floats]
    """Class shares by set; "renders, exact" are counted from exact masks."""


def look(oracle: Oracle, images_BCHW: Tensor) -> Population:
    """Features and class shares of images float32 in [-1, 1], whose sides are multiples of 32."""
    reduced_BCHW = functional.avg_pool2d(images_BCHW, images_BCHW.shape[-1] // RESOLUTION)
    masks_BHW = oracle.segment(reduced_BCHW).cpu().numpy()
    return Population(
        images_BCHW, oracle.features(reduced_BCHW).cpu().double().numpy(), shares(masks_BHW, len(oracle.classes))
    )


def shares(masks: NDArray[Any], num_classes: int) -> Floats:
    """Each class's share of all pixels of class ids of any shape."""
    return np.bincount(masks.ravel(), minlength=num_classes) / masks.size


def measure_distances(
    checkpoint: str, truncations: Sequence[float], num_images: int, resolution: int | None = None
) -> DomainDistance:
    """Distances of a generator's seeds 0, 1, ... with constant noise at each truncation.

    resolution: None is the generator's. Raises LabelmillError where one is not a multiple of 32, or the generator's
    is above the other, and for rectangular or gray images.
    """
    own = open_portraits(checkpoint, torch.device("cpu")).generator.spec.resolution
    resolution = resolution or own
    if resolution % RESOLUTION or own > resolution:
        raise LabelmillError(
            f"{checkpoint} makes images of {own} px: they can be measured at their own size or enlarged, at a multiple "
            f"of {RESOLUTION} px; got {resolution}"
        )
    oracle = open_oracle("b", RESOLUTION)
    own_seeds, other_seeds = (seeds[:num_images] for seeds in DISTANCE_SEEDS)
    drawn_BCHW, truths_NHW = rendered_images(own_seeds, resolution)
    renders = look(oracle, drawn_BCHW)
    sets = {"other renders": look(oracle, rendered_images(other_seeds, resolution)[0])}
    for psi in truncations:
        images_BCHW = _enlarged(generated_images(range(num_images), checkpoint, psi).clamp(-1, 1), resolution)
        sets[f"generated, psi {psi:g}"] = look(oracle, images_BCHW)
    exact = {"renders, exact": shares(truths_NHW, len(oracle.classes))}
    return DomainDistance(
        num_images,
        oracle.classes,
        resolution,
        {name: distance(renders, seen) for name, seen in sets.items()},
        exact | {name: seen.shares_K for name, seen in ({"renders": renders} | sets).items()},
    )


def distance(renders: Population, seen: Population) -> Distance:
    """Of a set of images to as many renders."""
    return Distance(
        frechet_distance(renders.features_ND, seen.features_ND),
        detail_distance(renders.images_NCHW, seen.images_NCHW),
    )


def _enlarged(images_BCHW: Tensor, resolution: int) -> Tensor:
    if images_BCHW.shape[-1] == resolution:
        return images_BCHW
    size = (resolution, resolution)
    return functional.interpolate(images_BCHW, size, mode="bicubic", align_corners=False).clamp(-1, 1)


def as_markdown(found: DomainDistance) -> str:
    """Two tables: distances, and class shares in per cent of the pixels."""
    size = f"{found.resolution} px"
    head = (f"distance of {found.num_images:,} renders to as many, {size}", "structure", "detail")
    distances = [(name, f"{one.structure:.3f}", f"{one.detail:.2f}") for name, one in found.distances.items()]
    shares = [
        (name, *(f"{100 * shares_K[index]:.2f}" for shares_K in found.shares.values()))
        for index, name in enumerate(found.classes)
    ]
    tables = (markdown_table(head, distances), markdown_table(("% of pixels", *found.shares), shares))
    return "\n\n".join(tables)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m labelmill.pipeline.benchmark.oracle.domain_distance")
    parser.add_argument("--generator", default=GENERATOR, help="bundled:NAME, a path or a URL")
    parser.add_argument("--resolution", type=int, help="measure at this size (default: the generator's)")
    parser.add_argument("--psi", type=float, nargs="+", default=TRUNCATIONS, help="truncations")
    most = min(len(seeds) for seeds in DISTANCE_SEEDS)
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help=f"images of each set, 2 to {most}")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    given = parser.parse_args(arguments)
    if not 2 <= given.images <= most:
        parser.error(f"--images: 2 to {most}, got {given.images}")
    torch.set_num_threads(given.threads)
    try:
        print(as_markdown(measure_distances(given.generator, given.psi, given.images, given.resolution)))
    except LabelmillError as error:
        print(f"domain_distance: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
