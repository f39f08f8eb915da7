"""Confidence: the IoU that a mask may be expected to have, calibrated without labels.

What a labeler notices about a mask (how sharp it is, how far its halves agree) is mapped to how well the masks of `fit`
agreed with other masks of the same images: those of the clusters where the read-out labels, and the other way round.
The two may share mistakes, so that either agrees with the truth less than with the other; the square of their agreement
is taken for it. That is cautious: on the bundled generator masks are better by about .02.

Shape suffixes: B batch (images), S signals.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import nnls
from torch import Tensor


@dataclass(frozen=True)
class ConfidenceModel:
    """Expected IoU, rising with every signal."""

    weights_S: Tensor
    """0 or more, float32."""
    offset: Tensor
    """[] float32."""

    @staticmethod
    def shapes(num_signals: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the fields."""
        return {"weights_S": (num_signals,), "offset": ()}

    def __call__(self, signals_BS: Tensor) -> Tensor:
        """[B] float32 in [0, 1]."""
        return ((signals_BS * self.weights_S).sum(dim=1) + self.offset).clamp(0, 1)


def fit_confidence(signals_BS: Tensor, agreement_B: Tensor) -> ConfidenceModel:
    """Least squares with weights of 0 or more. agreement_B: IoU of each mask with the other one of its image."""
    signals, expected = signals_BS.double().cpu(), agreement_B.double().cpu().square()
    means_S, mean = signals.mean(dim=0), expected.mean()
    weights, _ = nnls((signals - means_S).numpy(), (expected - mean).numpy())
    weights_S = torch.from_numpy(weights)
    offset = mean - means_S @ weights_S
    return ConfidenceModel(weights_S.float().to(signals_BS.device), offset.float().to(signals_BS.device))
