"""Shared fixtures: the tiny real generator, and run files that use it."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from helpers.ray_runs import shards_of
from helpers.s3_server import S3Server
from helpers.spread import FileScheduling, long_ones_first, scheduling
from helpers.tiny_run import save_tiny_generator, tiny_run
from hypothesis import settings

from labelmill.pipeline.process.interruption import keep_exit_status
from labelmill.pipeline.process.torchvision_import import import_torchvision
from labelmill.schemas.config import RunConfig
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate

# torchmetrics imports torchvision, whose wheel needs help beside a CPU build of torch.
import_torchvision()

# On a busy machine any example may take long once.
# The same examples every time: what fails here fails there. `--hypothesis-profile=default` looks for others.
settings.register_profile("labelmill", deadline=None, derandomize=True)
settings.load_profile("labelmill")

# The suite shares two cores with Ray, browsers and subprocesses; more threads only get in each other's way.
torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        long_ones_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> FileScheduling:
    return scheduling(config, log)


def pytest_unconfigure() -> None:
    """Ray's driver is this process too: what its threads do while the process ends must not fail the suite."""
    keep_exit_status()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 32 px StyleGAN2, for plumbing."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_tiny_generator(path)
    return path


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all tests. A test takes `s3` instead, which also points the environment to it."""
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The S3 server, healthy, with nothing but its settings in the environment."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.clear()
    yield s3_server
    s3_server.clear()


@pytest.fixture(scope="session")
def write_run_file_in(tiny_checkpoint: Path) -> Callable[..., Path]:
    """Writes a small run file into a folder; keyword arguments replace whole sections or add keys to them."""

    def write(folder: Path, **sections: object) -> Path:
        values = tiny_run(tiny_checkpoint, folder / "out")
        for key, section in sections.items():
            current = values.get(key)
            values[key] = {**current, **section} if isinstance(current, dict) and isinstance(section, dict) else section
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def write_run_file(write_run_file_in: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`write_run_file_in` for the test's own folder."""
    return partial(write_run_file_in, tmp_path)


@pytest.fixture(scope="session")
def expected(write_run_file_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of `write_run_file`'s run with many samples, by path, as the local executor makes them."""
    folder = tmp_path_factory.mktemp("expected")
    generate(load_config(write_run_file_in(folder, dataset={"samples": 480}), RunConfig))
    return shards_of(str(folder / "out"))
