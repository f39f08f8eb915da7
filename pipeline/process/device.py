"""The device that a process computes on, and kernels that repeat to the bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from labelmill.schemas.errors import ConfigError


def choose_device(name: str = "auto", *, key: str = "device") -> torch.device:
    """The device of a setting: auto (a GPU where there is one), cpu, cuda or cuda:N.

    key: the setting's dotted name. Raises ConfigError, which names it, where this machine has no such device.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if num_gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{key}: {name} is no device; auto, cpu, cuda or cuda:N works") from None
    if device.type == "cuda" and not num_gpus:
        raise ConfigError(f"{key}: {name}, but PyTorch finds no GPU here; auto or cpu works")
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ConfigError(f"{key}: {name} is not there; this machine has {num_gpus} GPUs, counted from cuda:0")
    return device


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """No autotuned kernels, no atomic additions, full float32: what two runs need to agree to the bit."""
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with flags, torch.no_grad():
        yield
