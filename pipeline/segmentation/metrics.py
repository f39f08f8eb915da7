"""Scores of masks against true masks, from one confusion matrix that is summed over a dataset.

Shape suffixes: H height, W width, T true value, P predicted value, K classes.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.schemas.sample import IGNORE
from labelmill.schemas.scores import BandScores, Scores

Mask = NDArray[np.uint8]
Counts = NDArray[np.int64]

BAND_WIDTH = 3
_VALUES = 256


class MaskEvaluator:
    """Collects masks one at a time, then scores them all. Memory does not grow with their number."""

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        """classes: names of the values 0, 1, ... None names each value by itself, up to the highest that occurs."""
        if classes is not None and not 1 <= len(classes) <= IGNORE:
            raise ValueError(f"classes: 1 to {IGNORE} names, got {len(classes)}")
        self._classes = None if classes is None else tuple(classes)
        self._matrix_TP = np.zeros((_VALUES, _VALUES), np.int64)
        self._band_TP = np.zeros((_VALUES, _VALUES), np.int64)
        self._image_mious: list[float] = []
        self._num_images = 0

    def add(self, pred_HW: Mask, truth_HW: Mask) -> None:
        """Count one image. Both masks are uint8 [H, W] of one size: class indices, 255 is ignore.

        Raises ValueError, and counts nothing, for other arrays or a value that is no class.
        """
        _check_pair(pred_HW, truth_HW)
        matrix_TP = confusion_matrix(pred_HW, truth_HW)
        self._check_values(matrix_TP)
        band_HW = boundary_band(truth_HW)
        self._matrix_TP += matrix_TP
        self._band_TP += confusion_matrix(pred_HW[band_HW], truth_HW[band_HW])
        self._num_images += 1
        own = ClassCounts(matrix_TP, IGNORE)
        own_miou = mean(own.iou())
        if own_miou is not None:
            self._image_mious.append(own_miou)

    def scores(self) -> Scores:
        """The scores of all masks so far."""
        names = self._classes or tuple(str(value) for value in range(highest_class(self._matrix_TP) + 1))
        whole, band = ClassCounts(self._matrix_TP, len(names)), ClassCounts(self._band_TP, len(names))
        return Scores(
            iou=_named(names, whole.iou()),
            miou=mean(whole.iou()),
            f1=mean(whole.f1()),
            precision=mean(whole.precision()),
            recall=mean(whole.recall()),
            accuracy=mean(whole.accuracy()),
            fwiou=whole.frequency_weighted_iou(),
            trimap_3px=BandScores(
                iou=_named(names, band.iou()), miou=mean(band.iou()), num_pixels=int(band.num_pixels)
            ),
            image_miou=float(np.mean(self._image_mious)) if self._image_mious else None,
            num_images=self._num_images,
            num_pixels=int(whole.num_pixels),
        )

    def confusion(self) -> Counts:
        """Pixels by true and predicted value [256, 256], ignored ones included."""
        return self._matrix_TP.copy()

    def _check_values(self, matrix_TP: Counts) -> None:
        if self._classes is None:
            return
        for side, pixels in (("truth", matrix_TP.sum(axis=1)), ("prediction", matrix_TP.sum(axis=0))):
            strange = np.flatnonzero(pixels[len(self._classes) : IGNORE]) + len(self._classes)
            if len(strange):
                raise ValueError(
                    f"the {side} holds {int(strange[0])}, but there are {len(self._classes)} classes "
                    f"(0 to {len(self._classes) - 1}, and {IGNORE} to ignore)"
                )


class ClassCounts:
    """TP, FP, FN and TN of each class [K], float64, and scores from them; NaN for a class that occurs nowhere."""

    def __init__(self, matrix_TP: Counts, num_classes: int) -> None:
        # Rows of true classes only: what is ignored counts neither for nor against anything.
        counted_KP = matrix_TP[:num_classes].astype(np.float64)
        self.tp_K = np.diagonal(counted_KP).copy()
        self.fn_K = counted_KP.sum(axis=1) - self.tp_K
        self.fp_K = counted_KP[:, :num_classes].sum(axis=0) - self.tp_K
        self.num_pixels = counted_KP.sum()
        self.occurs_K = self.tp_K + self.fn_K + self.fp_K > 0

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union."""
        return self._ratio(self.tp_K, self.tp_K + self.fp_K + self.fn_K)

    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall (Dice)."""
        return self._ratio(2 * self.tp_K, 2 * self.tp_K + self.fp_K + self.fn_K)

    def precision(self) -> NDArray[np.float64]:
        """Right among the predicted; 0 for a class that is true somewhere but never predicted."""
        return self._ratio(self.tp_K, self.tp_K + self.fp_K)

    def recall(self) -> NDArray[np.float64]:
        """Found among the true; 0 for a class that is predicted somewhere but never true."""
        return self._ratio(self.tp_K, self.tp_K + self.fn_K)

    def accuracy(self) -> NDArray[np.float64]:
        """Right decisions of each class against the rest."""
        return self._ratio(self.num_pixels - self.fp_K - self.fn_K, np.full_like(self.tp_K, self.num_pixels))

    def frequency_weighted_iou(self) -> float | None:
        """IoU weighted by the share of true pixels; None where no pixel was counted."""
        if self.num_pixels == 0:
            return None
        return float(np.nansum(self.iou() * (self.tp_K + self.fn_K)) / self.num_pixels)

    def _ratio(self, part_K: NDArray[np.float64], whole_K: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(self.occurs_K, part_K / np.maximum(whole_K, 1), np.nan)


def confusion_matrix(pred: Mask, truth: Mask) -> Counts:
    """Pixels by true and predicted value, [256, 256]. Both uint8, of one shape."""
    pairs = truth.astype(np.uint16) * np.uint16(_VALUES) + pred
    return np.bincount(pairs.ravel(), minlength=_VALUES * _VALUES).reshape(_VALUES, _VALUES)


def boundary_band(truth_HW: Mask, width: int = BAND_WIDTH) -> NDArray[np.bool_]:
    """True [H, W] near the boundaries of the true mask, whatever was predicted.

    A boundary pixel differs from one of its four neighbours (connectivity 1), so both sides of an edge are
    boundary; the ignore value is a region like any other, the image's rim is no boundary. Boundaries are dilated by a
    width x width square of ones. `3 px` is the side of that square: the band reaches 2 pixels to each side of an edge.
    This is the evaluation of NetWarp (Gadde et al., ICCV 2017), whose co-author published the 3 px trimap figures for
    style mixing (Feng et al., CVPR 2023) without a definition.
    """
    boundary_HW = np.zeros(truth_HW.shape, np.uint8)
    across, down = truth_HW[:, 1:] != truth_HW[:, :-1], truth_HW[1:] != truth_HW[:-1]
    boundary_HW[:, 1:] |= across
    boundary_HW[:, :-1] |= across
    boundary_HW[1:] |= down
    boundary_HW[:-1] |= down
    return cv2.dilate(boundary_HW, np.ones((width, width), np.uint8)).astype(bool)


def highest_class(matrix_TP: Counts) -> int:
    """The highest class among true and predicted values; 0 where there is none."""
    pixels = matrix_TP[:IGNORE].sum(axis=1) + matrix_TP[:, :IGNORE].sum(axis=0)
    return int(np.flatnonzero(pixels).max(initial=0))


def mean(values_K: NDArray[np.float64]) -> float | None:
    """The mean over classes that occur; None where none does."""
    return float(np.nanmean(values_K)) if np.isfinite(values_K).any() else None


def _named(names: Sequence[str], values_K: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values_K, strict=True)}


def _check_pair(pred_HW: Mask, truth_HW: Mask) -> None:
    for side, mask_HW in (("prediction", pred_HW), ("truth", truth_HW)):
        if mask_HW.dtype != np.uint8 or mask_HW.ndim != 2 or mask_HW.size == 0:
            raise ValueError(f"a {side} is uint8 [H, W], got {mask_HW.dtype} {list(mask_HW.shape)}")
    if pred_HW.shape != truth_HW.shape:
        raise ValueError(f"the prediction is {_size(pred_HW)}, the truth {_size(truth_HW)} pixels")


def _size(mask_HW: Mask) -> str:
    return f"{mask_HW.shape[1]} x {mask_HW.shape[0]}"
