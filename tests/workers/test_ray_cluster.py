"""Runs on a Ray cluster of one node: the local executor's bytes, whoever dies, and workers have what they asked for."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray
from helpers.drivers import Driver, wait_until
from helpers.ray_nodes import RayNodes, kill_one_at_work, raylet_of, workers_on
from helpers.ray_runs import RAY, NamedWorker, meanwhile, num_tars, shards_of, state_of, workers_in
from helpers.s3_server import S3Server

from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.process.settings import PROCESS_SETTINGS
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, StalledError
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate
from labelmill.workers.ray_cluster import RayCluster
from labelmill.workers.supervisor import Event, Placed

RunFileWriter = Callable[..., Path]
Shards = dict[str, bytes]
SAMPLES, MANY_SAMPLES = 120, 480


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


@dataclass
class Watched:
    """A run on the cluster and what could be seen of it from outside."""

    output: str
    workers: list[NamedWorker]
    environments: list[dict[str, str]] = field(default_factory=list)
    """Of its workers' processes."""


@pytest.fixture(scope="module")
def two_workers(
    ray_nodes: RayNodes, write_run_file_in: RunFileWriter, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    """A run that leaves the number of workers to `auto`."""
    folder = tmp_path_factory.mktemp("two")
    run_file = write_run_file_in(folder, dataset={"samples": SAMPLES}, execution=RAY)
    with ray_nodes.entered(), Driver("generate", run_file) as driver:
        driver.wait_for(r"\bworker \d+: ")
        # Else the first could make everything before the second is there.
        first = psutil.Process(workers_in(driver.text)[0].pid)
        first.suspend()
        driver.wait_for(r"\bworker \d+: ", times=2)
        first.resume()
        # Not what Python sees: allocators and OpenMP read what a process was started with.
        environments = [process.environ() for process in workers_on(ray_nodes.head)]
        assert driver.wait() == 0, driver.text
    return Watched(str(folder / "out"), workers_in(driver.text), environments)


def test_two_workers_make_what_the_local_executor_makes(two_workers: Watched, expected: Shards) -> None:
    _assert_same(two_workers.output, expected)
    state = state_of(two_workers.output)
    assert (state.state, state.done, state.retries, state.failures) == ("finished", SAMPLES, 0, {})


def test_workers_start_with_the_process_settings(two_workers: Watched) -> None:
    assert two_workers.environments
    for environment in two_workers.environments:
        assert PROCESS_SETTINGS.items() <= environment.items()


def test_one_worker_is_enough(
    ray_cluster: RayNodes,
    write_run_file: RunFileWriter,
    output: str,
    expected: Shards,
    capfd: pytest.CaptureFixture[str],
) -> None:
    records = generate(_config(write_run_file, workers=1, gpus_per_worker=0).model_copy(update={"output": output}))
    assert [record.index for record in records] == list(range(SAMPLES // 6))
    _assert_same(output, expected)
    said = capfd.readouterr().err
    assert [worker.gpus for worker in workers_in(said)] == [None]
    assert "of no GPU and 1 CPU cores each" in said
    assert {record.device for record in records} == {"cpu"}


def _gpus_of_two_workers(write_run_file: RunFileWriter, capfd: pytest.CaptureFixture[str], **execution: object) -> str:
    """The GPUs of two workers that the cluster starts, in any order, as `0 1`."""
    capfd.readouterr()
    with RayCluster(_config(write_run_file, device="auto", **execution)) as cluster:
        cluster.start(0)
        cluster.start(1)
        placed: list[Event] = []
        while len(placed) < 2:
            placed += cluster.wait(1)
    assert sorted(placed, key=lambda event: event.worker) == [Placed(0), Placed(1)]
    return " ".join(sorted(str(worker.gpus) for worker in workers_in(capfd.readouterr().err)))


def test_each_worker_has_a_gpu_of_its_own_or_a_share_of_one(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _gpus_of_two_workers(write_run_file, capfd) == "0 1"
    assert _gpus_of_two_workers(write_run_file, capfd, gpus_per_worker=0.5) in ("0 0", "1 1")


def test_a_worker_with_a_gpu_that_pytorch_cannot_use_is_refused(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, tmp_path: Path
) -> None:
    # The nodes' GPUs are none, as with a build of PyTorch for CPUs, or a driver that does not fit.
    with Driver("generate", write_run_file(execution={**RAY, "device": "auto", "workers": 1})) as driver:
        assert driver.wait() == 2
    assert re.search(r"execution\.gpus_per_worker: 1, but PyTorch can use no GPU on \S+ \(CUDA_VISIBLE", driver.text)
    assert "set execution.device: cpu" in driver.text
    assert shards_of(str(tmp_path / "out")) == {}


def test_a_cluster_without_room_is_not_waited_for_long(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, capfd: pytest.CaptureFixture[str]
) -> None:
    config = _config(write_run_file, device="auto", cpus_per_worker=640, start_timeout_s=2)
    with pytest.raises(StalledError, match=r"for 4 s .* no node of the cluster has had 1 GPUs, 640 CPU cores"):
        generate(config)
    assert "waiting for a node with 1 GPUs" in capfd.readouterr().err


def test_another_ray_is_no_reason_to_try_again(write_run_file: RunFileWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\nThis process was started with: ..."

    def init(**options: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ConfigError, match=r"(?s)another Ray or Python\. .*Ray: 2\.50\.0"):
        generate(_config(write_run_file))


def test_a_worker_that_is_killed_mid_shard(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, output: str, expected: Shards
) -> None:
    def kill() -> None:
        wait_until(lambda: num_tars(output) >= 3)
        wait_until(lambda: kill_one_at_work(ray_cluster.head))

    with meanwhile(kill):
        generate(_config(write_run_file, samples=MANY_SAMPLES).model_copy(update={"output": output}))
    _assert_same(output, expected, samples=MANY_SAMPLES)
    state = state_of(output)
    assert state.retries >= 1
    assert state.failures == {}


def test_a_driver_that_is_killed_takes_its_workers_with_it_and_its_run_goes_on_later(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, output: str, expected: Shards
) -> None:
    run_file = write_run_file(output=output, dataset={"samples": MANY_SAMPLES}, execution=RAY)
    with Driver("generate", run_file) as driver:
        wait_until(lambda: num_tars(output) >= 3)
        workers = [psutil.Process(worker.pid) for worker in workers_in(driver.text)]
        assert workers
        driver.send(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    before = shards_of(output)
    assert 3 <= num_tars(output) < MANY_SAMPLES // 6
    assert not Store.open(output).exists("manifest.json")

    generate(load_config(run_file, RunConfig))
    _assert_same(output, expected, samples=MANY_SAMPLES)
    assert before.items() <= shards_of(output).items()
    assert state_of(output).retries == 0


def test_sigterm_ends_resumable_and_frees_the_workers(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    with Driver("generate", write_run_file(dataset={"samples": 600_000}, execution=RAY)) as driver:
        wait_until(lambda: num_tars(output) >= 1)
        driver.send(signal.SIGTERM)
        assert driver.wait() == 75
        assert "interrupted by SIGTERM; rerun the same command to resume" in driver.text
    assert state_of(output).state == "interrupted"
    wait_until(lambda: not workers_on(ray_cluster.head, ".make"))


def test_paths_are_the_drivers(
    ray_cluster: RayNodes, write_run_file: RunFileWriter, tiny_checkpoint: Path, tmp_path: Path, expected: Shards
) -> None:
    # Workers stand in the folder where the cluster was started.
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mine.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    run_file = write_run_file(
        output="./here/out",
        generator={"checkpoint": "weights/mine.safetensors"},
        dataset={"samples": SAMPLES},
        execution=RAY,
    )
    with Driver("generate", run_file, cwd=tmp_path) as driver:
        assert driver.wait() == 0, driver.text
    _assert_same(str(tmp_path / "here" / "out"), expected)
    manifest = (tmp_path / "here" / "out" / "manifest.json").read_text()
    assert '"weights/mine.safetensors"' in manifest
    assert str(tmp_path) not in manifest


def test_node_labels_select_nodes(ray_cluster: RayNodes, write_run_file: RunFileWriter, expected: Shards) -> None:
    labels = {"labelmill.test/kind": "good"}
    parents: set[int] = set()
    with ray_cluster.extra(num_cpus=1, labels=labels) as node:

        def look() -> None:
            wait_until(lambda: workers_on(node, ".make"))
            parents.update(process.ppid() for process in workers_on(ray_cluster.head) + workers_on(node))

        config = _config(write_run_file, device="cpu", node_labels=labels)
        with meanwhile(look):
            generate(config)
        assert parents == {raylet_of(node).pid}
    _assert_same(config.output, expected)


def test_workers_grow_as_a_node_joins(ray_cluster: RayNodes, write_run_file: RunFileWriter) -> None:
    labels = {"labelmill.test/kind": "elastic"}
    execution = {**RAY, "gpus_per_worker": 0, "node_labels": labels}
    run_file = write_run_file(dataset={"samples": 600_000}, execution=execution)
    with ray_cluster.extra(num_cpus=1, labels=labels), Driver("generate", run_file) as driver:
        driver.wait_for(r"\b\d+/\d+ samples.* by 1 workers")
        with ray_cluster.extra(num_cpus=1, labels=labels) as late:
            driver.wait_for(r"\bworker 1: ")
            assert workers_in(driver.text)[1].pid in [process.pid for process in workers_on(late)]
            driver.wait_for(r"\b\d+/\d+ samples.* by 2 workers")
            driver.send(signal.SIGTERM)
            assert driver.wait() == 75
    assert len(workers_in(driver.text)) == 2
