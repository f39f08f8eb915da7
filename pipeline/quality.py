"""Quality rules: pure, named, applied in a fixed order; the first that a sample breaks is its drop reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.schemas.config import QualityConfig
from labelmill.schemas.sample import IGNORE, Candidate

# Up to here float32 has every whole number; OpenCV gives counts as such.
_EXACT_COUNT = 2**24


@dataclass(frozen=True)
class Evidence:
    """What rules look at beside the record of a candidate."""

    foreground: float
    """Its share of the image."""
    uncertain: bool
    """The labeler asks to drop it."""
    num_instances: int


Rule = Callable[[Candidate, Evidence, QualityConfig], bool]
"""Whether a candidate breaks the rule."""


def _foreground_too_small(candidate: Candidate, evidence: Evidence, config: QualityConfig) -> bool:
    return evidence.foreground < config.foreground_min


def _foreground_too_large(candidate: Candidate, evidence: Evidence, config: QualityConfig) -> bool:
    return evidence.foreground > config.foreground_max


def _low_confidence(candidate: Candidate, evidence: Evidence, config: QualityConfig) -> bool:
    return candidate.confidence < config.confidence_min


def _fragmented(candidate: Candidate, evidence: Evidence, config: QualityConfig) -> bool:
    return candidate.largest_component < config.largest_component_min


def _uncertain(candidate: Candidate, evidence: Evidence, config: QualityConfig) -> bool:
    return evidence.uncertain


def _too_few_instances(candidate: Candidate, evidence: Evidence, config: QualityConfig) -> bool:
    return config.min_instances is not None and evidence.num_instances < config.min_instances


RULES: dict[str, Rule] = {
    "foreground_too_small": _foreground_too_small,
    "foreground_too_large": _foreground_too_large,
    "low_confidence": _low_confidence,
    "fragmented": _fragmented,
    "uncertain": _uncertain,
    "too_few_instances": _too_few_instances,
}
"""Drop reasons in the order in which they are tried."""


def judge_sample(
    mask_HW: NDArray[np.uint8],
    confidence: float,
    class_id: int | None,
    seed: int,
    classes: Sequence[str],
    config: QualityConfig,
    *,
    uncertain: bool = False,
    num_instances: int = 0,
) -> Candidate:
    """Measure a mask (class indices; 0 is background, 255 ignore) and apply the rules.

    uncertain: whether the labeler asks to drop it. num_instances: that the image has.
    Raises ValueError when the mask holds a value that is neither a class nor ignore.
    """
    pixels = count_values(mask_HW)
    unknown = np.flatnonzero(pixels[len(classes) : IGNORE]) + len(classes)
    if unknown.size:
        raise ValueError(f"seed {seed}: mask holds {unknown.tolist()}, but the classes are 0 to {len(classes) - 1}")
    class_pixels = {name: int(pixels[index]) for index, name in enumerate(classes)}
    candidate = Candidate(
        seed=seed,
        class_id=class_id,
        drop_reason=None,
        confidence=round(float(confidence), 6),
        largest_component=round(largest_component_share(mask_HW), 6),
        class_pixels={**class_pixels, "ignore": int(pixels[IGNORE])},
    )
    if not config.enabled:
        return candidate
    evidence = Evidence(float(pixels[1:IGNORE].sum()) / mask_HW.size, uncertain, num_instances)
    reason = next((name for name, breaks in RULES.items() if breaks(candidate, evidence, config)), None)
    return candidate.model_copy(update={"drop_reason": reason})


def count_values(mask_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of each value [256]. Threads count beside each other, which they do not through np.bincount."""
    rows = max(1, _EXACT_COUNT // mask_HW.shape[1])
    counts = np.zeros(IGNORE + 1, np.int64)
    for start in range(0, len(mask_HW), rows):
        block = np.ascontiguousarray(mask_HW[start : start + rows])
        counts += cv2.calcHist([block], [0], None, [IGNORE + 1], [0, IGNORE + 1]).ravel().astype(np.int64)
    return counts


def largest_component_share(mask_HW: NDArray[np.uint8]) -> float:
    """Share of the foreground (neither background nor ignore) in its largest 8-connected piece; 1 if there is none."""
    foreground_HW = cv2.inRange(mask_HW, 1, IGNORE - 1)
    total = cv2.countNonZero(foreground_HW)
    if total == 0:
        return 1.0
    num_labels, labels_HW = cv2.connectedComponents(foreground_HW, connectivity=8)
    if num_labels == 2:  # the background and one piece
        return 1.0
    # OpenCV's own areas cost several times what its labels do.
    few = num_labels <= IGNORE + 1
    areas = count_values(labels_HW.astype(np.uint8)) if few else np.bincount(labels_HW.ravel())
    return int(areas[1:].max()) / total
