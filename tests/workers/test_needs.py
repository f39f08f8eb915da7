"""What workers ask of their nodes, and how many threads encode: from a list of nodes, without a cluster."""

import os
from typing import Any

import pytest
import ray

from labelmill.schemas.config import ExecutionConfig
from labelmill.workers.ray_cluster import _needs
from labelmill.workers.shard_worker import num_encoders


def node(cpus: float, gpus: float, *, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus}, "Labels": labels}


HEAD = {"Alive": True, "Resources": {}, "Labels": {}}


@pytest.mark.parametrize(
    ("nodes", "settings", "wanted"),
    [
        ([node(8, 0)], {}, (0, 2)),
        ([HEAD, node(16, 1)], {}, (1, 16)),
        ([node(64, 8), node(12, 2)], {}, (1, 6)),
        ([node(64, 8), node(4, 4, kind="old")], {"node_labels": {}}, (1, 1)),
        ([node(64, 8, kind="new"), node(4, 4)], {"node_labels": {"kind": "new"}}, (1, 8)),
        ([node(96, 1), node(2, 1, alive=False)], {}, (1, 16)),
        ([node(16, 1)], {"gpus_per_worker": 0.5}, (0.5, 8)),
        ([node(2, 8)], {}, (1, 1)),
        ([HEAD], {"gpus_per_worker": 1}, (1, 2)),
        ([node(16, 1)], {"cpus_per_worker": 3}, (1, 3)),
        ([node(16, 1)], {"device": "cpu"}, (0, 2)),
    ],
)
def test_gpus_and_cores_of_a_worker(
    nodes: list[dict[str, Any]],
    settings: dict[str, object],
    wanted: tuple[float, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    needs = _needs(ExecutionConfig.model_validate({"executor": "ray", **settings}))
    assert (needs.gpus, needs.cpus) == wanted


@pytest.mark.parametrize(
    ("settings", "cores", "wanted"),
    [
        ({"executor": "ray", "cpus_per_worker": 16}, 2, 14),
        ({"executor": "ray", "cpus_per_worker": 1}, 64, 2),
        ({}, 16, 14),
        ({}, 1, 2),
        ({}, 256, 64),
        ({"encode_threads": 1}, 16, 1),
    ],
)
def test_threads_that_encode(
    settings: dict[str, object], cores: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert num_encoders(ExecutionConfig.model_validate(settings)) == wanted
