"""The Fréchet distance between sets of features (Heusel et al. 2017, section 4): both are taken for Gaussian.

Shape suffixes: N samples, D features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
