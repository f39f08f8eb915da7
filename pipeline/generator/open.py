"""A run's generator, opened once per process."""

import torch

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.checkpoints.source import located_reference
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.process.device import choose_device, promised_gpu
from labelmill.schemas.config import ExecutionConfig, RunConfig
from labelmill.schemas.manifest import CheckpointSource
from labelmill.schemas.secrets import plain_address


def open_sampler(config: RunConfig) -> tuple[Sampler, CheckpointSource]:
    """The run's generator ready to sample, and where it came from.

    Raises CheckpointError or ConfigError when the two do not go together.
    """
    device = run_device(config.execution)
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


def run_device(execution: ExecutionConfig) -> torch.device:
    """The device that a process of the run computes on. Raises ConfigError where a GPU was promised and is not there.

    Workers on Ray are told `cuda` or `cpu`; a driver's `auto` says nothing about the machines that it asks for.
    """
    gpus = execution.gpus_per_worker
    if gpus == "auto" or not gpus or (execution.executor == "ray" and execution.device == "auto"):
        return choose_device(execution.device, key="execution.device")
    return promised_gpu(f"execution.gpus_per_worker: {gpus:g}")
