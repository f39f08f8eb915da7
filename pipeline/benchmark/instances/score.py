"""Scores of instances against true ones, each of which came with a box.

Shape suffixes: H height, W width.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from labelmill.pipeline.benchmark.instances.results import InstanceScores
from labelmill.pipeline.segmentation.metrics import MaskEvaluator


class InstanceEvaluator:
    """Collects pictures one at a time."""

    def __init__(self) -> None:
        self._things = MaskEvaluator(("rest", "things"))
        self._ious: list[float] = []
        self._num_pictures = 0

    def add(self, found: Sequence[Tensor], truths: Sequence[Tensor]) -> None:
        """Instances of a picture and true ones, bool [H, W], in the same order; no pixel has two."""
        self._num_pictures += 1
        for found_HW, truth_HW in zip(found, truths, strict=True):
            union = int((found_HW | truth_HW).sum())
            self._ious.append(int((found_HW & truth_HW).sum()) / max(union, 1))
        any_found_HW, any_true_HW = (sum(each.long() for each in some) > 0 for some in (found, truths))
        self._things.add(
            any_found_HW.cpu().numpy().astype(np.uint8),  # type: ignore[union-attr]
            any_true_HW.cpu().numpy().astype(np.uint8),  # type: ignore[union-attr]
        )

    def scores(self) -> InstanceScores:
        """Of all pictures so far."""
        scores = self._things.scores()
        return InstanceScores(
            iou_of_instances=float(np.mean(self._ious)) if self._ious else None,
            iou_of_things=scores.iou["things"] if self._ious else None,
            iou_of_rest=scores.iou["rest"] if self._ious else None,
            miou=scores.miou if self._ious else None,
            num_pictures=self._num_pictures,
            num_instances=len(self._ious),
        )
