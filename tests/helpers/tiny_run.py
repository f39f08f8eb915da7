"""The smallest real run: a random generator of 32 px, and a run file's values that use it."""

from pathlib import Path

import torch

from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution


def save_tiny_generator(path: Path, const_size: tuple[int, int] = (4, 4), img_channels: int = 3) -> None:
    """A random StyleGAN2 of 32 px, for plumbing, or of another shape: 8 times `const_size`. Always the same."""
    torch.manual_seed(0)
    spec = GeneratorSpec(
        resolution=32,
        z_dim=32,
        w_dim=32,
        c_dim=0,
        mapping_layers=2,
        channels=channels_by_resolution(32, channel_base=256, channel_max=16),
        const_size=const_size,
        img_channels=img_channels,
    )
    save_generator(path, Generator(spec), {"licence": "Apache-2.0"})


def tiny_run(checkpoint: Path, output: Path | str) -> dict[str, object]:
    """A run file's values. A generator that was never trained is labeled because they allow it."""
    return {
        "name": "tiny",
        "output": str(output),
        "generator": {"checkpoint": str(checkpoint)},
        "labeler": {
            "method": "style_mixing",
            "variants": 4,
            "crossover": 3,
            "clusters": 4,
            "restarts": 2,
            "iterations": 4,
            "fit_samples": 16,
        },
        "dataset": {"samples": 24, "samples_per_shard": 6},
        "quality": {"enabled": False, "allow_weak_labeler": True},
        "numerics": {"batch_size": 4, "threads": 1},
    }
