"""What `generate` refuses before work, `validate`, `plan` and `nightly validate` refuse in the same words."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from helpers.tiny_run import save_tiny_generator, tiny_run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from labelmill.pipeline import prompt_models
from labelmill.pipeline.cli import app
from labelmill.pipeline.labelers import fitted_file
from labelmill.pipeline.labelers.feature_clusters import method as feature_clusters_method
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import LabelmillError, OutputError

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
    assert "existing: 2 shards; to make: 0 shards" in _run("plan", run_file)
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


NAMES = {"back": ["background"], "thing": ["hair", "a hat"]}
PROMPTED = {**CLUSTERS, "names": NAMES, "prompt_model": "bundled:avatars-prompts"}
MAPPING = {"classes": ["back", "thing"], "clusters": {"0": "back", "1": "thing", "2": "thing", "3": "ignore"}}
LABELERS: dict[str, dict[str, object]] = {
    "style mixing": {},
    "style mixing beyond the rows": {"crossover": 99},
    "clusters without names": CLUSTERS,
    "clusters of a layer that is not there": {**CLUSTERS, "layers": "b64.conv1"},
    "mapped clusters": {**CLUSTERS, "mapping": MAPPING},
    "a mapping for other clusters": {**CLUSTERS, "clusters": 5, "mapping": MAPPING},
    "prompts": PROMPTED,
    "prompts of unknown words": {**PROMPTED, "names": {**NAMES, "animal": ["zebra"]}},
    "prompts without weights": {**PROMPTED, "prompt_model": "open-clip:RN50@/nowhere/w.safetensors"},
    "prompts of no model": {**PROMPTED, "prompt_model": "bundled:nothing"},
}
LENIENT = {"foreground_min": 0.0, "foreground_max": 1.0, "confidence_min": 0.0, "largest_component_min": 0.0}
GENERATORS = ("square", "wide", "gray", "absent", "no checkpoint")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {name: folder / f"{name}.safetensors" for name in GENERATORS}
    save_tiny_generator(paths["square"])
    save_tiny_generator(paths["wide"], const_size=(2, 4))
    save_tiny_generator(paths["gray"], img_channels=1)
    paths["no checkpoint"].write_bytes(b"<!doctype html>")
    return paths


def _refusal(*arguments: object) -> tuple[int, str] | None:
    """Status and words of a command that refuses; None where it does its work."""
    try:
        _run(*arguments)
    except LabelmillError as error:
        return error.exit_code, str(error)
    return None


@settings(max_examples=12)
@example(labeler="clusters without names", is_judged=True, generator="square", splits={"train": 1.0})
@example(labeler="prompts without weights", is_judged=False, generator="gray", splits={"train": 1.0})
@example(labeler="a mapping for other clusters", is_judged=False, generator="wide", splits={"train": 1.0})
@given(
    labeler=st.sampled_from(sorted(LABELERS)),
    is_judged=st.booleans(),
    generator=st.sampled_from(GENERATORS),
    splits=st.sampled_from(({"train": 1.0}, {"a": 0.5, "b": 0.25, "c": 0.25})),
)
def test_commands_agree_on_any_run(
    labeler: str, is_judged: bool, generator: str, splits: dict[str, float], checkpoints: dict[str, Path]
) -> None:
    with TemporaryDirectory() as folder:
        _check_agreement(Path(folder), checkpoints[generator], LABELERS[labeler], is_judged, splits)


def _check_agreement(
    folder: Path, checkpoint: Path, labeler: dict[str, object], is_judged: bool, splits: dict[str, float]
) -> None:
    values: dict[str, object] = tiny_run(checkpoint, folder / "out")
    if "method" not in labeler:
        labeler = {**values["labeler"], **labeler}  # type: ignore[dict-item]
    values["labeler"] = labeler
    values["dataset"] = {"samples": 4, "samples_per_shard": 2, "splits": splits}
    values["quality"] = {**LENIENT, "enabled": is_judged, "allow_weak_labeler": True}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    (folder / "nightly.yaml").write_text(yaml.safe_dump({"run": "run.yaml", "root": str(folder / "root")}))
    validated = _refusal("validate", folder / "run.yaml")
    assert _refusal("nightly", "validate", folder / "nightly.yaml", "--date", "2026-11-01") == validated
    assert not (folder / "out").exists()
    generated = _refusal("generate", folder / "run.yaml")
    assert generated == validated
    if validated is not None:
        assert validated[0] == 2 and not (folder / "out").exists()
        for command in ("plan", "preview"):
            assert _refusal(command, folder / "run.yaml", *_where(command, folder)) == validated
        if not validated[1].startswith("quality: clusters without names"):  # which get names from what `fit` shows
            assert _refusal("fit", folder / "run.yaml") == validated
        assert not (folder / "out").exists()
        refused = _refusal("nightly", "run", folder / "nightly.yaml", "--date", "2026-11-01")
        # A night needs the content of what `fit` reads for its name: of two mistakes it tells that one first.
        assert refused == validated or (refused and refused[0] == 2 and "no checkpoint" in validated[1])


def _where(command: str, folder: Path) -> list[object]:
    return ["--out", folder / "sheet.png"] if command == "preview" else []


@pytest.mark.parametrize("command", ["validate", "plan", "generate"])
def test_a_process_reads_and_parses_the_fitted_file_once(
    finished: Path,
    write_run_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """What is counted are real reads and real parsing."""
    read, parse = Store.read, fitted_file.load_with_json
    reads, parsed = [], []

    def noted_read(store: Store, path: str) -> bytes:
        reads.append(path)
        return read(store, path)

    def noted_parse(content: bytes) -> Any:
        parsed.append(len(content))
        return parse(content)

    monkeypatch.setattr(Store, "read", noted_read)
    monkeypatch.setattr(fitted_file, "load_with_json", noted_parse)
    labeler, dataset = "labeler/style_mixing.safetensors", {"samples": 6, "samples_per_shard": 3}
    if command == "generate":
        _run("generate", write_run_file(dataset=dataset))
        assert (reads.count(labeler), len(parsed)) == (1, 1)  # it looks for one, and opens what it has fitted
        reads.clear()
        parsed.clear()
    else:
        shutil.copytree(finished, tmp_path / "out")
    _run(command, write_run_file(dataset={**dataset, "samples": 9}))
    assert (reads.count(labeler), len(parsed)) == (1, 1)


@pytest.fixture
def prompt_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled prompt model's weights in their place."""
    folder = tmp_path / "weights"
    shutil.copytree(prompt_models._BUNDLED_FOLDER, folder)
    monkeypatch.setattr(prompt_models, "_BUNDLED_FOLDER", folder)
    return folder / "avatars-prompts.safetensors"


def _correct(weights: Path) -> None:
    """Other weights, of the same model, at the same path."""
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    save_file({**tensors, name: tensors[name] * 1.01}, weights, metadata)


def test_corrected_weights_at_the_same_path_are_another_run(
    write_run_file: Callable[..., Path], prompt_weights: Path, tmp_path: Path
) -> None:
    run_file = write_run_file(dataset={"samples": 6, "samples_per_shard": 3})
    values = {**yaml.safe_load(run_file.read_text()), "labeler": PROMPTED}
    run_file.write_text(yaml.safe_dump(values))
    nightly_file = tmp_path / "nightly.yaml"
    nightly_file.write_text(yaml.safe_dump({"run": "run.yaml", "root": str(tmp_path / "root")}))
    night = ("nightly", "validate", nightly_file, "--date", "2026-11-01")
    _run("generate", run_file)
    before, snapshot = _files(tmp_path / "out"), _run(*night)
    _correct(prompt_weights)
    words = r"inputs\.prompt_model_weights: sha256:\w{64} in the run file, sha256:\w{64} in the output"
    for command in ("validate", "plan", "fit", "generate"):
        with pytest.raises(OutputError, match=words):
            _run(command, run_file)
    assert _files(tmp_path / "out") == before
    assert _run(*night) != snapshot
    # What is there stays whole: nothing of it is fitted again.
    assert "all verified" in _run("verify", tmp_path / "out")
    assert "report" in _run("report", tmp_path / "out")
    prompt_weights.unlink()
    for command in ("validate", "generate"):
        with pytest.raises(LabelmillError, match=r"avatars-prompts\.safetensors: the prompt model cannot be read"):
            _run(command, run_file)


def test_an_output_of_an_earlier_version_resumes(
    write_run_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions left what `fit` reads out of the identity."""
    run_file = write_run_file(dataset={"samples": 6, "samples_per_shard": 3})
    values = {**yaml.safe_load(run_file.read_text()), "labeler": PROMPTED}
    run_file.write_text(yaml.safe_dump(values))
    with monkeypatch.context() as earlier:
        earlier.setattr(feature_clusters_method.METHOD, "inputs", lambda config: {})
        _run("generate", run_file)
    before = _files(tmp_path / "out")
    assert "inputs" not in json.loads(before[str(tmp_path / "out" / "run.json")])["identity"]
    _run("generate", run_file, "--set", "dataset.samples=9")
    tars = {path: content for path, content in before.items() if path.endswith((".tar", "run.json"))}
    assert tars.items() <= _files(tmp_path / "out").items()
    assert "9 samples in 3 shards, all verified" in _run("verify", tmp_path / "out")
