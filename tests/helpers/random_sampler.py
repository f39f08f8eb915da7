"""Samplers of small random generators."""

import torch

from labelmill.pipeline.generator.networks import Architecture, Generator, GeneratorSpec, channels_by_resolution
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.schemas.config import GeneratorConfig, NumericsConfig


def make_sampler(
    resolution: int = 16,
    w_dim: int = 8,
    batch_size: int = 4,
    noise: str = "const",
    architecture: Architecture = "skip",
    psi: float = 0.7,
    **shape: object,
) -> Sampler:
    """A generator whose noise has no strength yet, as before training. shape: `const_size` and `img_channels`."""
    torch.manual_seed(3)
    generator = _random_generator(resolution, w_dim, architecture, channel_base=128, **shape)
    return _sampler(generator, noise, psi, batch_size)


def make_noisy_sampler(noise: str = "const") -> Sampler:
    """A generator whose noise shows."""
    torch.manual_seed(2)
    generator = _random_generator(resolution=16, w_dim=8, architecture="skip", channel_base=64)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    return _sampler(generator, noise, psi=0.7, batch_size=4)


def _random_generator(
    resolution: int, w_dim: int, architecture: Architecture, channel_base: int, **shape: object
) -> Generator:
    channels = channels_by_resolution(resolution, channel_base=channel_base, channel_max=8)
    return Generator(
        GeneratorSpec(
            resolution=resolution,
            z_dim=8,
            w_dim=w_dim,
            c_dim=0,
            mapping_layers=2,
            channels=channels,
            architecture=architecture,
            **shape,  # type: ignore[arg-type]
        )
    )


def _sampler(generator: Generator, noise: str, psi: float, batch_size: int) -> Sampler:
    config = GeneratorConfig.model_validate({"checkpoint": "test", "noise": noise, "truncation_psi": psi})
    return Sampler(generator, config, NumericsConfig(batch_size=batch_size), "cpu")
