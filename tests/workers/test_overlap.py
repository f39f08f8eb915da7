"""A worker makes a shard while it publishes the one before, locally and in a worker of Ray's."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.schemas.config import RunConfig
from labelmill.schemas.shard import ShardTask
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate
from labelmill.workers.local import LocalCluster
from labelmill.workers.ray_cluster import _RayWorker
from labelmill.workers.shard_worker import ShardWorker
from labelmill.workers.supervisor import SHARDS_IN_FLIGHT


@pytest.fixture
def waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Publishing the first shard waits until the second one is being made; tells whether it was."""
    begun, synthesise, publish = threading.Event(), ShardWorker.synthesise, ShardWorker.publish

    def noted(worker: ShardWorker, task: ShardTask) -> Any:
        if task.index == 1:
            begun.set()
        return synthesise(worker, task)

    def held_up(worker: ShardWorker, task: ShardTask, *others: Any) -> Any:
        if task.index == 0:
            assert begun.wait(30), "nothing was made meanwhile"
        return publish(worker, task, *others)

    monkeypatch.setattr(ShardWorker, "synthesise", noted)
    monkeypatch.setattr(ShardWorker, "publish", held_up)
    return begun


def test_locally(write_run_file: Callable[..., Path], waits_for_the_next: threading.Event) -> None:
    # The last shards of a run are spread over workers rather than queued on one.
    generate(load_config(write_run_file(dataset={"samples": 24}), RunConfig))
    assert waits_for_the_next.is_set()


def test_in_a_worker_of_ray(write_run_file: Callable[..., Path], waits_for_the_next: threading.Event) -> None:
    config = load_config(write_run_file(dataset={"samples": 12}), RunConfig)
    with LocalCluster(config) as cluster:
        run = cluster.prepare()
    worker = _RayWorker(config)
    worker.load(run)
    # As Ray calls an actor of such a max_concurrency.
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT) as calls:
        records = list(calls.map(lambda task: worker.make(task, 1), shard_tasks(config)))
    assert [record.index for record in records] == [0, 1]
    assert waits_for_the_next.is_set()
