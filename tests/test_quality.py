"""Quality rules: each by its bound, in order, and what a candidate records."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from labelmill.pipeline.quality import RULES, count_values, judge_sample, largest_component_share
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.sample import Candidate

CLASSES = ("background", "foreground")


def mask_with(foreground: float, size: int = 20) -> NDArray[np.uint8]:
    mask = np.zeros(size * size, np.uint8)
    mask[: round(foreground * size * size)] = 1
    return mask.reshape(size, size)


def judged(mask: NDArray[np.uint8], confidence: float = 0.9, **settings: object) -> Candidate:
    return judge_sample(mask, confidence, None, 7, CLASSES, QualityConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("foreground", "reason"),
    [
        (0.0, "foreground_too_small"),
        (0.0475, "foreground_too_small"),
        (0.05, None),
        (0.95, None),
        (0.9525, "foreground_too_large"),
        (1.0, "foreground_too_large"),
    ],
)
def test_bounds_of_the_foreground(foreground: float, reason: str | None) -> None:
    candidate = judged(mask_with(foreground))
    assert candidate.drop_reason == reason
    assert candidate.kept == (reason is None)


@pytest.mark.parametrize(("confidence", "reason"), [(0.4999, "low_confidence"), (0.5, None), (1.0, None)])
def test_bound_of_confidence(confidence: float, reason: str | None) -> None:
    assert judged(mask_with(0.5), confidence).drop_reason == reason


def test_bound_of_fragmentation() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:8, :10] = 1
    mask[15:17, 10:20] = 1
    assert largest_component_share(mask) == 0.8
    assert judged(mask).drop_reason is None
    mask[19, 0] = 1
    assert judged(mask).drop_reason == "fragmented"
    assert judged(mask).largest_component == round(80 / 101, 6)


def test_components_touch_at_corners_and_join_all_classes() -> None:
    assert largest_component_share(np.eye(6, dtype=np.uint8)) == 1
    mask = np.array([[1, 2, 0, 255, 1]], np.uint8)
    assert largest_component_share(mask) == pytest.approx(2 / 3)
    assert largest_component_share(np.zeros((4, 4), np.uint8)) == 1


def test_the_first_broken_rule_is_the_reason() -> None:
    assert list(RULES) == [
        "foreground_too_small",
        "foreground_too_large",
        "low_confidence",
        "fragmented",
        "uncertain",
        "too_few_instances",
    ]
    assert judged(mask_with(0.01), confidence=0.1).drop_reason == "foreground_too_small"


def test_switched_off_keeps_everything_and_measures_all_the_same() -> None:
    candidate = judged(mask_with(0.0), 0.0, enabled=False)
    assert candidate.kept
    assert candidate.class_pixels == {"background": 400, "foreground": 0, "ignore": 0}


def test_what_a_candidate_records() -> None:
    mask = np.array([[0, 1, 1], [0, 255, 1]], np.uint8)
    candidate = judge_sample(mask, 0.123456789, 3, 42, CLASSES, QualityConfig())
    assert candidate == Candidate(
        seed=42,
        class_id=3,
        drop_reason="low_confidence",
        confidence=0.123457,
        largest_component=1.0,
        class_pixels={"background": 2, "foreground": 3, "ignore": 1},
    )


def test_a_value_that_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"seed 7: mask holds \[2, 9\], but the classes are 0 to 1"):
        judged(np.array([[0, 9, 2, 255]], np.uint8))


masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 255]))


@settings(deadline=None, max_examples=100)
@given(mask=masks, confidence=st.floats(0, 1))
def test_every_pixel_is_counted_and_dropping_follows_the_rules(mask: NDArray[np.uint8], confidence: float) -> None:
    config = QualityConfig()
    candidate = judge_sample(mask, confidence, None, 0, CLASSES, config)
    assert sum(candidate.class_pixels.values()) == mask.size
    assert 0 < candidate.largest_component <= 1
    share = (mask == 1).mean()
    broken = [
        share < config.foreground_min,
        share > config.foreground_max,
        round(confidence, 6) < config.confidence_min,
        candidate.largest_component < config.largest_component_min,
    ]
    assert candidate.kept == (not any(broken))
    if candidate.drop_reason is not None:
        assert broken[list(RULES).index(candidate.drop_reason)]


@settings(deadline=None, max_examples=60)
@given(mask=masks, threshold=st.floats(0, 1))
def test_turning_the_picture_changes_nothing(mask: NDArray[np.uint8], threshold: float) -> None:
    config = QualityConfig(largest_component_min=threshold)
    turned = np.ascontiguousarray(np.rot90(mask))
    assert judge_sample(mask, 0.7, None, 0, CLASSES, config) == judge_sample(turned, 0.7, None, 0, CLASSES, config)


def test_values_are_counted_as_numpy_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for mask in (random.integers(0, 256, (70, 33), np.uint8), np.full((3, 5), 255, np.uint8), np.eye(40, dtype="u1").T):
        for block in (2**24, 100, 1):  # float32 has no more whole numbers than the first
            monkeypatch.setattr("labelmill.pipeline.quality._EXACT_COUNT", block)
            assert count_values(mask).tolist() == np.bincount(mask.ravel(), minlength=256).tolist()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.45, 0.6])
def test_the_largest_of_few_and_of_many_components(share: float) -> None:
    # From one or two to more than 256, which a byte does not tell apart.
    mask = (np.random.default_rng(1).random((120, 90)) < share).astype(np.uint8)
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    assert largest_component_share(mask) == statistics[1:, cv2.CC_STAT_AREA].max() / mask.sum()


@pytest.mark.parametrize(("least", "count", "reason"), [(None, 0, None), (2, 2, None), (2, 1, "too_few_instances")])
def test_an_image_has_as_many_instances_as_are_asked_for(least: int | None, count: int, reason: str | None) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 1
    judged = judge_sample(mask, 0.9, None, 7, CLASSES, QualityConfig(min_instances=least), num_instances=count)
    assert judged.drop_reason == reason
