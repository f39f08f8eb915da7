"""Runs on a Ray cluster of one node: the local executor's bytes, whoever dies, and each worker has what it asked for."""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from drivers import Driver, wait_until
from ray_nodes import RayNodes, raylet_of, workers_on
from ray_runs import RAY, meanwhile, num_tars, shards_of, state_of, workers_in
from s3_server import S3Server

from pipeline.process_settings import PROCESS_SETTINGS
from pipeline.store import Store
from pipeline.verify import verify
from schemas.config import RunConfig
from schemas.run_file import load_config
from workers.generate import generate

RunFileWriter = Callable[..., Path]
Shards = dict[str, bytes]
SAMPLES = 240


@pytest.fixture(params=["disk", "S3"])
def output(request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path) -> str:
    """A place for a dataset, on disk and in a bucket."""
    return str(tmp_path / "out") if request.param == "disk" else f"{s3.create_bucket()}/datasets/tiny"


def _config(write_run_file: RunFileWriter, samples: int = SAMPLES, **execution: object) -> RunConfig:
    return load_config(write_run_file(dataset={"samples": samples}, execution={**RAY, **execution}), RunConfig)


def _assert_same(output: str, expected: Shards, samples: int = SAMPLES) -> None:
    """Exactly the shards of a run of so many samples, with the bytes of the local executor; a sound dataset."""
    shards = shards_of(output)
    assert len(shards) == 2 * samples // 6
    assert {path: expected[path] == content for path, content in shards.items()} == dict.fromkeys(shards, True)
    result = verify(Store.open(output), repair=False)
    assert (result.problems, result.num_samples) == ((), samples)


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_do_not_depend_on_the_executor_nor_on_the_number_of_workers(
    ray_cluster: RayNodes,
    write_run_file: RunFileWriter,
    output: str,
    expected: Shards,
    workers: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = _config(write_run_file, workers=workers).model_copy(update={"output": output})
    records = generate(config)
    assert [record.index for record in records] == list(range(SAMPLES // 6))
    _assert_same(output, expected)
    assert len(workers_in(capfd.readouterr().err)) == workers
    state = state_of(output)
    assert (state.state, state.done, state.retries, state.failures) == ("finished", SAMPLES, 0, {})


def test_a_worker_that_is_killed_mid_shard(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, output: str, expected: Shards
) -> None:
    config = _config(write_run_file, samples=480, workers=2).model_copy(update={"output": output})

    def kill() -> None:
        wait_until(lambda: num_tars(output) >= 3)
        wait_until(lambda: workers_on(ray_cluster.head, ".make"))
        workers_on(ray_cluster.head, ".make")[0].kill()

    with meanwhile(kill):
        generate(config)
    _assert_same(output, expected, samples=480)
    state = state_of(output)
    assert state.retries >= 1
    assert state.failures == {}


def test_a_driver_that_is_killed_takes_its_workers_with_it_and_its_run_goes_on_later(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, output: str, expected: Shards
) -> None:
    config = _config(write_run_file, samples=480).model_copy(update={"output": output})
    run_file = write_run_file(output=output, dataset={"samples": 480}, execution=RAY)
    with Driver("generate", run_file) as driver:
        wait_until(lambda: num_tars(output) >= 3)
        workers = [psutil.Process(worker.pid) for worker in workers_in(driver.text)]
        assert workers
        driver.send(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    before = shards_of(output)
    assert 3 <= num_tars(output) < 80
    assert not Store.open(output).exists("manifest.json")

    generate(config)
    _assert_same(output, expected, samples=480)
    assert before.items() <= shards_of(output).items()
    assert state_of(output).retries == 0


def test_sigterm_leaves_a_run_that_goes_on(ray_cluster: RayNodes, write_run_file: RunFileWriter, tmp_path: Path) -> None:
    run_file = write_run_file(dataset={"samples": 6000}, execution=RAY)
    with Driver("generate", run_file) as driver:
        wait_until(lambda: num_tars(str(tmp_path / "out")) >= 1)
        driver.send(signal.SIGTERM)
        assert driver.wait() == 75
        assert "interrupted by SIGTERM; the same command goes on from here" in driver.text
    assert state_of(str(tmp_path / "out")).state == "interrupted"
    assert workers_on(ray_cluster.head, ".make") == []


def test_each_worker_has_a_gpu_of_its_own(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, capfd: pytest.CaptureFixture[str]
) -> None:
    generate(_config(write_run_file))
    said = capfd.readouterr().err
    assert sorted(str(worker.gpus) for worker in workers_in(said)) == ["0", "1"]
    assert "room for 2 workers of 1 GPUs and 1 CPU cores each" in said


def test_two_workers_share_a_gpu(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, capfd: pytest.CaptureFixture[str]
) -> None:
    generate(_config(write_run_file, gpus_per_worker=0.5))
    gpus = [worker.gpus for worker in workers_in(capfd.readouterr().err)]
    assert gpus in (["0", "0"], ["1", "1"])


@pytest.mark.parametrize("execution", [{"gpus_per_worker": 0}, {"device": "cpu"}], ids=str)
def test_without_gpus_workers_use_the_cpu(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, capfd: pytest.CaptureFixture[str], execution: dict[str, object]
) -> None:
    records = generate(_config(write_run_file, samples=24, **execution))
    said = capfd.readouterr().err
    assert {worker.gpus for worker in workers_in(said)} == {None}
    assert "of no GPU and 1 CPU cores each" in said
    assert {record.device for record in records} == {"cpu"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_start_with_the_process_settings(ray_cluster: RayNodes, write_run_file: RunFileWriter) -> None:
    found: list[dict[str, str]] = []

    def look() -> None:
        wait_until(lambda: workers_on(ray_cluster.head, ".make"))
        # Not what Python sees: allocators and OpenMP read what the process was started with.
        found.extend(process.environ() for process in workers_on(ray_cluster.head))

    with meanwhile(look):
        generate(_config(write_run_file))
    assert found
    for environment in found:
        assert PROCESS_SETTINGS.items() <= environment.items()


def test_node_labels_select_nodes(ray_cluster: RayNodes, write_run_file: RunFileWriter, expected: Shards) -> None:
    parents: set[int] = set()
    with ray_cluster.extra(num_cpus=1, labels={"labelmill.test/kind": "good"}) as node:

        def look() -> None:
            wait_until(lambda: workers_on(node, ".make"))
            parents.update(process.ppid() for process in workers_on(ray_cluster.head) + workers_on(node))

        config = _config(write_run_file, gpus_per_worker=0, node_labels={"labelmill.test/kind": "good"})
        with meanwhile(look):
            generate(config)
        assert parents == {raylet_of(node).pid}
    _assert_same(config.output, expected)


def test_workers_grow_as_a_node_joins(ray_cluster: RayNodes, write_run_file: RunFileWriter) -> None:
    labels = {"labelmill.test/kind": "elastic"}
    run_file = write_run_file(
        dataset={"samples": 600_000}, execution={**RAY, "gpus_per_worker": 0, "node_labels": labels}
    )
    with ray_cluster.extra(num_cpus=1, labels=labels), Driver("generate", run_file) as driver:
        driver.wait_for("^worker 0: ")
        driver.wait_for(r"\d+ samples.* by 1 workers")
        with ray_cluster.extra(num_cpus=1, labels=labels) as late:
            driver.wait_for("^worker 1: ")
            assert workers_in(driver.text)[1].pid in [process.pid for process in workers_on(late)]
            driver.wait_for(r"\d+ samples.* by 2 workers")
            driver.send(signal.SIGTERM)
            assert driver.wait() == 75
    assert re.search("worker 2", driver.text) is None
