"""What `generate` refuses before work, `validate`, `plan` and `nightly validate` refuse in the same words."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_run
from typer.testing import CliRunner

from pipeline.cli import app
from schemas.errors import LabelmillError

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def finished(write_run_file_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    _run("generate", write_run_file_in(folder, dataset={"samples": 6, "samples_per_shard": 3}))
    return folder / "out"


def _run(*arguments: object) -> str:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False).stdout


def _overwrite(path: str, data: bytes) -> Change:
    def change(output: Path) -> None:
        (output / path).write_bytes(data)

    return change


def _flip(path: str) -> Change:
    def change(output: Path) -> None:
        content = (output / path).read_bytes()
        (output / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    return change


CLUSTERS = {"method": "feature_clusters", "clusters": 4, "fit_samples": 16, "naming_samples": 8}


@pytest.mark.parametrize(
    ("change", "sets", "words"),
    [
        (None, ["quality.allow_weak_labeler=false"], "labeler: what `fit` found is too weak to label with"),
        (None, ["dataset.samples=3"], "dataset.samples: 3 is less than the output holds"),
        (None, ["generator.truncation_psi=0.5"], "generator.truncation_psi: 0.5 in the run file, 0.7 in the output"),
        (None, ["dataset.splits={train: 0.8, val: 0.1, test: 0.1}"], "dataset.splits: train, val, test are 3 splits"),
        (
            _flip("labeler/style_mixing.safetensors"),
            [],
            "style_mixing.safetensors: is not the labeler that fingerprint",
        ),
        (_overwrite("shards/tiny-000001.tar", bytes(10240)), [], "shards/tiny-000001.tar: is not what records/000001"),
        (_overwrite("shards/zzz-000001.tar", b""), [], "move them elsewhere:\n  shards/zzz-000001.tar"),
        (_overwrite("records/000009.json", b""), [], "move them elsewhere:\n  records/000009.json"),
        (_overwrite("run.json", b"{}"), ["name=other"], "run.json: is not what labelmill writes"),
    ],
)
def test_what_generate_refuses_validate_and_plan_refuse(
    finished: Path,
    write_run_file: Callable[..., Path],
    tmp_path: Path,
    change: Change | None,
    sets: list[str],
    words: str,
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    if change is not None:
        change(tmp_path / "out")
    run_file = write_run_file(dataset={"samples": 6, "samples_per_shard": 3})
    options = [option for value in sets for option in ("--set", value)]
    before = _files(tmp_path / "out")
    said = set()
    for command in ("validate", "plan", "generate"):
        with pytest.raises(LabelmillError, match=re.escape(words)) as refused:
            _run(command, run_file, *options)
        said.add(str(refused.value))
        assert _files(tmp_path / "out") == before
    assert len(said) == 1


def test_validate_and_plan_take_what_generate_rebuilds(
    finished: Path, write_run_file: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "records" / "000000.json").unlink()
    (tmp_path / "out" / "shards" / "tiny-000001.parquet").write_bytes(b"cut")
    before = _files(tmp_path / "out")
    run_file = write_run_file(dataset={"samples": 6, "samples_per_shard": 3})
    assert ": fine. 32 px" in _run("validate", run_file)
    assert "there already: 2 shards; to make: 0 shards" in _run("plan", run_file)
    assert _files(tmp_path / "out") == before
    _run("generate", run_file)
    assert (tmp_path / "out" / "shards" / "tiny-000001.parquet").read_bytes() == (
        finished / "shards" / "tiny-000001.parquet"
    ).read_bytes()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"labeler": CLUSTERS, "quality": {"enabled": True}}, "quality: clusters without names have no foreground"),
        ({"dataset": {"samples": 4, "samples_per_shard": 2, "splits": {"a": 0.5, "b": 0.25, "c": 0.25}}}, "3 splits"),
    ],
)
def test_nightly_validate_refuses_what_the_night_would(
    tiny_checkpoint: Path, tmp_path: Path, run: dict[str, object], words: str
) -> None:
    values = {**tiny_run(tiny_checkpoint, "ignored"), **run}
    del values["output"]
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump({"run": values, "root": str(tmp_path / "root")}))
    for command in ("validate", "run"):
        with pytest.raises(LabelmillError, match=words):
            _run("nightly", command, tmp_path / "nightly.yaml", "--date", "2026-11-01")
    assert not list((tmp_path / "root").rglob("*.tar"))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
