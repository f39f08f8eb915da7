"""A run's generator, opened once per process."""

import torch

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.checkpoints.source import located_reference
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.process.device import choose_device
from labelmill.schemas.config import RunConfig
from labelmill.schemas.manifest import CheckpointSource
from labelmill.schemas.secrets import plain_address


def open_sampler(config: RunConfig) -> tuple[Sampler, CheckpointSource]:
    """The run's generator ready to sample, and where it came from.

    Raises CheckpointError or ConfigError when the two do not go together.
    """
    device = choose_device(config.execution.device, key="execution.device")
    torch.set_num_threads(config.numerics.threads)
    loaded = open_checkpoint(located_reference(config.generator.checkpoint, config.generator.folder), device)
    sampler = Sampler(loaded.generator, config.generator, config.numerics, device)
    provenance = loaded.info.provenance
    source = CheckpointSource(
        reference=plain_address(config.generator.checkpoint),
        sha256=loaded.sha256,
        format=loaded.info.format,
        licence=provenance.get("licence", "not stated in the file"),
        attribution=provenance.get("attribution"),
    )
    return sampler, source
