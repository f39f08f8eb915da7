"""Conformal selection: the limit, against a search over all limits and against the theorem, by redraws."""

import numpy as np
import pytest

from labelmill.pipeline.promise.limit import JudgedMasks, choose_limit, masks_needed


def drawn(random: np.random.Generator, count: int, slope: float) -> tuple[JudgedMasks, np.ndarray]:
    """Masks whose confidence ranks them: the lower it is, the more are bad; a tenth breaks another rule."""
    confidence_N = np.round(random.uniform(0.3, 1, count), 6)
    is_bad_N = random.uniform(size=count) < slope * (1 - confidence_N)
    return JudgedMasks(confidence_N, random.uniform(size=count) > 0.1), is_bad_N


@pytest.mark.parametrize(("slope", "risk"), [(0.3, 0.2), (1.0, 0.2), (0.5, 0.1)])
def test_the_share_of_bad_masks_among_the_kept_is_as_promised_over_redraws(slope: float, risk: float) -> None:
    random = np.random.default_rng(3)
    (others, _), (kept_from, bad_of_them_N) = drawn(random, 2_000, slope), drawn(random, 20_000, slope)
    shares, limits = [], []
    for _ in range(1500):
        annotated, bad_N = drawn(random, 40, slope)
        limit = choose_limit(annotated, bad_N, others, 0.0, risk)
        kept_N = kept_from.kept(limit.confidence_min) if limit else np.zeros(len(bad_of_them_N), bool)
        shares.append(float(bad_of_them_N[kept_N].mean()) if kept_N.any() else 0.0)
        limits.append(limit.confidence_min if limit else 2.0)
    mean, error = float(np.mean(shares)), float(np.std(shares)) / len(shares) ** 0.5
    assert mean <= risk + 3 * error
    # Not by dropping everything: limits differ from draw to draw, and what may be risked is risked in part.
    assert mean > 0.3 * risk and np.std(limits) > 0.01


def test_the_limit_is_the_least_of_all() -> None:
    random = np.random.default_rng(5)
    for _ in range(200):
        count = int(random.integers(5, 40))
        (annotated, bad_N), (others, _) = drawn(random, count, 1.0), drawn(random, 300, 1.0)
        lowest, risk = float(random.choice([0.0, 0.5])), float(random.choice([0.1, 0.2, 0.4]))
        found = choose_limit(annotated, bad_N, others, lowest, risk)
        grid = np.unique([lowest, *(c for c in annotated.confidence_N + 1e-6 if c >= lowest)])
        fitting = [
            limit
            for limit in grid
            if (1 + (annotated.kept(limit) & bad_N).sum()) <= risk * (1 + count) * others.kept(limit).mean()
        ]
        assert (found is None) == (not fitting)
        if found is not None:
            assert found.confidence_min == pytest.approx(fitting[0])
            assert found.num_kept_below == (annotated.kept(found.confidence_min) & bad_N).sum()
            assert found.kept_share == others.kept(found.confidence_min).mean()


def test_what_a_limit_does_not_keep_is_recorded_below_it() -> None:
    annotated = JudgedMasks(np.array([0.5, 0.8, 0.9, 0.95]), np.ones(4, bool))
    others = JudgedMasks(np.linspace(0, 1, 101), np.ones(101, bool))
    limit = choose_limit(annotated, np.array([False, True, False, False]), others, 0.0, 1.0)
    assert limit is not None and (limit.confidence_min, limit.num_kept) == (0.0, 4)
    stricter = choose_limit(annotated, np.array([True, True, False, False]), others, 0.0, 0.99)
    assert stricter is not None and (stricter.confidence_min, stricter.num_kept_below) == (0.0, 2)
    assert choose_limit(annotated, np.array([True, True, False, False]), others, 0.0, 0.3) is None


def test_the_number_of_masks_that_would_do() -> None:
    annotated, others = JudgedMasks(np.full(8, 0.9), np.ones(8, bool)), JudgedMasks(np.full(50, 0.9), np.ones(50, bool))
    good_N, one_bad_N = np.zeros(8, bool), np.arange(8) == 0
    assert choose_limit(annotated, good_N, others, 0.0, 0.1) is None
    assert masks_needed(annotated, good_N, others, 0.0, 0.1) == 9  # 1 / (1 + 9) is a tenth
    assert masks_needed(annotated, one_bad_N, others, 0.0, 0.1) is None  # an eighth is bad at every limit
    assert masks_needed(annotated, one_bad_N, others, 0.0, 0.25) == 6
