"""The Fréchet distance: its formula, and its bias."""

import numpy as np
import pytest
import scipy.linalg

from labelmill.pipeline.generator.training.frechet import frechet_distance, gaussian_distance


def covariance(size: int, rank: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((size, rank))
    return root @ root.T / rank


def test_diagonal_gaussians_have_a_closed_form() -> None:
    """The roots commute: sum of (m1 - m2)^2 + (s1 - s2)^2, also where a deviation is 0."""
    mean1, mean2 = np.array([1.0, -2.0, 0.5, 0.0]), np.array([0.0, 1.0, 0.5, 3.0])
    spread1, spread2 = np.array([1.0, 0.0, 2.0, 3.0]), np.array([0.5, 2.0, 0.0, 3.0])
    found = gaussian_distance(mean1, np.diag(spread1**2), mean2, np.diag(spread2**2))
    assert found == pytest.approx(((mean1 - mean2) ** 2 + (spread1 - spread2) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_correlated_gaussians_agree_with_a_general_matrix_root(seed: int) -> None:
    first, second = covariance(12, 30, seed), 2 * covariance(12, 20, seed + 100)
    mean1, mean2 = np.random.default_rng(seed).standard_normal((2, 12))
    root = scipy.linalg.sqrtm(first @ second)
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(first + second - 2 * root.real)
    assert gaussian_distance(mean1, first, mean2, second) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_are_no_trouble() -> None:
    """Turned copies of commuting covariances of low rank, which a root of C1 C2 is unsure of."""
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((40, 40)))[0]
    values1 = np.r_[np.linspace(1, 3, 6), np.zeros(34)]
    values2 = np.r_[np.zeros(3), np.linspace(1, 2, 6), np.zeros(31)]
    found = gaussian_distance(np.zeros(40), turn * values1 @ turn.T, np.zeros(40), turn * values2 @ turn.T)
    assert found == pytest.approx(((np.sqrt(values1) - np.sqrt(values2)) ** 2).sum(), rel=1e-7)


def test_samples_are_fitted_by_their_moments() -> None:
    random = np.random.default_rng(0)
    first = random.standard_normal((50, 4)) @ random.standard_normal((4, 4)) + 1
    second = random.standard_normal((70, 4)) @ random.standard_normal((4, 4))
    fits = [(sample.mean(axis=0), np.cov(sample.T)) for sample in (first, second)]
    assert frechet_distance(first, second) == pytest.approx(gaussian_distance(*fits[0], *fits[1]), rel=1e-12)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    assert abs(frechet_distance(first, first)) < 1e-9
    moved = frechet_distance(first, first + np.array([3.0, 0.0, 0.0, 4.0]))
    assert moved == pytest.approx(25, rel=1e-9)


def test_bias_falls_as_the_number_of_images_grows() -> None:
    """Of samples of one distribution the true distance is 0; what is found is about c / N."""
    random = np.random.default_rng(1)
    found = [
        np.mean([frechet_distance(*random.standard_normal((2, num, 8))) for _ in range(20)]) for num in (250, 1000)
    ]
    assert found[0] / found[1] == pytest.approx(4, rel=0.25)
