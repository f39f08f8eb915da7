"""Free memory by what control groups and devices say."""

from pathlib import Path

import pytest
import torch

from labelmill.pipeline.process import memory as free_memory
from labelmill.pipeline.process.memory import free_bytes

STAT = "anon 700\nfile 290\ninactive_file 200\nactive_file 90\n"
STAT_1 = "cache 1\ninactive_file 1\nactive_file 1\ntotal_inactive_file 200\ntotal_active_file 90\n"


def groups(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("files", "left"),
    [
        # All but 10 bytes of the limit are taken, 290 of them by files that the kernel gives up when asked.
        ({"memory.max": "1000\n", "memory.current": "990\n", "memory.stat": STAT}, 300),
        ({"memory.max": "1000\n", "memory.current": "2000\n", "memory.stat": STAT}, 0),
        ({"memory.max": "max\n", "memory.current": "990\n", "memory.stat": STAT}, None),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "990\n",
                "memory/memory.stat": STAT_1,
            },
            300,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/memory.usage_in_bytes": "990\n",
                "memory/memory.stat": STAT_1,
            },
            None,
        ),
        ({}, None),
    ],
)
def test_containers_limits_count_and_the_kernels_files_do_not(
    files: dict[str, str], left: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(free_memory, "_CONTROL_GROUPS", groups(tmp_path, files))
    monkeypatch.setattr(free_memory, "_free_in_machine", lambda: 5000)
    assert free_bytes(torch.device("cpu")) == (5000 if left is None else left)


def test_this_machine_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = free_memory._free_in_machine()
    monkeypatch.setattr(free_memory, "_free_in_machine", lambda: machine)  # it changes all the time
    assert 2**20 < free_bytes(torch.device("cpu")) <= machine


def test_what_pytorch_keeps_unused_on_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 800)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 250)
    assert free_bytes(torch.device("cuda")) == 650
