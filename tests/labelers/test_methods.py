"""A labeling method is one row of METHODS and one of the schema's union; a third one needs nothing else.

The third one is toy_method/. Its two rows and its files are put into a copy of labelmill, which then runs through
every command, in processes of its own and in workers of Ray.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from helpers.drivers import Driver
from helpers.ray_nodes import own_ray
from helpers.ray_runs import RAY, shards_of
from pydantic import Tag

from labelmill.pipeline.labelers import methods
from labelmill.pipeline.labelers.methods import METHODS
from labelmill.schemas.config import LabelerConfig
from labelmill.schemas.labelers import style_mixing

TOY = Path(__file__).parent / "toy_method"
ROOT = Path(methods.__file__).resolve().parents[2]
RUN_COMMANDS = """
import json, sys
from typer.testing import CliRunner
from labelmill.pipeline.cli import app
for arguments in json.loads(sys.argv[1]):
    print(CliRunner().invoke(app, arguments, catch_exceptions=False).output)
"""


def _union() -> dict[str, Any]:
    """The configurations of the run file's union by their tags."""
    members = get_args(get_args(LabelerConfig)[0])
    return {get_args(member)[1].tag: get_args(member)[0] for member in members if isinstance(get_args(member)[1], Tag)}


def test_methods_and_the_schemas_union_agree() -> None:
    assert {name: method.config for name, method in METHODS.items()} == _union()
    for name, config in _union().items():
        assert get_args(config.model_fields["method"].annotation) == (name,)


def _insert(path: Path, after: str, line: str) -> None:
    """Put a line behind the one that matches."""
    text, count = re.subn(rf"^.*{after}.*\n", lambda match: f"{match[0]}{line}\n", path.read_text(), flags=re.MULTILINE)
    assert count == 1, (path, after)
    path.write_text(text)


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of labelmill with the toy method: its files, two rows, and what these import."""
    copy = tmp_path_factory.mktemp("labelmill-with-toy")
    heavy = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.png", "results", "*.json")
    for package in ("schemas", "pipeline", "workers", "labelmill"):
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, copy / package, symlinks=True, ignore=heavy)
    room = copy / "pipeline" / "labelers" / "toy"
    room.mkdir()
    (room / "__init__.py").touch()
    shutil.copy(TOY / "method.py", room)
    shutil.copy(TOY / "config.py", copy / "schemas" / "labelers" / "toy.py")

    table, union = copy / "pipeline" / "labelers" / "methods.py", copy / "schemas" / "config.py"
    _insert(table, "^from pathlib", f"from {methods.__package__}.toy.method import METHOD as TOY")
    _insert(table, '    "style_mixing": ', '    "toy": TOY,')
    _insert(union, "^import re$", f"from {style_mixing.__package__}.toy import ToyConfig")
    _insert(union, r"\| Annotated\[FeatureClustersConfig, Tag", '    | Annotated[ToyConfig, Tag("toy")]')
    return copy


class _Toy:
    """Runs commands of the copy."""

    def __init__(self, copy: Path, folder: Path) -> None:
        self.environment, self.folder = {"PYTHONPATH": str(copy)}, folder
        (folder / "bias.txt").write_text("0.05")

    def run_file(
        self, checkpoint: Path, output: str, execution: dict[str, object] | None = None, **labeler: Any
    ) -> str:
        values = {
            "name": "toy",
            "output": output,
            "generator": {"checkpoint": str(checkpoint)},
            "labeler": {"method": "toy", "bias": str(self.folder / "bias.txt"), **labeler},
            "dataset": {"samples": 12, "samples_per_shard": 6},
            "quality": {"foreground_min": 0, "foreground_max": 1, "largest_component_min": 0},
            "numerics": {"batch_size": 4, "threads": 1},
            "execution": execution or {},
        }
        (self.folder / f"{output}.yaml").write_text(yaml.safe_dump(values))
        return f"{output}.yaml"

    def commands(self, *commands: str) -> str:
        """What several commands say, in one process."""
        asked = json.dumps([command.split() for command in commands])
        done = subprocess.run(
            [sys.executable, "-c", RUN_COMMANDS, asked],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def driver(self, *arguments: str, **more: str) -> Driver:
        return Driver(*arguments, cwd=self.folder, env={**self.environment, **more})


@pytest.fixture
def toy(with_toy: Path, tmp_path: Path) -> _Toy:
    return _Toy(with_toy, tmp_path)


def test_a_third_method_runs_through_every_command(toy: _Toy, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = toy.run_file(tiny_checkpoint, "out")
    night = {"run": run, "root": "nights", "gates": {"near_duplicates": None, "empty_masks": None}}
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(night))
    said = toy.commands(
        f"validate {run}",
        f"plan {run}",
        f"preview {run} --samples 8",
        f"fit {run}",
        f"generate {run}",
        "verify out",
        "report out",
        "nightly validate nightly.yaml --date 2026-01-02",
        "nightly run nightly.yaml --date 2026-01-02",
        "verify out",
    )
    assert f"{run}: fine. 32 px" in said and "12 samples in 2 shards" in said
    assert "toy: bright things were found" in said and "out/labeler/toy.txt says what is bright" in said
    assert "preparing: the generator, and the toy labeler in 4 steps unless it is fitted" in said
    assert said.count("out: 12 samples in 2 shards, all verified") == 2 and "report/index.html" in said
    assert re.search(r"2026-01-02-\w{12} is live", said)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["classes"] == ["dark", "bright"]
    assert (tmp_path / "out" / "report" / "index.html").exists()
    with tarfile.open(tmp_path / "out" / "shards" / "toy-000000.tar") as shard:
        assert sum(name.endswith(".alpha.png") for name in shard.getnames()) == 6


def test_workers_of_ray_know_a_third_method(toy: _Toy, tiny_checkpoint: Path, tmp_path: Path) -> None:
    toy.commands(f"generate {toy.run_file(tiny_checkpoint, 'here')}")
    run = toy.run_file(tiny_checkpoint, "there", {**RAY, "workers": 1, "gpus_per_worker": 0})
    with own_ray() as own, toy.driver("generate", run, **own) as driver:
        assert driver.wait() == 0, driver.text
    assert shards_of(str(tmp_path / "there")) == shards_of(str(tmp_path / "here"))


def test_a_fit_that_is_killed_resumes_in_its_folder(toy: _Toy, tiny_checkpoint: Path, tmp_path: Path) -> None:
    toy.commands(f"fit {toy.run_file(tiny_checkpoint, 'whole', steps=6, seconds_per_step=0.3)}")
    run = toy.run_file(tiny_checkpoint, "out", steps=6, seconds_per_step=0.3)
    with toy.driver("fit", run) as driver:
        driver.wait_for("toy: step 2 done")
        driver.send(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "labeler").exists()
    said = toy.commands(f"fit {run}")
    begun = re.search(r"toy: fit begins at step (\d)", said)
    assert begun is not None and int(begun[1]) >= 3
    assert not (tmp_path / "out" / ".fit").exists() and not (tmp_path / "whole" / ".fit").exists()
    fitted = "labeler/toy.safetensors"
    assert (tmp_path / "out" / fitted).read_bytes() == (tmp_path / "whole" / fitted).read_bytes()


def test_what_a_third_method_refuses_and_reads(toy: _Toy, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = toy.run_file(tiny_checkpoint, "out")
    toy.commands(f"fit {run}")
    (tmp_path / "bias.txt").write_text("0.1")
    with toy.driver("generate", run) as driver:
        assert driver.wait() == 2
        assert re.search(r"inputs\.bias: sha256:\w+ in the run file, sha256:\w+ in the output", driver.text)
    with toy.driver("validate", run, "--set", "quality.foreground_min=0.95") as driver:
        assert driver.wait() == 2 and "hardly anything is so bright" in driver.text
