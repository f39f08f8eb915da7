"""Tensors with JSON: what is written is read, in the library's own format, and nothing else is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from labelmill.pipeline.process.safetensors_json import (
    METADATA_KEY,
    DamagedFileError,
    ForeignFileError,
    load_with_json,
    read_json_header,
    save_with_json,
)

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones((), dtype=torch.float16)}


def test_what_is_written_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    content = save_with_json(TENSORS, '{"x": [1, "\u00e4"]}')
    values, tensors = load_with_json(content)
    assert values == {"x": [1, "ä"]} and tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    (tmp_path / "file").write_bytes(content)
    with safe_open(tmp_path / "file", "pt") as file:
        assert json.loads(file.metadata()[METADATA_KEY]) == values
    entries = read_json_header(memoryview(content))
    assert entries["b"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {METADATA_KEY: "[1]"}, {METADATA_KEY: "{"}])
def test_files_of_other_programs(metadata: dict[str, str] | None) -> None:
    with pytest.raises(ForeignFileError, match="no JSON object under `labelmill`"):
        load_with_json(save(TENSORS, metadata))


@pytest.mark.parametrize("content", [b"", bytes(7), b"no file at all", save_with_json(TENSORS, "{}")[:-1]])
def test_damage(content: bytes) -> None:
    with pytest.raises(DamagedFileError):
        load_with_json(content)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{nothing}", b"[]"])
def test_headers_that_are_none(text: bytes) -> None:
    with pytest.raises(DamagedFileError, match="no JSON"):
        read_json_header(len(text).to_bytes(8, "little") + text)
    with pytest.raises(DamagedFileError, match=r"truncated: .* bytes, fewer than its header"):
        read_json_header(len(text).to_bytes(8, "little") + text[:-1])
