"""The device that a process computes on, and kernels that repeat to the bit."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

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


def promised_gpu(promise: str) -> torch.device:
    """The process's GPU. Raises ConfigError where PyTorch cannot use one: computing on the CPU would take a hundred
    times as long and give other bits. promise: what was promised, as a dotted key and its value.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = "" if visible is None else f" (CUDA_VISIBLE_DEVICES: {visible!r})"
    raise ConfigError(
        f"{promise}, but PyTorch can use no GPU on {socket.gethostname()}{seen}; PyTorch {torch.__version__} {built}. "
        "Install a build of PyTorch that matches the driver there, see `nvidia-smi`, or set execution.device: cpu and "
        "execution.gpus_per_worker: 0 to compute on CPUs"
    )


def best_precision(device: torch.device) -> Literal["float32", "float16"]:
    """What `auto` means on a device: float16 where matrix products of it are several times faster, else float32.

    Tensor cores came with compute capability 7.0. CPUs take ten times as long for half precision.
    """
    is_fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
    return "float16" if is_fast else "float32"


@contextmanager
def tf32_convolutions() -> Iterator[None]:
    """Convolutions of float32 round their operands to TF32 on a GPU, which has as many digits as float16.

    Within `repeatable_kernels`, too: TF32 repeats to the bit as well.
    """
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "tf32"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


@contextmanager
def repeatable_kernels(*, gradients: bool = False) -> Iterator[None]:
    """No autotuned kernels, no atomic additions, full float32: what two runs need to agree to the bit.

    Whatever else in the process has asked of PyTorch holds again afterwards. gradients: whether they are computed, as
    a training needs them.
    """
    before = _kernels()
    _choose_kernels(_Kernels(enabled=True, benchmark=False, deterministic=True, conv="ieee", rnn="ieee", matmul="ieee"))
    try:
        with torch.set_grad_enabled(gradients):
            yield
    finally:
        _choose_kernels(before)


@dataclass(frozen=True)
class _Kernels:
    """PyTorch's settings for the process; conv, rnn, matmul: the precision of float32 products on a GPU."""

    enabled: bool
    benchmark: bool
    deterministic: bool
    conv: str
    rnn: str
    matmul: str


def _kernels() -> _Kernels:
    cudnn: Any = torch.backends.cudnn  # a module for type checkers, which see none of its properties
    return _Kernels(
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.conv.fp32_precision,
        cudnn.rnn.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
    )


def _choose_kernels(kernels: _Kernels) -> None:
    cudnn: Any = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = kernels.enabled, kernels.benchmark, kernels.deterministic
    # The older switch first: it sets both, and PyTorch refuses to read it where they contradict it.
    cudnn.allow_tf32 = kernels.rnn == "tf32"
    cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = kernels.conv, kernels.rnn
    torch.backends.cuda.matmul.fp32_precision = kernels.matmul
