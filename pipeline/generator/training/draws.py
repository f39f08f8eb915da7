"""The random numbers of one training step.

Shape suffixes: B batch, Z latent.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from labelmill.pipeline.generator.networks import GeneratorSpec, row_resolution
from labelmill.pipeline.training.randomness import seed_of


@dataclass(frozen=True)
class Latents:
    """What a batch of ws is mapped from."""

    z_BZ: Tensor
    """Twice as many as samples: first latents, then second ones."""
    crossover_B: Tensor
    """The first row of w that is the second latent's."""


@dataclass(frozen=True)
class Draws:
    """All of them follow from (seed, step, purpose). Large ones are drawn on the device: a training on a GPU takes
    other steps than one on a CPU, and the same ones each time."""

    seed: int
    step: int
    device: torch.device

    def source(self, purpose: str) -> torch.Generator:
        """On the CPU."""
        return self._source_on("cpu", purpose)

    def _source_on(self, device: torch.device | str, purpose: str) -> torch.Generator:
        return torch.Generator(device).manual_seed(seed_of(self.seed, self.step, purpose))

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self._source_on(self.device, purpose), device=self.device)

    def latents(self, purpose: str, batch_size: int, spec: GeneratorSpec, mixing_probability: float) -> Latents:
        """Random latents; with this probability a sample takes its last rows of w from a second one."""
        random = self.source(f"{purpose}/z")
        z_BZ = torch.randn(2 * batch_size, spec.z_dim, generator=random).to(self.device)
        crossover_B = torch.randint(1, spec.num_ws, (batch_size,), generator=random)
        mixed_B = torch.rand(batch_size, generator=random) < mixing_probability
        return Latents(z_BZ, torch.where(mixed_B, crossover_B, spec.num_ws).to(self.device))

    def noise(self, purpose: str, batch_size: int, spec: GeneratorSpec) -> list[Tensor]:
        """[B, 1, h, w] for each convolution of a generator of square images, in the order of rows."""
        random = self._source_on(self.device, f"{purpose}/noise")
        sizes = [row_resolution(row) for row in range(spec.num_ws - 1)]
        return [torch.randn(batch_size, 1, size, size, generator=random, device=self.device) for size in sizes]
