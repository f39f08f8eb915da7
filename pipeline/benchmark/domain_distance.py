"""`python -m pipeline.benchmark.domain_distance`: how far generated avatars are from drawn ones.

The Fréchet distance of Heusel et al. (2017, section 4): features of both sets of images are taken for Gaussian, and
the squared 2-Wasserstein distance between the Gaussians is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The features
are oracle B's, which was trained on this very domain, not Inception's. Means and covariances of a sample are not
those of the distribution, which makes the estimate too large by about 1 / N; renders against other renders, as many
on each side, show by how much. Distances of different numbers of images must not be compared.

Beside it, how many of the pixels each class has.

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

from pipeline.benchmark.oracle import Oracle, open_oracle
from pipeline.benchmark.oracle_data import DISTANCE_SEEDS
from pipeline.benchmark.oracle_images import GENERATOR, generated_images, rendered_images
from schemas.errors import LabelmillError

Floats = NDArray[np.float64]

NUM_IMAGES = 2_000
TRUNCATIONS = (1.0, 0.7)
"""All that the generator learned, and what datasets are made from by default."""


@dataclass(frozen=True)
class Population:
    """What is measured of a set of images."""

    features_ND: Floats
    shares_K: Floats
    """Each class's share of all pixels, by the oracle's masks."""


@dataclass(frozen=True)
class DomainDistance:
    """Generated images beside renders; everything by one oracle and from the same number of images."""

    num_images: int
    classes: tuple[str, ...]
    floor: float
    """Between the renders and other renders."""
    distances: dict[str, float]
    """Between the renders and each generated set, by its name."""
    shares: dict[str, Floats]
    """Class shares by set; "renders, exact" are counted from exact masks."""


def frechet_distance(first_ND: NDArray[Any], second_ND: NDArray[Any]) -> float:
    """The distance (squared 2-Wasserstein) between Gaussians fitted to two sets of features; 2 or more of each."""
    fits = []
    for features_ND in (first_ND, second_ND):
        assert features_ND.ndim == 2 and len(features_ND) >= 2, features_ND.shape
        exact_ND = np.asarray(features_ND, np.float64)
        fits.append((exact_ND.mean(axis=0), np.atleast_2d(np.cov(exact_ND, rowvar=False))))
    (mean1_D, covariance1_DD), (mean2_D, covariance2_DD) = fits
    return gaussian_distance(mean1_D, covariance1_DD, mean2_D, covariance2_DD)


def gaussian_distance(mean1_D: Floats, covariance1_DD: Floats, mean2_D: Floats, covariance2_DD: Floats) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2), whose factors come from symmetric
    eigenproblems: real and stable also where covariances are singular, unlike a general matrix root of C1 C2.
    """
    roots_DD = _root(covariance1_DD) @ _root(covariance2_DD)
    overlap = np.linalg.svd(roots_DD, compute_uv=False).sum()
    spread = np.trace(covariance1_DD) + np.trace(covariance2_DD) - 2 * overlap
    return float(((mean1_D - mean2_D) ** 2).sum() + spread)


def _root(covariance_DD: Floats) -> Floats:
    """The symmetric root of a positive semidefinite matrix; eigenvalues that rounding made negative count as 0."""
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    return np.asarray((vectors_DD * np.sqrt(np.clip(values_D, 0, None))) @ vectors_DD.T)


def look(oracle: Oracle, images_BCHW: Tensor) -> Population:
    """Features and class shares of images float32 in [-1, 1]."""
    masks_BHW = oracle.segment(images_BCHW).cpu().numpy()
    return Population(oracle.features(images_BCHW).cpu().double().numpy(), shares(masks_BHW, len(oracle.classes)))


def shares(masks: NDArray[Any], num_classes: int) -> Floats:
    """Each class's share of all pixels of class ids of any shape."""
    return np.bincount(masks.ravel(), minlength=num_classes) / masks.size


def measure(checkpoint: str, truncations: Sequence[float], num_images: int) -> DomainDistance:
    """Distances of a generator's seeds 0, 1, ... with constant noise at each truncation."""
    oracle = open_oracle("b")
    generated = {
        f"generated, psi {psi:g}": look(oracle, generated_images(range(num_images), checkpoint, psi))
        for psi in truncations
    }
    own_seeds, other_seeds = (seeds[:num_images] for seeds in DISTANCE_SEEDS)
    images_BCHW, truths_NHW = rendered_images(own_seeds)
    renders, others = look(oracle, images_BCHW), look(oracle, rendered_images(other_seeds)[0])
    exact = {"renders, exact": shares(truths_NHW, len(oracle.classes))}
    sets = {"renders": renders, "other renders": others, **generated}
    return DomainDistance(
        num_images,
        oracle.classes,
        frechet_distance(renders.features_ND, others.features_ND),
        {name: frechet_distance(renders.features_ND, seen.features_ND) for name, seen in generated.items()},
        exact | {name: seen.shares_K for name, seen in sets.items()},
    )


def as_markdown(found: DomainDistance) -> str:
    """Two tables: distances, and class shares in per cent of the pixels."""
    distances = {"other renders (floor)": found.floor, **found.distances}
    lines = [f"| distance of {found.num_images:,} renders to as many | |", "|---|---|"]
    lines += [f"| {name} | {distance:.3f} |" for name, distance in distances.items()]
    lines += ["", f"| % of pixels | {' | '.join(found.shares)} |", "|---" * (len(found.shares) + 1) + "|"]
    for index, name in enumerate(found.classes):
        figures = " | ".join(f"{100 * shares_K[index]:.2f}" for shares_K in found.shares.values())
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.benchmark.domain_distance")
    parser.add_argument("--generator", default=GENERATOR, help="bundled:NAME, a path or a URL; 32 px")
    parser.add_argument("--psi", type=float, nargs="+", default=TRUNCATIONS, help="truncations")
    most = min(len(seeds) for seeds in DISTANCE_SEEDS)
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help=f"images of each set, 2 to {most}")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    given = parser.parse_args(arguments)
    if not 2 <= given.images <= most:
        parser.error(f"--images: 2 to {most}, got {given.images}")
    torch.set_num_threads(given.threads)
    try:
        print(as_markdown(measure(given.generator, given.psi, given.images)))
    except LabelmillError as error:
        print(f"domain_distance: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
