"""labelmill's own checkpoint format: exact round trips, and errors that say what is wrong."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from labelmill.pipeline.generator.checkpoints import bundled_names, open_checkpoint
from labelmill.pipeline.generator.checkpoints.native import LoadedCheckpoint, parse_generator, save_generator
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from labelmill.pipeline.process.safetensors_json import METADATA_KEY
from labelmill.schemas.errors import CheckpointError

SPEC = GeneratorSpec(
    resolution=16,
    z_dim=8,
    w_dim=12,
    c_dim=0,
    mapping_layers=2,
    channels=channels_by_resolution(16, channel_base=128, channel_max=8),
    conv_clamp=256.0,
)


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(SPEC)


@pytest.fixture
def path(generator: Generator, tmp_path: Path) -> Path:
    path = tmp_path / "generator.safetensors"
    save_generator(path, generator, {"licence": "Apache-2.0"})
    return path


def load(path: Path) -> LoadedCheckpoint:
    return parse_generator(str(path), path.read_bytes())


def rewrite(path: Path, **changes: object) -> None:
    """The same tensors under a changed header."""
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"][METADATA_KEY])
    save_file(load_file(path), path, metadata={METADATA_KEY: json.dumps({**header, **changes})})


class TestRoundTrip:
    @pytest.mark.parametrize(
        "spec",
        [
            SPEC,
            replace(SPEC, c_dim=3),
            replace(SPEC, architecture="orig", conv_clamp=None),
            replace(SPEC, architecture="resnet"),
            replace(SPEC, const_size=(4, 2)),
            replace(SPEC, const_size=(3, 5), img_channels=1),
        ],
    )
    def test_float32_is_exact(self, spec: GeneratorSpec, tmp_path: Path) -> None:
        original = Generator(spec)
        save_generator(tmp_path / "g.safetensors", original, {"licence": "Apache-2.0", "data": "none"})
        loaded = load(tmp_path / "g.safetensors")
        assert loaded.generator.spec == spec
        assert loaded.info.provenance == {"licence": "Apache-2.0", "data": "none"}
        ours, theirs = original.state_dict(), loaded.generator.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not loaded.generator.training
        assert not any(parameter.requires_grad for parameter in loaded.generator.parameters())

    def test_files_of_former_versions_are_of_square_images(self, path: Path) -> None:
        former = asdict(SPEC)
        del former["const_size"]
        rewrite(path, spec=former)
        assert load(path).generator.spec == SPEC

    def test_float16_halves_the_file_and_loads_as_float32(self, generator: Generator, path: Path) -> None:
        half = path.with_name("half.safetensors")
        save_generator(half, generator, {}, storage="float16")
        assert half.stat().st_size < 0.7 * path.stat().st_size
        ours, theirs = generator.state_dict(), load(half).generator.state_dict()
        assert all(tensor.dtype == torch.float32 for tensor in theirs.values())
        assert all(torch.equal(ours[name].half().float(), theirs[name]) for name in ours)

    def test_the_hash_is_of_the_bytes(self, path: Path) -> None:
        assert load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_kernels_lie_channels_last(self, path: Path) -> None:
        weight = load(path).generator.synthesis.get_parameter("b16.conv1.weight")
        assert weight.is_contiguous(memory_format=torch.channels_last)

    def test_values_that_float16_cannot_hold_are_refused(self, generator: Generator, tmp_path: Path) -> None:
        with torch.no_grad():
            generator.mapping.get_parameter("fc0.weight").fill_(1e6)
        with pytest.raises(CheckpointError, match=r"mapping\.fc0\.weight is not finite in float16"):
            save_generator(tmp_path / "g.safetensors", generator, {}, storage="float16")
        assert not (tmp_path / "g.safetensors").exists()


class TestErrors:
    """Each names the file and what was found."""

    def test_another_kind_of_file(self, path: Path) -> None:
        path.write_bytes(b"not a checkpoint, but long enough to hold a header" * 10)
        with pytest.raises(CheckpointError, match=r"generator\.safetensors"):
            load(path)

    def test_safetensors_of_something_else(self, path: Path) -> None:
        save_file({"x": torch.zeros(3)}, path)
        with pytest.raises(CheckpointError, match="not a labelmill generator"):
            load(path)

    @pytest.mark.parametrize("kept", [0, 5, 100, -1])
    def test_truncation(self, path: Path, kept: int) -> None:
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match=r"generator\.safetensors"):
            load(path)

    def test_another_format_or_version(self, path: Path) -> None:
        rewrite(path, version=2)
        with pytest.raises(CheckpointError, match=r"version 2 .*newer labelmill"):
            load(path)
        rewrite(path, format="labelmill-labeler", version=1)
        with pytest.raises(CheckpointError, match="labelmill-labeler"):
            load(path)

    def test_an_unusable_description(self, path: Path) -> None:
        rewrite(path, spec={"resolution": 24})
        with pytest.raises(CheckpointError, match="description of the network is unusable"):
            load(path)

    def test_missing_and_unknown_tensors(self, generator: Generator, path: Path) -> None:
        length = int.from_bytes(path.read_bytes()[:8], "little")
        metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
        tensors = load_file(path)
        tensors["extra"] = tensors.pop("synthesis.b8.conv0.bias")
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"missing \['synthesis\.b8\.conv0\.bias'\], unknown \['extra'\]"):
            load(path)

    def test_wrong_shape_and_values(self, generator: Generator, path: Path) -> None:
        length = int.from_bytes(path.read_bytes()[:8], "little")
        metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
        tensors = load_file(path)
        save_file({**tensors, "mapping.w_avg": torch.zeros(5)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=r"mapping\.w_avg has shape \(5,\).*\(12,\)"):
            load(path)
        save_file({**tensors, "mapping.w_avg": torch.full((12,), torch.nan)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="not finite"):
            load(path)


class TestBundled:
    @pytest.mark.parametrize("name", bundled_names())
    def test_every_bundled_generator_is_small_and_has_a_card(self, name: str) -> None:
        loaded = open_checkpoint(f"bundled:{name}")
        folder = Path(__file__).parents[2] / "pipeline" / "generator" / "bundled"
        assert (folder / f"{name}.safetensors").stat().st_size <= 12 * 2**20
        assert loaded.info.provenance["licence"] == "Apache-2.0"
        card = (folder / f"{name}.md").read_text()
        for needed in ("Pablo Stanley", "DiceBear", "MIT", "Images seen", "Hardware", "train-generator"):
            assert needed in card
        assert (folder / f"{name}.png").is_file()

    def test_there_is_one(self) -> None:
        assert bundled_names()

    def test_an_unknown_name_lists_the_known(self) -> None:
        with pytest.raises(CheckpointError, match=bundled_names()[0]):
            open_checkpoint("bundled:nonsense")
