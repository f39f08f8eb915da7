"""Scores against hand counts, plain loops over pixels, torchmetrics and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from sklearn import metrics as sklearn_metrics
from torchmetrics.classification import (
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
    MulticlassStatScores,
)

from labelmill.pipeline.segmentation.matching import Matching, match_clusters
from labelmill.pipeline.segmentation.metrics import MaskEvaluator, boundary_band, confusion_matrix
from labelmill.schemas.scores import Scores

Pair = tuple[np.ndarray, np.ndarray]


def mask(*rows: str) -> np.ndarray:
    """Digits are classes, `.` is ignore."""
    return np.array([[255 if sign == "." else int(sign) for sign in row] for row in rows], np.uint8)


def scores_of(*pairs: Pair, classes: tuple[str, ...] | None = None) -> Scores:
    evaluator = MaskEvaluator(classes)
    for pred_HW, truth_HW in pairs:
        evaluator.add(pred_HW, truth_HW)
    return evaluator.scores()


# By hand


def test_golden_two_classes() -> None:
    # Class 1: TP 2, FP 1, FN 2. Class 0: TP 3, FP 2, FN 1.
    found = scores_of((mask("0011", "0100"), mask("0011", "0011")), classes=("background", "figure"))
    assert found.iou == {"background": 3 / 6, "figure": 2 / 5}
    assert found.miou == pytest.approx(0.45, abs=1e-15)
    assert found.precision == pytest.approx((3 / 5 + 2 / 3) / 2, abs=1e-15)
    assert found.recall == pytest.approx((3 / 4 + 2 / 4) / 2, abs=1e-15)
    assert found.f1 == pytest.approx((6 / 9 + 4 / 7) / 2, abs=1e-15)
    assert found.accuracy == 5 / 8
    assert found.fwiou == pytest.approx(0.45, abs=1e-15)
    assert (found.num_images, found.num_pixels) == (1, 8)


def test_golden_sums_over_the_dataset_are_not_means_over_images() -> None:
    found = scores_of((mask("01"), mask("01")), (mask("0000"), mask("0111")))
    # Class 0: TP 2, FP 3, FN 0; class 1: TP 1, FP 0, FN 3. Images: 1, and (1/4 + 0) / 2.
    assert found.iou == {"0": 2 / 5, "1": 1 / 4}
    assert found.image_miou == (1 + 1 / 8) / 2
    # True pixels: 2 of class 0, 4 of class 1.
    assert found.fwiou == pytest.approx((2 * 2 / 5 + 4 * 1 / 4) / 6, abs=1e-15)


def test_golden_empty_classes() -> None:
    # Class 2 occurs nowhere; class 3 is predicted only.
    found = scores_of((mask("0133"), mask("0111")), classes=("a", "b", "c", "d"))
    assert found.iou == {"a": 1.0, "b": 1 / 3, "c": None, "d": 0.0}
    assert found.miou == (1 + 1 / 3 + 0) / 3
    assert found.precision == (1 + 1 + 0) / 3
    assert found.recall == (1 + 1 / 3 + 0) / 3
    assert found.accuracy == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found.image_miou == found.miou


def test_golden_ignore() -> None:
    # Truth 255 never counts, whatever is predicted there; a predicted 255 is a miss and no false alarm.
    found = scores_of((mask("01.0", "1..1"), mask("0111", ".. 0".replace(" ", "."))))
    assert found.num_pixels == 5
    # Class 0: TP 1, FP 1 (the fourth), FN 0 + 1 (predicted 1). Class 1: TP 1, FP 1, FN 2.
    assert found.iou == {"0": 1 / 3, "1": 1 / 4}
    assert found.precision == (1 / 2 + 1 / 2) / 2
    assert found.recall == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_all_ignored_has_no_score() -> None:
    found = scores_of((mask("01"), mask("..")), classes=("a", "b"))
    assert found.iou == found.trimap_3px.iou == {"a": None, "b": None}
    assert found.miou is found.f1 is found.accuracy is found.fwiou is found.image_miou is found.trimap_3px.miou is None
    assert (found.num_images, found.num_pixels) == (1, 0)


def test_golden_band() -> None:
    truth_HW = mask(*["0000011111"] * 3)
    # Boundary in columns 4 and 5, dilated by a 3 x 3 square: columns 3 to 6.
    assert boundary_band(truth_HW).tolist() == [[False] * 3 + [True] * 4 + [False] * 3] * 3
    pred_HW = mask("0000111111", "0000011111", "1000011110")
    found = scores_of((pred_HW, truth_HW))
    # The mistakes in the corners lie outside: within the band class 0 has TP 5, FN 1, class 1 TP 6, FP 1.
    assert found.trimap_3px.iou == {"0": 5 / 6, "1": 6 / 7}
    assert found.trimap_3px.miou == (5 / 6 + 6 / 7) / 2
    assert found.trimap_3px.num_pixels == 12


def test_the_band_is_of_the_truth_alone() -> None:
    truth_HW = np.zeros((9, 9), np.uint8)
    pred_HW = truth_HW.copy()
    pred_HW[4, 4] = 1
    assert scores_of((pred_HW, truth_HW)).trimap_3px.num_pixels == 0


def test_key_names() -> None:
    assert list(scores_of((mask("01"), mask("01"))).model_dump()) == [
        "iou", "miou", "f1", "precision", "recall", "accuracy", "fwiou", "trimap_3px", "image_miou", "num_images",
        "num_pixels",
    ]  # fmt: skip


# By plain loops, for any masks


def in_band(truth_HW: np.ndarray, row: int, column: int) -> bool:
    """Straight from the definition."""
    height, width = truth_HW.shape

    def is_boundary(y: int, x: int) -> bool:
        around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        return any(0 <= v < height and 0 <= u < width and truth_HW[v, u] != truth_HW[y, x] for v, u in around)

    square = itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1))
    return any(0 <= y < height and 0 <= x < width and is_boundary(y, x) for y, x in square)


def counts_by_loops(pairs: list[Pair], num_classes: int, banded: bool) -> list[dict[str, int]]:
    counts = [dict.fromkeys(("tp", "fp", "fn", "tn"), 0) for _ in range(num_classes)]
    for pred_HW, truth_HW in pairs:
        for place in np.ndindex(*truth_HW.shape):
            predicted, true = int(pred_HW[place]), int(truth_HW[place])
            if true == 255 or (banded and not in_band(truth_HW, *place)):
                continue
            for value, count in enumerate(counts):
                name = ("tp" if predicted == true else "fn") if true == value else "fp" if predicted == value else "tn"
                count[name] += 1
    return counts


def mean_of(counts: list[dict[str, int]], part: str, whole: str) -> float | None:
    """Mean over the classes that occur of a ratio of sums of counts, 0 / 0 being 0."""
    values = []
    for count in counts:
        if count["tp"] + count["fp"] + count["fn"]:
            below = sum(count[name] for name in whole.split())
            values.append(sum(count[name] for name in part.split()) / below if below else 0.0)
    return sum(values) / len(values) if values else None


def ious_by_loops(counts: list[dict[str, int]]) -> dict[str, float | None]:
    return {str(value): mean_of([count], "tp", "tp fp fn") for value, count in enumerate(counts)}


def approx(value: object) -> object:
    return value if value is None else pytest.approx(value, abs=1e-9)


masks = arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 0, 1, 1, 2, 3, 255]))
even_masks = st.sampled_from([0, 1, 3, 255]).map(lambda value: np.full((5, 7), value, np.uint8))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(masks | even_masks, masks | even_masks), min_size=1, max_size=3))
def test_every_figure_by_plain_loops(pairs: list[Pair]) -> None:
    found = scores_of(*pairs, classes=("0", "1", "2", "3", "4"))
    whole, band = (counts_by_loops(pairs, 5, banded) for banded in (False, True))
    assert found.iou == {name: approx(value) for name, value in ious_by_loops(whole).items()}
    assert found.trimap_3px.iou == {name: approx(value) for name, value in ious_by_loops(band).items()}
    assert found.miou == approx(mean_of(whole, "tp", "tp fp fn"))
    assert found.trimap_3px.miou == approx(mean_of(band, "tp", "tp fp fn"))
    assert found.precision == approx(mean_of(whole, "tp", "tp fp"))
    assert found.recall == approx(mean_of(whole, "tp", "tp fn"))
    assert found.f1 == approx(mean_of(whole, "tp tp", "tp tp fp fn"))
    assert found.accuracy == approx(mean_of(whole, "tp tn", "tp fp fn tn"))
    each = [mean_of(counts_by_loops([pair], 5, False), "tp", "tp fp fn") for pair in pairs]
    scored = [value for value in each if value is not None]
    assert found.image_miou == approx(sum(scored) / len(scored) if scored else None)
    num_pixels = sum(int((truth_HW != 255).sum()) for _, truth_HW in pairs)
    assert found.num_pixels == num_pixels
    weighted = sum(
        (count["tp"] + count["fn"]) * count["tp"] / (count["tp"] + count["fp"] + count["fn"])
        for count in whole
        if count["tp"] + count["fp"] + count["fn"]
    )
    assert found.fwiou == approx(weighted / num_pixels if num_pixels else None)


@settings(deadline=None, max_examples=40)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)))
def test_the_band_by_grey_morphology(truth_HW: np.ndarray) -> None:
    cross = ndimage.generate_binary_structure(2, 1)
    high, low = (f(truth_HW, footprint=cross) for f in (ndimage.grey_dilation, ndimage.grey_erosion))
    assert np.array_equal(boundary_band(truth_HW), ndimage.binary_dilation(high != low, np.ones((3, 3))))


# By libraries


@pytest.mark.parametrize("absent", [(), (2,), (0, 3)], ids=str)
def test_against_torchmetrics(absent: tuple[int, ...]) -> None:
    random = np.random.default_rng(7)
    present = [value for value in range(5) if value not in absent]
    truth = random.choice([*present, 255], (4, 32, 24)).astype(np.uint8)
    pred = np.where(random.random(truth.shape) < 0.6, truth, random.choice(present, truth.shape)).astype(np.uint8)
    pred[pred == 255] = present[0]
    found = scores_of(*zip(pred, truth, strict=True), classes=tuple("01234"))
    arguments = torch.from_numpy(pred).long(), torch.from_numpy(truth).long()
    options = {"num_classes": 5, "ignore_index": 255, "validate_args": False}

    def theirs(metric: type, **more: object) -> float:
        return float(metric(**options, **more)(*arguments))

    assert found.miou == pytest.approx(theirs(MulticlassJaccardIndex, average="macro"), abs=1e-6)
    assert found.fwiou == pytest.approx(theirs(MulticlassJaccardIndex, average="weighted"), abs=1e-6)
    assert found.f1 == pytest.approx(theirs(MulticlassF1Score, average="macro"), abs=1e-6)
    assert found.precision == pytest.approx(theirs(MulticlassPrecision, average="macro"), abs=1e-6)
    assert found.recall == pytest.approx(theirs(MulticlassRecall, average="macro"), abs=1e-6)
    tp, fp, tn, fn, _ = MulticlassStatScores(**options, average=None)(*arguments)[present].double().T
    assert found.accuracy == pytest.approx(float(((tp + tn) / (tp + fp + tn + fn)).mean()), abs=1e-6)


def test_against_scikit_learn() -> None:
    random = np.random.default_rng(11)
    truth = random.integers(0, 4, (3, 20, 20)).astype(np.uint8)
    pred = np.where(random.random(truth.shape) < 0.7, truth, random.integers(0, 4, truth.shape)).astype(np.uint8)
    found = scores_of(*zip(pred, truth, strict=True))
    flat = truth.ravel(), pred.ravel()
    theirs = sklearn_metrics.precision_recall_fscore_support(*flat, average="macro")
    assert (found.precision, found.recall, found.f1) == pytest.approx(theirs[:3], abs=1e-12)
    assert list(found.iou.values()) == pytest.approx(sklearn_metrics.jaccard_score(*flat, average=None), abs=1e-12)
    assert found.fwiou == pytest.approx(sklearn_metrics.jaccard_score(*flat, average="weighted"), abs=1e-12)
    each = [
        sklearn_metrics.jaccard_score(t.ravel(), p.ravel(), average="macro") for p, t in zip(pred, truth, strict=True)
    ]
    assert found.image_miou == pytest.approx(np.mean(each), abs=1e-12)


def test_accuracy_of_two_classes_is_the_share_of_right_pixels() -> None:
    random = np.random.default_rng(3)
    pred, truth = random.integers(0, 2, (2, 30, 30), dtype=np.uint8)
    assert scores_of((pred, truth)).accuracy == pytest.approx((pred == truth).mean(), abs=1e-15)


# What is refused


@pytest.mark.parametrize(
    ("pred_HW", "truth_HW", "message"),
    [
        (mask("012"), mask("011"), "the prediction holds 2, but there are 2 classes"),
        (mask("011"), mask("019"), "the truth holds 9"),
        (mask("011"), mask("01"), "the prediction is 3 x 1, the truth 2 x 1 pixels"),
        (mask("01").astype(np.int64), mask("01"), "uint8"),
        (mask("01"), mask("01")[None], "uint8"),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), "uint8"),
    ],
)
def test_what_is_refused_counts_nothing(pred_HW: np.ndarray, truth_HW: np.ndarray, message: str) -> None:
    evaluator = MaskEvaluator(("a", "b"))
    with pytest.raises(ValueError, match=message):
        evaluator.add(pred_HW, truth_HW)
    assert (evaluator.scores().num_images, evaluator.scores().num_pixels) == (0, 0)
    assert not evaluator.confusion().any()


# Clusters without names


def best_assignment(overlap_KP: np.ndarray) -> int:
    """The most pixels that any assignment of at most one cluster a class gets right."""
    num_classes, num_clusters = overlap_KP.shape
    if num_classes > num_clusters:
        return best_assignment(overlap_KP.T)
    return max(
        sum(int(overlap_KP[row, column]) for row, column in enumerate(columns))
        for columns in itertools.permutations(range(num_clusters), num_classes)
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_one_to_one_gets_as_many_pixels_right_as_any_assignment(classes: int, clusters: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, pred = (random.integers(0, count, (6, 40), dtype=np.uint8) for count in (classes, clusters))
    confusion_TP = confusion_matrix(pred, truth)
    table = match_clusters(confusion_TP, classes, Matching.ONE_TO_ONE)
    used = [value for value in table.tolist() if value != 255]
    assert len(used) == len(set(used))
    assert int((table[pred] == truth).sum()) == best_assignment(confusion_TP[:classes, :clusters])


def test_matching_by_hand() -> None:
    truth, pred = mask("0000111122"), mask("7788333355")
    confusion_TP = confusion_matrix(pred, truth)
    one, many = (match_clusters(confusion_TP, 3, matching) for matching in Matching)
    assert one[[3, 5]].tolist() == many[[3, 5]].tolist() == [1, 2]
    assert sorted(one[[7, 8]].tolist()) == [0, 255]
    assert many[[7, 8]].tolist() == [0, 0]
    assert one[255] == many[255] == one[0] == many[4] == 255
    assert scores_of((many[pred], truth)).miou == 1
    assert scores_of((one[pred], truth)).iou == {"0": 0.5, "1": 1.0, "2": 1.0}


def test_ignored_pixels_match_nothing() -> None:
    truth, pred = mask("0", "1", ".", ".", "."), mask("1", "0", "0", "0", "0")
    table = match_clusters(confusion_matrix(pred, truth), 2, Matching.MANY_TO_ONE)
    assert table[:2].tolist() == [1, 0]
    assert math.isclose(scores_of((table[pred], truth)).miou or 0, 1)


def test_a_class_that_is_predicted_alone_is_named_too() -> None:
    evaluator = MaskEvaluator()
    evaluator.add(np.array([[0, 2]], np.uint8), np.array([[0, 1]], np.uint8))
    assert evaluator.scores().iou == {"0": 1.0, "1": 0.0, "2": 0.0}
