"""Quality rules: pure, named, applied in a fixed order; the first that a sample breaks is its drop reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.schemas.config import QualityConfig
from labelmill.schemas.sample import IGNORE, Candidate


@dataclass(frozen=True)
class Evidence:
    """What rules look at beside the record of a candidate."""

    foreground: float
    """Its share of the image."""
    uncertain: bool
    """The labeler asks to drop it."""


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


RULES: dict[str, Rule] = {
    "foreground_too_small": _foreground_too_small,
    "foreground_too_large": _foreground_too_large,
    "low_confidence": _low_confidence,
    "fragmented": _fragmented,
    "uncertain": _uncertain,
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
) -> Candidate:
    """Measure a mask (class indices; 0 is background, 255 ignore) and apply the rules.

    uncertain: whether the labeler asks to drop it.
    Raises ValueError when the mask holds a value that is neither a class nor ignore.
    """
    pixels = np.bincount(mask_HW.ravel(), minlength=IGNORE + 1)
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
    evidence = Evidence(float(pixels[1:IGNORE].sum()) / mask_HW.size, uncertain)
    reason = next((name for name, breaks in RULES.items() if breaks(candidate, evidence, config)), None)
    return candidate.model_copy(update={"drop_reason": reason})


def largest_component_share(mask_HW: NDArray[np.uint8]) -> float:
    """Share of the foreground (neither background nor ignore) in its largest 8-connected piece; 1 if there is none."""
    foreground_HW = ((mask_HW != 0) & (mask_HW != IGNORE)).astype(np.uint8)
    total = int(foreground_HW.sum())
    if total == 0:
        return 1.0
    _, _, statistics, _ = cv2.connectedComponentsWithStats(foreground_HW, connectivity=8)
    return int(statistics[1:, cv2.CC_STAT_AREA].max()) / total
