"""Logistic regression with balanced classes: a few Newton steps, float64 on the CPU, the same bits every time.

The objective is scikit-learn's LogisticRegression(class_weight="balanced") with C = 1 / penalty, which the paper's code
uses; the few lines here spare a dependency.

Shape suffixes: N samples, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_STEPS = 100
_GRADIENT = 1e-9

# Penalties that are tried, in parts of the number of samples.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_HELD_OUT = 4
"""Every so-manieth sample is held out to choose the penalty."""


@dataclass(frozen=True)
class LinearDecision:
    """Positive where w x + b is above 0."""

    weights_D: Tensor
    """float64."""
    offset: float
    balanced_accuracy: float
    """On samples that it did not learn from: mean of the shares that are right of either class."""


def fit_balanced(x_ND: Tensor, is_positive_N: Tensor) -> LinearDecision:
    """Choose the penalty on held-out samples, then learn from all. Both classes must occur four times or more."""
    x_ND = x_ND.double().cpu()
    y_N = is_positive_N.cpu()
    scale = (x_ND - x_ND.mean(dim=0)).square().mean().sqrt().clamp_min(1e-12)
    scaled_ND = x_ND / scale
    held_N = _every_few(y_N)
    best: tuple[float, float, float] | None = None
    for share in _PENALTIES:
        weights_D, offset = newton(scaled_ND[~held_N], y_N[~held_N], share * int((~held_N).sum()))
        margin_N = scaled_ND[held_N] @ weights_D + offset
        loss = _balanced_loss(margin_N, y_N[held_N])
        if best is None or loss < best[0]:
            best = loss, share, _balanced_accuracy(margin_N > 0, y_N[held_N])
    assert best is not None
    weights_D, offset = newton(scaled_ND, y_N, best[1] * len(y_N))
    return LinearDecision(weights_D / scale, offset, best[2])


def newton(x_ND: Tensor, is_positive_N: Tensor, penalty: float) -> tuple[Tensor, float]:
    """Weights [D] and offset of the least balanced loss plus penalty / 2 |w|^2; the offset is not penalised."""
    y_N = is_positive_N.double()
    weight_N = torch.where(is_positive_N, 1 / (2 * y_N.mean()), 1 / (2 * (1 - y_N.mean())))
    design_NF = torch.cat([x_ND, torch.ones_like(x_ND[:, :1])], dim=1)
    ridge_F = torch.full((design_NF.shape[1],), penalty, dtype=torch.float64)
    ridge_F[-1] = 0

    def loss(parameters_F: Tensor) -> float:
        margin_N = design_NF @ parameters_F
        fit = (weight_N * (torch.logaddexp(margin_N, torch.zeros_like(margin_N)) - y_N * margin_N)).sum()
        return float(fit + (ridge_F * parameters_F.square()).sum() / 2)

    parameters_F = torch.zeros(design_NF.shape[1], dtype=torch.float64)
    for _ in range(_MOST_STEPS):
        probability_N = torch.sigmoid(design_NF @ parameters_F)
        gradient_F = design_NF.T @ (weight_N * (probability_N - y_N)) + ridge_F * parameters_F
        if float(gradient_F.abs().max()) < _GRADIENT * len(y_N):
            break
        curvature_N = (weight_N * probability_N * (1 - probability_N)).clamp_min(1e-12)
        hessian_FF = design_NF.T @ (curvature_N[:, None] * design_NF) + ridge_F.diag()
        step_F = torch.linalg.solve(hessian_FF, gradient_F)
        length, now = 1.0, loss(parameters_F)
        while length > 1e-6 and loss(parameters_F - length * step_F) > now:
            length /= 2
        parameters_F = parameters_F - length * step_F
    return parameters_F[:-1], float(parameters_F[-1])


def _every_few(is_positive_N: Tensor) -> Tensor:
    """Held-out samples [N] bool: every fourth of either class, in their order."""
    rank_N = torch.where(is_positive_N, is_positive_N.long().cumsum(0), (~is_positive_N).long().cumsum(0))
    return rank_N % _HELD_OUT == 0


def _balanced_loss(margin_N: Tensor, is_positive_N: Tensor) -> float:
    losses_N = torch.where(
        is_positive_N, torch.nn.functional.softplus(-margin_N), torch.nn.functional.softplus(margin_N)
    )
    return float(losses_N[is_positive_N].mean() + losses_N[~is_positive_N].mean()) / 2


def _balanced_accuracy(said_N: Tensor, is_positive_N: Tensor) -> float:
    return (
        float(
            (said_N & is_positive_N).sum() / is_positive_N.sum()
            + (~said_N & ~is_positive_N).sum() / (~is_positive_N).sum()
        )
        / 2
    )
