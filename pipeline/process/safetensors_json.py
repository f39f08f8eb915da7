"""Safetensors files that say what they are: JSON beside the tensors, under one metadata key. Nothing in them is
executed.

The header is read here because safetensors shows metadata of files on a disk alone (`safe_open`), while most of these
come as bytes: from a bucket, a URL or a driver. A file begins with its header's length in 8 bytes and the header.
"""

import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

METADATA_KEY = "labelmill"
LENGTH_BYTES = 8
# What safetensors itself takes at most.
_MAX_HEADER_BYTES = 100_000_000


class DamagedFileError(ValueError):
    """What was read is no whole safetensors file."""


class ForeignFileError(ValueError):
    """A safetensors file without a JSON object under METADATA_KEY: another program's."""


def save_with_json(tensors: Mapping[str, Tensor], text: str) -> bytes:
    """A file of tensors, contiguous and on the CPU, and of a JSON object's text. Equal contents give equal bytes."""
    return save(dict(tensors), metadata={METADATA_KEY: text})


def load_with_json(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON object and the tensors, on the CPU, of a file. Raises DamagedFileError and ForeignFileError."""
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise DamagedFileError(str(error)) from error
    return json_of(read_json_header(content)), tensors


def read_json_header(content: bytes | memoryview) -> dict[str, object]:
    """A file's header: `__metadata__`, and dtype, shape and data_offsets by tensor, unchecked. Raises
    DamagedFileError."""
    end = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    if end > len(content) or end > _MAX_HEADER_BYTES:
        raise DamagedFileError(f"truncated: {len(content):,} bytes, fewer than its header")
    try:
        header = json.loads(bytes(content[LENGTH_BYTES:end]))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError("damaged: the header of a safetensors file that is no JSON") from error
    if not isinstance(header, dict):
        raise DamagedFileError("damaged: the header of a safetensors file that is no JSON object")
    return header


def json_of(header: Mapping[str, object]) -> dict[str, Any]:
    """The JSON object that `save_with_json` was given. Raises ForeignFileError where a header holds none."""
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ForeignFileError(f"no JSON object under `{METADATA_KEY}` in the metadata")
    return values
