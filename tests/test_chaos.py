"""Drivers killed at random moments, and drivers side by side: the same bytes, and nothing half-written in sight."""

import multiprocessing
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from helpers.drivers import PATIENCE_SECONDS
from helpers.observer import Observer

from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.yaml_file import load_config

RunFileWriter = Callable[..., Path]
NUM_KILLS = 50

# A server that has imported everything forks each driver, so that a kill costs milliseconds, not an import of torch.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["labelmill.workers.generate"])


def _drive(config: RunConfig) -> None:
    from labelmill.workers.generate import generate

    generate(config)


def _start(config: RunConfig) -> BaseProcess:
    return _started(_drive, config)


def _started(work: Callable[..., object], *arguments: object) -> BaseProcess:
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def _finish(process: BaseProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


def _seconds_of(config: RunConfig) -> float:
    start = time.monotonic()
    _finish(_start(config))
    return time.monotonic() - start


def _shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shards/*") if "#" not in path.name}


def _configs(write_run_file: RunFileWriter, tmp_path: Path, *names: str, samples: int) -> list[RunConfig]:
    dataset = {"samples": samples, "samples_per_shard": 4}
    return [load_config(write_run_file(output=str(tmp_path / name), dataset=dataset), RunConfig) for name in names]


def test_fifty_kills_lose_nothing_and_show_nothing_half_written(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    calm, stormy = _configs(write_run_file, tmp_path, "calm", "stormy", samples=240)
    _finish(_started(int))  # the server imports torch before the clock runs
    whole = _seconds_of(calm)
    start_up = _seconds_of(calm)  # nothing is left to make: this is loading, checking and describing
    seconds_per_shard = max(0.0, whole - start_up) / 60

    # From at once to many shards in: kills fall into loading, fitting, every file of a shard, and the description.
    moments = random.Random(7)
    longest = start_up + 20 * seconds_per_shard
    num_kills = 0
    with Observer(tmp_path / "stormy") as observer:
        while num_kills < NUM_KILLS:
            begun = time.monotonic()
            process = _start(stormy)
            process.join(moments.uniform(0.0, longest))
            if process.exitcode is None:
                num_kills += 1
            else:  # the machine has become quicker, or all is made
                longest = min(longest, time.monotonic() - begun)
            process.kill()
            process.join()
        _finish(_start(stormy))
    assert observer.problems == []
    assert observer.num_rounds > NUM_KILLS
    assert _shards(tmp_path / "stormy") == _shards(tmp_path / "calm")
    for name in ("manifest.json", "index.json"):
        calm_bytes = (tmp_path / "calm" / name).read_bytes()
        assert (tmp_path / "stormy" / name).read_bytes() == calm_bytes
    result = verify(Store.open(stormy.output), repair=False)
    assert (result.problems, result.num_samples) == ((), 240)


def test_two_drivers_on_one_output_agree(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    alone, together = _configs(write_run_file, tmp_path, "alone", "together", samples=40)
    _finish(_start(alone))
    with Observer(tmp_path / "together") as observer:
        drivers = [_start(together), _start(together)]
        for driver in drivers:
            _finish(driver)
    assert observer.problems == []
    assert _shards(tmp_path / "together") == _shards(tmp_path / "alone")
    assert verify(Store.open(together.output), repair=False).problems == ()


def test_sigterm_ends_resumable(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    import signal
    import subprocess
    import sys

    run_file = write_run_file(dataset={"samples": 4000, "samples_per_shard": 4})
    command = [sys.executable, "-m", "labelmill.pipeline.cli", "generate", str(run_file)]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list((tmp_path / "out").glob("shards/*.tar")):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 75
    assert "interrupted by SIGTERM; rerun the same command to resume" in errors
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bytes_do_not_depend_on_how_many_threads_encode(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    from labelmill.workers.generate import generate

    once, again = _configs(write_run_file, tmp_path, "once", "again", samples=12)
    generate(once)
    generate(again.model_copy(update={"execution": again.execution.model_copy(update={"encode_threads": 5})}))
    assert _shards(tmp_path / "once") == _shards(tmp_path / "again")
