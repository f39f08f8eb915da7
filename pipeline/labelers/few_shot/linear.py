"""Multinomial logistic regression with sample weights, by a bounded number of L-BFGS steps in float64 on the CPU: it
repeats to the bit.

Shape suffixes: S pixels, P features, K classes, M members.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.labelers.few_shot.pixels import LabeledPixels
from labelmill.pipeline.labelers.few_shot.statistics import Projection
from labelmill.schemas.labelers.few_shot import LinearHeadConfig

# `penalty: auto`: of so few images pixels are much alike. Chosen on the bundled generator (32 px, dev seeds, five draws
# of images, six members): with a third of it classes gain nothing, with three times as much they lose 1 point of mIoU.
_PENALTY_OF_FEW, _PENALTY = 0.03, 0.01
_FEW_IMAGES = 2


def automatic_penalty(num_images: int) -> float:
    """What `penalty: auto` means."""
    return _PENALTY_OF_FEW if num_images <= _FEW_IMAGES else _PENALTY


def class_weights(labels_S: Tensor, weights_S: Tensor, num_classes: int, power: float) -> Tensor:
    """Weight of every pixel [S] by its class's share of all, to the power of minus `power`; their mean is 1."""
    share_K = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, labels_S, weights_S)
    weighted_S = weights_S * (share_K / share_K.sum()).clamp_min(1e-12)[labels_S] ** -power
    return weighted_S / weighted_S.mean()


def fit_logistic(
    x_SP: Tensor, labels_S: Tensor, weights_S: Tensor, num_classes: int, penalty: float, steps: int
) -> Tensor:
    """Coefficients [P + 1, K] float64, the constant last and unpenalised, of the least weighted mean loss plus
    penalty / 2 times the sum of squared coefficients. A class without a pixel is never likely."""
    seen_K = torch.bincount(labels_S, weights_S, minlength=num_classes) > 0
    coefficients_PK = torch.zeros(x_SP.shape[1] + 1, num_classes, dtype=torch.float64)
    # Begins with the classes' shares.
    share_K = torch.bincount(labels_S, weights_S, minlength=num_classes) / weights_S.sum()
    coefficients_PK[-1] = share_K.clamp_min(1e-12).log()
    coefficients_PK[-1, ~seen_K] = -1e4
    free_PK = seen_K.double().expand_as(coefficients_PK)
    coefficients_PK.requires_grad_(True)
    optimiser = torch.optim.LBFGS([coefficients_PK], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits_SK = x_SP @ coefficients_PK[:-1] + coefficients_PK[-1]
        each_S = functional.cross_entropy(logits_SK, labels_S, reduction="none")
        value = (each_S * weights_S).sum() / weights_S.sum() + penalty / 2 * coefficients_PK[:-1].square().sum()
        value.backward()
        assert coefficients_PK.grad is not None
        coefficients_PK.grad *= free_PK
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return coefficients_PK.detach()


def fit_linear_head(config: LinearHeadConfig, pixels: LabeledPixels) -> Tensor:
    """Coefficients of every member [M, P + 1, K] float64, the constant last."""
    num_images = len(pixels.image_S.unique())
    penalty = automatic_penalty(num_images) if config.penalty == "auto" else config.penalty
    members = [
        fit_logistic(
            pixels.x_SP,
            pixels.labels_S,
            class_weights(pixels.labels_S, weights_S, pixels.num_classes, config.class_weight),
            pixels.num_classes,
            penalty,
            config.steps,
        )
        for weights_S in _member_weights(config.members, pixels)
    ]
    return torch.stack(members)


def _member_weights(num_members: int, pixels: LabeledPixels) -> Iterator[Tensor]:
    """Weights of the pixels [S] for every member: their own for a single one, else times random numbers by image and by
    tile, each from the exponential distribution (Rubin, The Bayesian Bootstrap, 1981).

    No class is lost, as it is where images are drawn with replacement, and a single image will do.
    """
    for member in range(num_members):
        if num_members == 1:
            yield pixels.weights_S
            continue
        source = torch.Generator().manual_seed(member)
        num_tiles = int(pixels.tile_S.max()) + 1
        by_image = torch.empty(pixels.num_images, dtype=torch.float64).exponential_(generator=source)
        by_tile = torch.empty(num_tiles, dtype=torch.float64).exponential_(generator=source)
        yield pixels.weights_S * by_image[pixels.image_S] * by_tile[pixels.tile_S]


def coefficients_of_features(coefficients_MPK: Tensor, projection: Projection) -> tuple[Tensor, Tensor]:
    """The same regressions on features that are not projected: [D, M * K] float32, and constants [M * K]."""
    weights_MDK = projection.matrix_DP @ coefficients_MPK[:, :-1]
    constants_MK = coefficients_MPK[:, -1] - torch.einsum("d,mdk->mk", projection.mean_D, weights_MDK)
    return weights_MDK.permute(1, 0, 2).flatten(1).float(), constants_MK.flatten().float()
