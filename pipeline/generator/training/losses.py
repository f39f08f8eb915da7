"""The losses of StyleGAN2: non-saturating logistic, R1 and path-length penalties (Karras et al. 2020).

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(D(G(z))) (Goodfellow et al. 2014, section 3)."""
    return functional.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(D(x)) - log(1 - sigmoid(D(G(z))))."""
    return functional.softplus(-real_logits).mean() + functional.softplus(fake_logits).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real_BCHW: Tensor) -> Tensor:
    """Mean squared norm of the logit's gradient at real images, over two (Mescheder et al. 2018, equation 9)."""
    real_BCHW = real_BCHW.detach().requires_grad_(True)
    logits = discriminator(real_BCHW)
    (gradient_BCHW,) = torch.autograd.grad(logits.sum(), real_BCHW, create_graph=True)
    return gradient_BCHW.float().square().sum(dim=(1, 2, 3)).mean() / 2


def path_lengths(images_BCHW: Tensor, ws_BLD: Tensor, directions_BCHW: Tensor) -> Tensor:
    """Length of J^T y for each sample, y a random image of expected norm 1 (Karras et al. 2020, section 3.2).

    directions are standard normal; returns [B], differentiable in the network's weights.
    """
    height, width = images_BCHW.shape[2:]
    projected = (images_BCHW * directions_BCHW).sum() / (height * width) ** 0.5
    (gradient_BLD,) = torch.autograd.grad(projected, ws_BLD, create_graph=True)
    return gradient_BLD.square().sum(dim=2).mean(dim=1).sqrt()
