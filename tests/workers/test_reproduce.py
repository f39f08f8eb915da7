"""`labelmill reproduce`: samples made again against the bytes that a dataset holds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.tars import repacked
from helpers.tiny_run import save_tiny_generator
from typer.testing import CliRunner, Result

from labelmill.pipeline.cli import app
from labelmill.pipeline.shards.publisher import read_record, record_path
from labelmill.pipeline.shards.reader import members_in
from labelmill.pipeline.shards.sealed import seal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import CheckpointError, ConfigError, OutputError, VerificationError
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate
from labelmill.workers.reproduce import reproduce

TAR = "shards/tiny-000000.tar"
REJECTS = "rejects/tiny-000000.tar"
KEPT, DROPPED, AFTER = "0000000003", "0000000005", "0000000006"
"""Seed 5 has the largest foreground, which the rule drops."""


@pytest.fixture(scope="module")
def made(write_run_file_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard of six samples, with what was dropped kept aside. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    rules = {"enabled": True, "foreground_max": 0.85, "confidence_min": 0, "largest_component_min": 0}
    run_file = write_run_file_in(
        folder, dataset={"samples": 6, "samples_per_shard": 6}, quality=rules, execution={"keep_rejects": True}
    )
    generate(load_config(run_file, RunConfig))
    return folder / "out"


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def _stored(output: Path, tar: str, key: str) -> dict[str, bytes]:
    members = members_in((output / tar).read_bytes())
    return {member.name: bytes(member.data) for member in members if member.key == key}


def _reproduce(output: Path, *arguments: object) -> Result:
    words = [str(word) for word in ("reproduce", output, *arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize(("key", "tar"), [(KEPT, TAR), (AFTER, TAR), (DROPPED, REJECTS)])
def test_a_sample_comes_out_the_same_to_the_byte(made: Path, tmp_path: Path, key: str, tar: str) -> None:
    result = _reproduce(made, int(key), "--out", tmp_path / "one")
    assert result.exit_code == 0 and "may differ" not in result.stdout
    assert result.stdout.count("bytes, the same") == 3 and f"{made}/{tar}: sample {key}" in result.stdout
    stored = _stored(made, tar, key)
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == stored and len(stored) == 3
    before = json.loads(json.loads(stored[f"{key}.json"])["dropped_before"])
    assert [row["seed"] for row in before] == ([5] if key == AFTER else [])


def test_bytes_that_differ_are_described_and_fail(output: Path, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        mask_HW = cv2.imdecode(np.frombuffer(members[f"{KEPT}.mask.png"], np.uint8), cv2.IMREAD_UNCHANGED)
        mask_HW[0, :3] ^= 1
        metadata = json.loads(members[f"{KEPT}.json"])
        metadata["candidate"]["confidence"] = 0.125
        changed = {
            f"{KEPT}.mask.png": cv2.imencode(".png", mask_HW)[1].tobytes(),
            f"{KEPT}.json": json.dumps(metadata).encode(),
            f"{KEPT}.alpha.png": members[f"{KEPT}.mask.png"],
        }
        return {**members, **changed}

    (output / TAR).write_bytes(repacked((output / TAR).read_bytes(), change))
    with pytest.raises(VerificationError) as raised:
        _reproduce(output, KEPT, "--out", tmp_path / "one")
    text = str(raised.value)
    assert raised.value.exit_code == 4
    assert f"{KEPT}.mask.png: 3 of 1024 pixels differ, by at most 1" in text
    assert "candidate.confidence is 0.125 in the dataset, 0." in text and f"{KEPT}.jpg: 1" in text
    assert f"{KEPT}.alpha.png: is in the tar, but is not made now" in text
    assert f"look for changes with `labelmill verify {output}`" in text
    assert sorted(path.suffix for path in (tmp_path / "one").iterdir()) == [".jpg", ".json", ".png"]


def test_other_machines_and_libraries_are_named(output: Path) -> None:
    record = read_record(Store.open(str(output)), 0)
    assert record is not None and record.kind is not None
    kind = record.kind.model_copy(
        update={"device": "NVIDIA H200", "libraries": {**record.kind.libraries, "torch": "1.0"}, "settings": {"A": "b"}}
    )
    (output / record_path(0)).write_bytes(seal(record.model_copy(update={"kind": kind})))
    text = _reproduce(output, KEPT).stdout
    assert "may differ: device: the shard was made on NVIDIA H200, this is cpu" in text
    assert "may differ: torch: 1.0 when the shard was made, 2" in text
    assert "may differ: A: b when the shard was made, absent here" in text and text.count("may differ") == 3
    (output / record_path(0)).write_bytes(seal(record.model_copy(update={"kind": None})))
    assert "record does not say on what kind of machine" in _reproduce(output, KEPT).stdout


def test_samples_that_are_not_there_are_explained(output: Path, made: Path) -> None:
    store = Store.open(str(made))
    with pytest.raises(ConfigError, match=r"KEY: 'seven' is not a sample's key"):
        reproduce(store, "seven")
    with pytest.raises(OutputError, match=r"has no sample 0000000024; its shards own seeds 0 to 23"):
        reproduce(store, "24")
    with pytest.raises(OutputError, match=r"0000000020: its seed was not tried, as its shard was full after seed 6"):
        reproduce(store, "20")
    (output / REJECTS).unlink()
    with pytest.raises(OutputError, match=r"0000000005: its seed was dropped as foreground_too_large"):
        reproduce(Store.open(str(output)), "5")


def test_generator_and_labeler_must_be_those_of_the_dataset(
    output: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["config"]["generator"]["checkpoint"] = str(tmp_path / "moved.safetensors")
    (output / "manifest.json").write_text(json.dumps(manifest))
    store = Store.open(str(output))
    with pytest.raises(CheckpointError, match=r"moved\.safetensors"):
        reproduce(store, KEPT)
    assert reproduce(store, KEPT, str(tiny_checkpoint)).is_same
    save_tiny_generator(tmp_path / "gray.safetensors", img_channels=1)
    with pytest.raises(CheckpointError, match=r"gray\.safetensors: is not the generator that the dataset was made"):
        reproduce(store, KEPT, str(tmp_path / "gray.safetensors"))
    (output / "labeler/style_mixing.safetensors").write_bytes(b"another")
    with pytest.raises(OutputError, match="is not the labeler that the dataset was made with"):
        reproduce(store, KEPT, str(tiny_checkpoint))
