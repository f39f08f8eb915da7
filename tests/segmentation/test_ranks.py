"""What ranks tell each other, between GPUs that are not there: what they would ask PyTorch for."""

from typing import Any

import pytest
import torch
from torch import distributed

from labelmill.pipeline.segmentation import ranks as ranks_module
from labelmill.pipeline.segmentation.ranks import Ranks, joined_ranks


def test_ranks_on_gpus_ask_each_other_from_cpu_to_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[tuple[str, str]] = []
    asked: list[tuple[torch.device, Any]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(ranks_module, "_choose", lambda device, local_rank: torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, timeout: groups.append(("all", backend)))
    monkeypatch.setattr(distributed, "new_group", lambda backend, timeout: groups.append(("new", backend)) or "words")
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: groups.append(("end", "")))

    def all_reduce(flag: torch.Tensor, kind: object, group: object) -> None:
        asked.append((flag.device, group))
        flag.fill_(1)  # the other rank's word

    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    with joined_ranks("cuda") as ranks:
        assert ranks.any(False) is True
    assert groups == [("all", "nccl"), ("new", "gloo"), ("end", "")]
    assert asked == [(torch.device("cpu"), "words")]


def test_one_rank_asks_nobody() -> None:
    alone = Ranks(0, 1, torch.device("cpu"))
    assert (alone.any(True), alone.any(False)) == (True, False)
