"""Latents whose images are like photos, by optimisation from a guess (Karras et al. 2020, appendix D: the projector).

The paper optimises noise maps, too; here they stay, because they let an image match without its latent, which masks
are then read from. Each photo's loss, noise and steps of Adam are its own, so that at one batch size a latent is the
same to the bit whatever stands beside it.

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.photos.loss import ReconstructionLoss
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.training.randomness import seed_of
from labelmill.schemas.inversion import ProjectorConfig, Space

_PEAK = 2.0
"""Images' range is -1 to 1."""


@contextmanager
def precision(generator: Generator, name: str) -> Iterator[None]:
    """Compute with the generator in this precision, and afterwards in that of before."""
    before = generator.compute_dtype
    generator.compute_dtype = getattr(torch, name)
    try:
        yield
    finally:
        generator.compute_dtype = before


def project(
    generator: Generator,
    noise: str,
    loss: ReconstructionLoss,
    start_BLD: Tensor,
    spread: float,
    config: ProjectorConfig,
    *,
    space: Space,
    steps: int,
    noise_seeds: Sequence[str],
) -> Tensor:
    """ws [B, L, D] float32 after so many steps. spread: of the generator's latents; noise_seeds: one per photo.

    A photo whose loss is no number gets latents that are none, and its neighbours their own.
    """
    num_rows = start_BLD.shape[1]
    first = start_BLD.mean(dim=1, keepdim=True) if space == "w" else start_BLD
    free = first.detach().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([free], lr=config.learning_rate, betas=(0.9, 0.999))
    sources = [np.random.default_rng(seed_of(seed, space)) for seed in noise_seeds]
    with repeatable_kernels(gradients=True):
        for step in range(steps):
            share = (step + 0.5) / steps
            optimiser.param_groups[0]["lr"] = config.learning_rate * rate(share, config)
            strength = spread * config.latent_noise * max(0.0, 1 - share / config.latent_noise_share) ** 2
            shifted = free + strength * _drawn(sources, free) if strength > 0 else free
            images_BCHW = generator.synthesize(shifted.expand(-1, num_rows, -1), noise).images_BCHW  # type: ignore[arg-type]
            optimiser.zero_grad(set_to_none=True)
            loss(images_BCHW).sum().backward()
            optimiser.step()
    return free.detach().expand(-1, num_rows, -1).contiguous()


def rate(share: float, config: ProjectorConfig) -> float:
    """Of the highest rate, when this share of the steps is done: up in a line, down as a cosine."""
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - share) / config.ramp_down))
    return down * min(1.0, share / config.ramp_up)


def _drawn(sources: Sequence[np.random.Generator], like: Tensor) -> Tensor:
    drawn = np.stack([source.standard_normal(like.shape[1:], dtype=np.float32) for source in sources])
    return torch.from_numpy(drawn).to(like.device)


def psnr(images_BCHW: Tensor, photos_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB."""
    error_B = (images_BCHW.clamp(-1, 1) - photos_BCHW).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(_PEAK**2 / error_B.clamp_min(1e-10))
