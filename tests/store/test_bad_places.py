"""Outputs that cannot take a dataset: full, read-only. Clear words, nothing lost, nothing half-written."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.observer import READERS, STAGING
from typer.testing import CliRunner, Result

from labelmill.pipeline.cli import app
from labelmill.schemas.errors import OutputError

RunFileWriter = Callable[..., Path]


def _generate(run_file: Path) -> Result:
    return CliRunner().invoke(app, ["generate", str(run_file)], catch_exceptions=False)


def _mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 240 kB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount(folder, "size=240k")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(write_run_file: RunFileWriter, small_disk: Path) -> None:
    run_file = write_run_file(output=str(small_disk / "out"), dataset={"samples": 60, "samples_per_shard": 6})
    with pytest.raises(OutputError, match="the disk is full"):
        _generate(run_file)
    files = [path for path in small_disk.rglob("*") if path.is_file() and not STAGING.fullmatch(path.name)]
    finished = {path: path.read_bytes() for path in files if path.suffix == ".tar"}
    assert finished
    for path in files:
        READERS[path.suffix](path.read_bytes())
    assert not (small_disk / "out" / "manifest.json").exists()

    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert "60 samples of 60 candidates in 10 shards" in _generate(run_file).stdout
    assert {path: path.read_bytes() for path in finished} == finished
    verified = CliRunner().invoke(app, ["verify", str(small_disk / "out")], catch_exceptions=False)
    assert "60 samples in 10 shards, all verified" in verified.stdout


def test_a_read_only_place(write_run_file: RunFileWriter, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="read-only"):
        _generate(write_run_file(output=str(small_disk / "out")))


def test_a_file_in_the_way(write_run_file: RunFileWriter, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        _generate(write_run_file())
    assert (tmp_path / "out").read_text() == "mine"
