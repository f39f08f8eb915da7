"""Copies between a device and the host that hold neither of them up.

On a GPU both directions go through pinned memory, which PyTorch keeps and gives out again once nobody reads it: a plain
copy would make the host wait for everything that the GPU has yet to do. On a CPU there is nothing to copy.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class HostCopy:
    """Tensors of one device on their way to the host, begun behind what the device has been asked for so far."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """The tensors must not change afterwards."""
        devices = {tensor.device for tensor in tensors.values()}
        assert len(devices) == 1, devices
        [device] = devices
        self._arrived: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._tensors, self._arrived = _copies_from_gpu(tensors, device)
        else:
            self._tensors = {name: tensor.cpu() for name, tensor in tensors.items()}

    def wait(self) -> dict[str, NDArray[Any]]:
        """The tensors as arrays, once they are there. Their memory is theirs for as long as anybody holds them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on a device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _copies_from_gpu(tensors: Mapping[str, Tensor], device: torch.device) -> tuple[dict[str, Tensor], torch.cuda.Event]:
    stream, copies = _copy_stream(device), {}
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for name, tensor in tensors.items():
            copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies[name].copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)  # its memory is not given out again before it is copied
        arrived = torch.cuda.Event()
        arrived.record(stream)
    return copies, arrived


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Beside the one that computes, so that a copy of one batch and the synthesis of the next overlap."""
    return torch.cuda.Stream(device)
