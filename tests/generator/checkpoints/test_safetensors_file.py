"""Tensors of .safetensors files that other programs wrote."""

import json

import pytest
import torch
from generator.checkpoints.checkpoint_files import images, random_generator, relative_difference, rosinality_state
from safetensors.torch import save

from labelmill.pipeline.generator.checkpoints import CheckpointError, parse_checkpoint
from labelmill.pipeline.generator.checkpoints.safetensors_file import read_safetensors
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor


def content_of(**changes: torch.Tensor) -> bytes:
    state = {name: tensor.contiguous() for name, tensor in random_generator().state_dict().items()}
    return save({**state, **changes}, metadata={"format": "pt"})


def rewritten(content: bytes, name: str, **fields: object) -> bytes:
    """The file with other fields in a tensor's description."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[name].update(fields)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_numbers_of_any_kind(dtype: torch.dtype) -> None:
    tensor = (torch.arange(6) % 2).reshape(2, 3).to(dtype)
    found = read_safetensors(memoryview(save({"x": tensor})))["x"]
    assert isinstance(found, StoredTensor)
    assert torch.equal(found.to_float32(), tensor.float())


def test_half_precision_and_prefixes() -> None:
    state = {f"model.g_ema.{name}": tensor.half() for name, tensor in rosinality_state(random_generator()).items()}
    found = parse_checkpoint("file.safetensors", save({**state, "latent_avg": random_generator().mapping.w_avg}))
    assert found.info.provenance["weights"] == "model.g_ema"
    assert found.info.provenance["average"] == "the file's latent_avg"
    assert relative_difference(images(found.generator), images(random_generator())) < 2e-2


def test_kinds_without_use_only_matter_where_they_are_needed() -> None:
    content = rewritten(content_of(extra=torch.zeros(2)), "extra", dtype="F8_E4M3")
    with pytest.raises(CheckpointError, match="has 'extra', unknown to StyleGAN2"):
        parse_checkpoint("file.safetensors", content)
    content = rewritten(content_of(), "mapping.w_avg", dtype="F8_E4M3")
    with pytest.raises(CheckpointError, match=r"mapping\.w_avg holds numbers of type 'F8_E4M3'"):
        parse_checkpoint("file.safetensors", content)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated_files_are_named(share: float) -> None:
    content = content_of()
    with pytest.raises(CheckpointError, match=r"file\.safetensors: truncated.*Fetch it again"):
        parse_checkpoint("file.safetensors", content[: int(len(content) * share)])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"shape": [7]}, "has shape .* bytes|lies outside"),
        ({"shape": "many"}, "'many' stands for a shape"),
        ({"shape": [2**60]}, "stands for a size"),
        ({"data_offsets": [4, 0]}, "has no place in the file"),
        ({"data_offsets": [0, 10**9]}, "lies behind the file's end"),
    ],
)
def test_damage_is_described(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        parse_checkpoint("file.safetensors", rewritten(content_of(), "mapping.w_avg", **fields))


def test_headers_that_are_none() -> None:
    for text in (b"{" * 5000, b'{"a":' + b"[" * 100_000, b'{"a": 3}', b"{nothing}"):
        with pytest.raises(CheckpointError, match="damaged"):
            parse_checkpoint("file.safetensors", len(text).to_bytes(8, "little") + text)
