"""labelmill's own generator format: one safetensors file whose metadata says what the tensors are.

The metadata entry `labelmill` is JSON: {"format": "labelmill-generator", "version": 1, "spec": {...},
"provenance": {...}}. Tensors carry NVIDIA's names, float16 or float32, and are read as float32.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.generator.networks import Generator, GeneratorSpec
from schemas.errors import CheckpointError

FORMAT = "labelmill-generator"
VERSION = 1
METADATA_KEY = "labelmill"


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a generator came from."""

    path: Path
    format: str
    provenance: dict[str, str]
    """Free text by key, such as data, command, licence; empty when the file says nothing."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A generator ready for synthesis (float32, gradients off) and what it was read from."""

    generator: Generator
    sha256: str
    """Hash of the file's bytes."""
    info: CheckpointInfo


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either the old or the new content is there, also after power loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def save_generator(
    path: Path,
    generator: Generator,
    provenance: Mapping[str, str],
    *,
    storage: Literal["float16", "float32"] = "float32",
) -> None:
    """Write a generator, atomically. Raises CheckpointError when a value does not fit the storage type."""
    dtype = torch.float16 if storage == "float16" else torch.float32
    tensors: dict[str, Tensor] = {}
    for name, tensor in generator.state_dict().items():
        stored = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        if not bool(torch.isfinite(stored).all()):
            raise CheckpointError(f"{path}: {name} is not finite in {storage}; store the generator as float32")
        tensors[name] = stored
    header = {
        "format": FORMAT,
        "version": VERSION,
        "spec": asdict(generator.spec),
        "provenance": dict(provenance),
    }
    write_atomically(path, save(tensors, metadata={METADATA_KEY: json.dumps(header, sort_keys=True)}))


def load_generator(path: Path) -> LoadedCheckpoint:
    """Read a labelmill .safetensors file onto the CPU. Raises CheckpointError; executes nothing."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error
    header = _read_header(path, content)
    generator = Generator(_read_spec(path, header))
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error}); fetch or write it again") from error
    _copy_tensors(path, generator, tensors)
    provenance = header.get("provenance")
    texts = {str(k): str(v) for k, v in provenance.items()} if isinstance(provenance, dict) else {}
    return LoadedCheckpoint(
        generator.eval().requires_grad_(False),
        hashlib.sha256(content).hexdigest(),
        CheckpointInfo(path, f"{FORMAT} {VERSION}", texts),
    )


def _read_header(path: Path, content: bytes) -> dict[str, object]:
    """The JSON under METADATA_KEY; a safetensors file begins with its header's length (8 bytes) and the header."""
    try:
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length])["__metadata__"] if length < len(content) else {}
        header = json.loads(metadata[METADATA_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a labelmill generator: it has no `{METADATA_KEY}` metadata of a safetensors file. "
            f"Files that work are written by `labelmill train-generator`"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise CheckpointError(f"{path}: holds {found!r}, not a {FORMAT!r}")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: written in version {header.get('version')!r} of the format; this labelmill reads version "
            f"{VERSION}. Install a newer labelmill"
        )
    return header


def _read_spec(path: Path, header: Mapping[str, object]) -> GeneratorSpec:
    spec = header.get("spec")
    try:
        if not isinstance(spec, dict):
            raise TypeError(f"spec is {spec!r}")
        channels = tuple((int(size), int(width)) for size, width in spec["channels"])
        return GeneratorSpec(**{**spec, "channels": channels})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description of the network is unusable: {error}") from error


def _copy_tensors(path: Path, generator: Generator, tensors: Mapping[str, Tensor]) -> None:
    """Fill the generator; every name and shape must agree."""
    expected = generator.state_dict()
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        raise CheckpointError(
            f"{path}: tensors do not match its description: missing {missing[:5] or 'none'}, "
            f"unknown {surplus[:5] or 'none'}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, its description needs {tuple(expected[name].shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    generator.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
