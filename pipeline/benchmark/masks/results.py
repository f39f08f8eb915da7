"""What the mask benchmark measured: a row's scores, how sure they are, and what dropping unsure images gains.

Shape suffixes: I images, R resamplings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import spearmanr

from labelmill.pipeline.benchmark.masks.rows import MaskRow
from labelmill.schemas.scores import Scores

CLASSES = ("background", "foreground")
DROPPED_SHARES = tuple(share / 100 for share in range(0, 55, 5))
_NUM_BINS = 10
_RESAMPLINGS, _RESAMPLING_SEED = 2000, 7


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageResult(_Record):
    """One image of the test split: counts of the foreground, and the labeler's confidence."""

    seed: int
    confidence: float
    tp: int
    fp: int
    fn: int
    tn: int


class SplitResult(_Record):
    """Scores on one split."""

    scores: Scores
    """Against the judge, or the exact masks of drawings."""
    agreed: Scores
    """The same, without the pixels on which the judges disagree."""


class MasksRowResult(_Record):
    """`rows/<name>.json`."""

    row: MaskRow
    key: str
    """What all rows share that decides results: code, checkpoint, judges, seeds. Another one: measured anew."""
    crossover: int | None
    """The row of w that variants are mixed from."""
    dev: SplitResult
    test: SplitResult
    interval: tuple[float, float]
    """95 % of resamplings of the test images have an mIoU in it."""
    seconds_per_image: float | None
    """From seed to mask on the host; null where that is no way to label."""
    images: tuple[ImageResult, ...] = ()
    """Of the test split. Not repeated in `masks.json`."""


class Difference(_Record):
    """How much better or worse a row is than the default, on the same test images."""

    miou: float
    interval: tuple[float, float]
    """95 % of resamplings of the images."""


class ConfidenceBin(_Record):
    """Test images of about the same confidence."""

    confidence: float
    """Their mean."""
    miou: float
    """The mean of each image's own."""
    num_images: int


class ConfidenceCurve(_Record):
    """What confidence tells of masks, and what is gained by dropping images."""

    row: str
    rank_correlation: float | None
    """Spearman's, of confidence and an image's mIoU; null where one of them never changes."""
    dropped_share: tuple[float, ...]
    by_confidence: tuple[float, ...]
    """mIoU of the images that are left when the least confident ones are dropped."""
    at_best: tuple[float, ...]
    """The same when the images of the lowest mIoU are dropped: the most that any confidence can reach."""
    bins: tuple[ConfidenceBin, ...] = ()
    """As many images each, by confidence in ascending order; none in results of before they were counted."""


class MasksSettings(_Record):
    """What the results go with. Rows that were measured under others are measured anew."""

    checkpoint: str
    checkpoint_sha256: str
    resolution: int
    """Of images and masks, in pixels."""
    judges: str
    """Who says what foreground is."""
    truncation_psi: float
    device: str
    threads: int
    versions: dict[str, str]


class MaskBenchmark(_Record):
    """`masks.json`."""

    format: Literal["labelmill-mask-benchmark"] = "labelmill-mask-benchmark"
    version: Literal[1] = 1
    quick: bool
    circumstances: MasksSettings
    num_fit: int
    num_dev: int
    num_test: int
    default: str
    """The row with the labeler's defaults, which need no labels."""
    tuned: str
    """The row of style mixing that is best on the dev split."""
    confidence: tuple[ConfidenceCurve, ...]
    against_default: dict[str, Difference]
    """By the names of rows; the default on the same images."""
    rows: tuple[MasksRowResult, ...]

    def result(self, row: str) -> MasksRowResult:
        """A row by its name."""
        return next(result for result in self.rows if result.row.name == row)


@dataclass(frozen=True)
class Counts:
    """Foreground counts of images, each [I]."""

    tp_I: NDArray[np.float64]
    fp_I: NDArray[np.float64]
    fn_I: NDArray[np.float64]
    tn_I: NDArray[np.float64]

    @staticmethod
    def of(images: Sequence[ImageResult]) -> "Counts":
        return Counts(
            *(np.array([getattr(image, name) for image in images], float) for name in ("tp", "fp", "fn", "tn"))
        )

    def miou(self, weights_I: NDArray[np.float64]) -> NDArray[np.float64]:
        """mIoU of all images together, each counted so often; a class that occurs nowhere is left out.

        Weights [I] give a number, weights [R, I] one for each of R.
        """
        tp, fp, fn, tn = (weights_I @ counts_I for counts_I in (self.tp_I, self.fp_I, self.fn_I, self.tn_I))
        unions = np.stack([tp + fp + fn, tn + fp + fn])
        ious = np.stack([tp, tn]) / np.maximum(unions, 1)
        return np.asarray(ious.sum(axis=0) / (unions > 0).sum(axis=0))

    def mious_of_images(self) -> NDArray[np.float64]:
        """mIoU of each image [I]."""
        return self.miou(np.eye(len(self.tp_I)))


def interval(images: Sequence[ImageResult]) -> tuple[float, float]:
    """Where 95 % of mIoUs of resampled images lie (Efron, 1979)."""
    return _middle(_resampled(images))


def difference(images: Sequence[ImageResult], base: Sequence[ImageResult]) -> Difference:
    """The first row's mIoU less the other's. Both are of the same images, which are resampled together."""
    assert [image.seed for image in images] == [image.seed for image in base]
    once_I = np.ones(len(images))
    gained = float(Counts.of(images).miou(once_I) - Counts.of(base).miou(once_I))
    return Difference(miou=gained, interval=_middle(_resampled(images) - _resampled(base)))


def _resampled(images: Sequence[ImageResult]) -> NDArray[np.float64]:
    """mIoU [R] of images drawn with replacement, as often as there are images; the same ones at every call."""
    counts, random = Counts.of(images), np.random.default_rng(_RESAMPLING_SEED)
    weights_RI = random.multinomial(len(images), np.full(len(images), 1 / len(images)), size=_RESAMPLINGS)
    return counts.miou(weights_RI.astype(float))


def _middle(values_R: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values_R, [2.5, 97.5])
    return float(low), float(high)


def confidence_curve(result: MasksRowResult) -> ConfidenceCurve:
    """How mIoU rises as more and more of the least confident test images are dropped."""
    counts = Counts.of(result.images)
    own_I = counts.mious_of_images()
    confidence_I = np.array([image.confidence for image in result.images])
    changing = len(set(own_I)) > 1 and len(set(confidence_I)) > 1
    return ConfidenceCurve(
        row=result.row.name,
        rank_correlation=float(spearmanr(confidence_I, own_I).statistic) if changing else None,
        dropped_share=DROPPED_SHARES,
        by_confidence=_mious_without_the_lowest(counts, confidence_I),
        at_best=_mious_without_the_lowest(counts, own_I),
        bins=_bins(confidence_I, own_I),
    )


def _bins(confidence_I: NDArray[np.float64], miou_I: NDArray[np.float64]) -> tuple[ConfidenceBin, ...]:
    parts = np.array_split(confidence_I.argsort(kind="stable"), min(_NUM_BINS, len(confidence_I)))
    return tuple(
        ConfidenceBin(
            confidence=float(confidence_I[part].mean()), miou=float(miou_I[part].mean()), num_images=len(part)
        )
        for part in parts
    )


def _mious_without_the_lowest(counts: Counts, value_I: NDArray[np.float64]) -> tuple[float, ...]:
    rank_I = value_I.argsort(kind="stable").argsort(kind="stable")
    kept_RI = np.stack([rank_I >= round(share * len(rank_I)) for share in DROPPED_SHARES])
    return tuple(counts.miou(kept_RI.astype(float)).tolist())
