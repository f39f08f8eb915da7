"""How much memory there is to work with, to refuse what cannot end well before any work."""

import os
from pathlib import Path

import torch

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**62


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take on a device: free ones, and on a CPU within the container's limit.

    What gives way when memory is asked for counts as free: files that the kernel keeps, blocks that PyTorch keeps.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return min(_free_in_machine(), _free_in_container(_CONTROL_GROUPS))


def _free_in_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _free_in_container(groups: Path) -> int:
    """What control groups leave, of version 2 or 1; no limit where there is none."""
    version_2 = groups / "memory.max", groups / "memory.current", groups / "memory.stat", ""
    first = groups / "memory"
    version_1 = first / "memory.limit_in_bytes", first / "memory.usage_in_bytes", first / "memory.stat", "total_"
    return min(_left(*version_2), _left(*version_1))


def _left(limit: Path, usage: Path, stat: Path, prefix: str) -> int:
    """The limit less what is used but for files. prefix: of the entries that count groups within the group too."""
    try:
        most = limit.read_text().strip()
        entries = dict(line.split() for line in stat.read_text().splitlines())
        files = sum(int(entries.get(f"{prefix}{name}_file", 0)) for name in ("inactive", "active"))
        used = int(usage.read_text()) - files
        return _NO_LIMIT if most == "max" else max(0, min(_NO_LIMIT, int(most) - used))
    except (OSError, ValueError):
        return _NO_LIMIT
