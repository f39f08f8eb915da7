"""What decides bits on this machine, beside a run's fingerprint.

Libraries choose among code paths by what the processor can do, and add up in another order on each; MKL by its maker,
too. A dataset's promise of equal bytes therefore holds on one kind alone, and records say which one it was.
"""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from labelmill.schemas.shard import Kind

_LIBRARIES = ("torch", "numpy", "scipy", "opencv-python-headless")
# They change bytes under one fingerprint; oneDNN's and OpenBLAS's own were tried and do not.
_SETTINGS = ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ATEN_CPU_CAPABILITY")


def machine_kind(device: torch.device) -> Kind:
    """The kind of this machine, for work on a device of it."""
    return Kind(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        processor=_processor(),
        libraries=_libraries(device.type),
        settings={name: os.environ[name] for name in _SETTINGS if name in os.environ},
    )


@cache
def _processor() -> str:
    """Architecture, maker where Linux tells, and the instructions that PyTorch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    maker = next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    return " ".join(filter(None, [platform.machine(), maker, torch.backends.cpu.get_cpu_capability()]))


@cache
def _libraries(device_type: str) -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a build of another name, such as opencv-python
            continue
    if device_type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found
