"""`labelmill init`: run files that `labelmill validate` accepts, for every kind of generator."""

import re
from pathlib import Path

import pytest
import torch
from helpers.tiny_run import save_tiny_generator
from typer.testing import CliRunner, Result

from labelmill.pipeline.cli import app
from labelmill.pipeline.commands import first_run_file as module
from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import CheckpointError, OutputError
from labelmill.schemas.yaml_file import load_config


def _command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def _save(path: Path, resolution: int = 32, c_dim: int = 0, licence: str = "Apache-2.0") -> None:
    channels = channels_by_resolution(resolution, channel_base=64, channel_max=8)
    spec = GeneratorSpec(resolution, z_dim=8, w_dim=8, c_dim=c_dim, mapping_layers=1, channels=channels)
    save_generator(path, Generator(spec), {"licence": licence})


def test_validate_accepts_it_wherever_it_lies(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/My Faces (v2).safetensors").write_bytes(tiny_checkpoint.read_bytes())
    made = _command("init", "weights/My Faces (v2).safetensors", "--out", "runs/faces.yaml")
    assert made.exit_code == 0 and "labelmill validate runs/faces.yaml" in made.stdout
    config = load_config(tmp_path / "runs/faces.yaml", RunConfig)
    assert config.name == "my-faces-v2" and config.generator.checkpoint == "../weights/My Faces (v2).safetensors"
    assert "runs/faces.yaml: fine. 32 px" in _command("validate", "runs/faces.yaml").stdout
    text = (tmp_path / "runs/faces.yaml").read_text()
    assert "32 px, RGB, unconditional, 8 rows of w" in text and "Licence of the generator: Apache-2.0." in text
    with pytest.raises(OutputError, match=r"runs/faces\.yaml: is there already"):
        _command("init", "weights/My Faces (v2).safetensors", "--out", "runs/faces.yaml")
    assert (tmp_path / "runs/faces.yaml").read_text() == text


def test_other_shapes_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _save(tmp_path / "classes.safetensors", c_dim=3, licence="mine\nname: stolen")
    save_tiny_generator(tmp_path / "body.safetensors", const_size=(4, 2), img_channels=1)
    for name in ("classes", "body"):
        assert _command("init", f"{name}.safetensors").exit_code == 0
        assert _command("validate", f"{name}.yaml").exit_code == 0
    conditional = load_config(tmp_path / "classes.yaml", RunConfig)
    assert (conditional.name, conditional.generator.classes) == ("classes", "all")
    assert "# Licence of the generator: mine name: stolen." in (tmp_path / "classes.yaml").read_text()
    assert "16 x 32 px (width x height), gray" in (tmp_path / "body.yaml").read_text()


def test_batches_and_shards_follow_size_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def spec(resolution: int) -> GeneratorSpec:
        channels = channels_by_resolution(resolution, channel_base=32768, channel_max=512)
        return GeneratorSpec(resolution, z_dim=512, w_dim=512, c_dim=0, mapping_layers=8, channels=channels)

    monkeypatch.setattr(module, "free_bytes", lambda device: 2**34)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sizes = [module._batch_size(spec(resolution), cpu)[0] for resolution in (64, 256, 1024)]
    assert sizes == [16, 16, 4]
    assert module._batch_size(spec(64), gpu)[0] == 64 and "GPU" in module._batch_size(spec(64), gpu)[1]
    monkeypatch.setattr(module, "free_bytes", lambda device: 2**28)
    size, reason = module._batch_size(spec(1024), cpu)
    assert size == 1 and "a quarter of the memory" in reason
    assert [module._samples_per_shard(spec(resolution)) for resolution in (64, 512, 1024)] == [100, 100, 50]


def test_what_cannot_be_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing\.pkl"):
        _command("init", "nothing.pkl")
    with pytest.raises(CheckpointError, match="secrets"):
        _command("init", "https://user:password@host/a.pkl")
    assert not list(tmp_path.glob("*.yaml"))


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [("bundled:avatars-64", "avatars-64"), ("https://a.b/Network_Final.pkl", "network-final"), ("/x/ö.pt", "dataset")],
)
def test_names_of_runs(checkpoint: str, name: str) -> None:
    assert module._run_name(checkpoint) == name and re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name)
