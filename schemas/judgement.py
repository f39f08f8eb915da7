"""What `labelmill evaluate OUTPUT --judge MODEL --json` prints."""

from labelmill.schemas.scores import Scores


class JudgedScores(Scores):
    """Scores of a dataset's masks, with a network's masks of the same images as truth.

    That is the protocol of pseudo ground truth: they tell how far dataset and network agree, no more.
    """

    judge_sha256: str
    """Of the network's file."""
    not_judged: float
    """Share of the pixels left out: of classes that only one side knows, or ignored by the network."""
    confidence_correlation: float | None
    """Rank correlation (Spearman) over samples of the labeler's confidence with the sample's own mIoU; null where one
    of them does not vary."""
    confidence_correlation_error: float | None
    """Its standard error, (1 - r²) / sqrt(n - 1)."""
