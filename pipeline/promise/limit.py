"""The least confidence limit that keeps a promise: conformal selection.

Jin and Candès, Selection by prediction with conformal p-values (JMLR 2023), choose among candidates those whose unknown
outcome is good, such that the expected share of bad ones among the chosen is at most a given number, whatever the
scores are worth, if annotated and other images are drawn alike. Their rule is a threshold: (1 + bad annotated images
above it) / (1 + annotated images), divided by the share of candidates above it, must not pass that number. Candidates
are without end here, so their share is measured once on many. Conformal risk control (Angelopoulos et al., 2022)
bounds the same sum without the division: bad and kept samples per candidate, which more dropping always lowers; what
users get is the share among the kept.

Shape suffixes: N annotated images, U images without annotations.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

RESOLUTION = 1e-6
"""Of recorded confidences."""


@dataclass(frozen=True)
class JudgedMasks:
    """Masks with the confidences that are recorded of them."""

    confidence_N: NDArray[np.float64]
    passes_N: NDArray[np.bool_]
    """Whether all quality rules but the confidence limit keep them."""

    def kept(self, limit: float) -> NDArray[np.bool_]:
        """Which a confidence limit keeps."""
        return self.passes_N & (self.confidence_N >= limit)


@dataclass(frozen=True)
class Limit:
    """A confidence limit, and what is known of those it keeps."""

    confidence_min: float
    estimated_risk: float
    num_kept: int
    num_kept_below: int
    kept_share: float


def choose_limit(
    annotated: JudgedMasks, below_N: NDArray[np.bool_], others: JudgedMasks, lowest: float, risk: float
) -> Limit | None:
    """The least confidence limit, `lowest` or more, that keeps the promise; None where none does.

    below_N: which annotated images' masks are not good enough. others: images without annotations, drawn alike.
    """
    return next((limit for limit in _limits(annotated, below_N, others, lowest) if limit.estimated_risk <= risk), None)


def masks_needed(
    annotated: JudgedMasks, below_N: NDArray[np.bool_], others: JudgedMasks, lowest: float, risk: float
) -> int | None:
    """How many annotated images would do, if more of them were as those that there are; None where none would."""
    counts = []
    for limit in _limits(annotated, below_N, others, lowest):
        allowed, bad = risk * limit.kept_share, limit.num_kept_below / len(below_N)
        if bad < allowed and limit.num_kept > limit.num_kept_below:
            counts.append(ceil((1 - allowed) / (allowed - bad)))
    return min(counts) if counts else None


def _limits(annotated: JudgedMasks, below_N: NDArray[np.bool_], others: JudgedMasks, lowest: float) -> list[Limit]:
    """Every limit that drops bad annotated images which the one before it keeps, ascending."""
    bad_N = below_N & annotated.kept(lowest)
    candidates = np.unique(np.round(annotated.confidence_N[bad_N] + RESOLUTION, 6))
    return [_at(limit, annotated, below_N, others) for limit in (lowest, *candidates.tolist()) if limit <= 1]


def _at(limit: float, annotated: JudgedMasks, below_N: NDArray[np.bool_], others: JudgedMasks) -> Limit:
    kept_N = annotated.kept(limit)
    num_bad, share = int((kept_N & below_N).sum()), float(others.kept(limit).mean())
    risk = (1 + num_bad) / (1 + len(below_N)) / share if share else float("inf")
    return Limit(limit, risk, int(kept_N.sum()), num_bad, share)
