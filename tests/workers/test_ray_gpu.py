"""A worker on a real GPU that is killed, and the run's bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.drivers import Driver, wait_until
from helpers.ray_nodes import RayNodes, kill_one_at_work
from helpers.ray_runs import RAY, num_tars, shards_of, state_of


@pytest.mark.gpu
def test_a_worker_on_a_gpu_that_is_killed_mid_shard(write_run_file: Callable[..., Path], tmp_path: Path) -> None:
    sections = {"dataset": {"samples": 600}}
    alone, output = str(tmp_path / "alone"), str(tmp_path / "out")
    with Driver("generate", write_run_file(**sections, output=alone, execution={"device": "cuda"})) as driver:
        assert driver.wait() == 0, driver.text
    with RayNodes(num_cpus=2, num_gpus=1) as nodes, nodes.entered():
        run_file = write_run_file(**sections, output=output, execution={**RAY, "device": "cuda"})
        with Driver("generate", run_file) as driver:
            wait_until(lambda: num_tars(output) >= 3)
            wait_until(lambda: kill_one_at_work(nodes.head))
            assert driver.wait() == 0, driver.text
    assert shards_of(output) == shards_of(alone)
    assert state_of(output).retries >= 1
