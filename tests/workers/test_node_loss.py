"""Nodes that vanish, come back, or freeze while their workers write on: the same bytes, and no shard is blamed."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.drivers import Driver, wait_until
from helpers.ray_nodes import RayNodes, raylet_of, workers_on
from helpers.ray_runs import RAY, num_tars, shards_of, state_of
from helpers.s3_server import S3Server

from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.store.store import Store

RunFileWriter = Callable[..., Path]
Shards = dict[str, bytes]
_CLUSTERS = {"masks_from": "clusters", "restarts": 16, "iterations": 100}
# Shards that take a second or two, and two that take longer than Ray takes to give a silent node up.
SLOW = {"labeler": {"variants": 64, **_CLUSTERS}, "dataset": {"samples": 48, "samples_per_shard": 12}}
SLOWER = {"labeler": {"variants": 256, **_CLUSTERS}, "dataset": {"samples": 64, "samples_per_shard": 32}}


@pytest.fixture(params=[pytest.param("disk", marks=pytest.mark.slow), "S3"])
def output(request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path) -> str:
    """A place for a dataset, which nodes that start later can reach."""
    return str(tmp_path / "out") if request.param == "disk" else f"{s3.create_bucket()}/datasets/tiny"


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    """A head without work, which gives up a node that is silent for about four seconds."""
    settings = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "3"}
    environment = {f"RAY_health_check_{name}": value for name, value in settings.items()}
    with RayNodes(environment, num_cpus=0) as nodes, nodes.entered():
        yield nodes


def _made_locally(write_run_file: RunFileWriter, folder: Path, values: dict[str, dict[str, int]]) -> Shards:
    output = str(folder / "alone")
    with Driver("generate", write_run_file(**values, output=output)) as driver:
        assert driver.wait() == 0, driver.text
    return shards_of(output)


def _assert_same(output: str, expected: Shards) -> None:
    assert shards_of(output) == expected
    assert verify(Store.open(output), repair=False).problems == ()


def test_no_shard_is_blamed_for_its_nodes(
    output: str, nodes: RayNodes, write_run_file: RunFileWriter, tmp_path: Path
) -> None:
    expected = _made_locally(write_run_file, tmp_path, SLOW)
    node = nodes.add(num_cpus=1)
    with Driver("generate", write_run_file(**SLOW, output=output, execution=RAY)) as driver:
        # As often as quarantines a shard that kills its workers.
        for _ in range(3):
            wait_until(lambda node=node: workers_on(node, ".make"))  # type: ignore[misc]
            nodes.remove(node)
            node = nodes.add(num_cpus=1)
        assert num_tars(output) < 4
        assert driver.wait() == 0, driver.text
    _assert_same(output, expected)
    state = state_of(output)
    assert state.failures == {}
    assert state.retries >= 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_zombie_writes_and_changes_nothing(nodes: RayNodes, write_run_file: RunFileWriter, tmp_path: Path) -> None:
    expected, output = _made_locally(write_run_file, tmp_path, SLOWER), str(tmp_path / "out")
    frozen = nodes.add(num_cpus=1)
    with Driver("generate", write_run_file(**SLOWER, execution=RAY)) as driver:
        wait_until(lambda: workers_on(frozen, ".make"))
        (zombie,) = workers_on(frozen)
        raylet_of(frozen).send_signal(signal.SIGSTOP)
        driver.wait_for(r"\bworker 0 is gone: ")
        assert shards_of(output) == {}
        nodes.add(num_cpus=1)
        assert driver.wait() == 0, driver.text
        assert zombie.is_running()
        raylet_of(frozen).send_signal(signal.SIGCONT)
    _assert_same(output, expected)
    # The first shard was sent out again and yet published at its first attempt: the zombie did, well ahead.
    assert state_of(output).retries == 1
    assert json.loads((tmp_path / "out" / "records" / "000000.json").read_text())["attempts"] == 1
