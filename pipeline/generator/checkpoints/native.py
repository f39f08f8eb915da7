"""labelmill's own generator format: one safetensors file with JSON that says what the tensors are.

The JSON: {"format": "labelmill-generator", "version": 1, "spec": {...},
"provenance": {...}}. Tensors carry NVIDIA's names, float16 or float32, and are read as float32.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from labelmill.pipeline.generator.checkpoints.assemble import check_generator_size
from labelmill.pipeline.generator.checkpoints.inert import MAX_WIDTH, UnreadableError, describe_value, text_of
from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.safetensors_json import (
    METADATA_KEY,
    DamagedFileError,
    ForeignFileError,
    json_of,
    read_json_header,
    save_with_json,
)
from labelmill.schemas.errors import CheckpointError

FORMAT = "labelmill-generator"
VERSION = 1

_AGAIN = "Fetch the file again, or write it again with `labelmill inspect --convert`"
_TENSOR_TYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class CheckpointInfo:
    """Where a generator came from."""

    name: str
    """Path or URL, without anything secret."""
    format: str
    provenance: dict[str, str]
    """Free text by key, such as data, command, licence; empty when the file says nothing."""
    has_discriminator: bool = False


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A generator ready for synthesis (float32, gradients off) and what it was read from."""

    generator: Generator
    sha256: str
    """Hash of the file's bytes."""
    info: CheckpointInfo
    discriminator: Discriminator | None = None
    """Only when it was asked for and the file has one."""


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
    write_atomically(path, save_with_json(tensors, json.dumps(header, sort_keys=True)))


def parse_generator(name: str, content: bytes) -> LoadedCheckpoint:
    """Read the content of a labelmill .safetensors file; `name` is for messages. Raises CheckpointError."""
    header, num_tensors = _read_header(name, content)
    spec = _read_spec(name, header, num_tensors)
    try:
        check_generator_size(spec, len(content))
        tensors = load(content)
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{name}: damaged safetensors file ({text_of(str(error), 200)}); fetch or write it again"
        ) from error
    except UnreadableError as error:
        raise CheckpointError(f"{name}: {error.sentence()}") from error
    generator = Generator(spec)
    _assign_tensors(name, generator, tensors)
    provenance = header.get("provenance")
    entries = provenance.items() if isinstance(provenance, dict) else ()
    texts = {key: value if isinstance(value, str) else text_of(value) for key, value in entries}
    return LoadedCheckpoint(
        generator.eval().requires_grad_(False),
        hashlib.sha256(content).hexdigest(),
        CheckpointInfo(name, f"{FORMAT} {VERSION}", texts),
    )


def is_native(content: bytes) -> bool:
    """Whether a safetensors file's header has labelmill's metadata, as far as its beginning is there."""
    return f'"{METADATA_KEY}":'.encode() in content[8 : 8 + int.from_bytes(content[:8], "little")]


def _read_header(name: str, content: bytes) -> tuple[dict[str, object], int]:
    """The file's JSON and its number of tensors."""
    try:
        entries = read_json_header(content)
        header = json_of(entries)
    except DamagedFileError as error:
        raise CheckpointError(f"{name}: {error}. {_AGAIN}") from error
    except ForeignFileError as error:
        raise CheckpointError(
            f"{name}: not a labelmill generator: it has no `{METADATA_KEY}` metadata of a safetensors file. "
            f"Files that work are written by `labelmill train-generator` and `labelmill inspect --convert`"
        ) from error
    if header.get("format") != FORMAT:
        found = describe_value(header.get("format"))
        raise CheckpointError(f"{name}: holds {found}, not a {FORMAT!r}. Give a file of `labelmill train-generator`")
    if header.get("version") != VERSION:
        raise CheckpointError(
            f"{name}: written in version {describe_value(header.get('version'))} of the format; this labelmill reads "
            f"version {VERSION}. Install a newer labelmill"
        )
    tensors = {key: entry for key, entry in entries.items() if key != "__metadata__"}
    _check_entries(name, tensors)
    return header, len(tensors)


def _check_entries(name: str, entries: Mapping[str, object]) -> None:
    for tensor, entry in entries.items():
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape = fields.get("dtype"), fields.get("shape")
        if dtype not in _TENSOR_TYPES or not isinstance(shape, list) or 0 in shape:
            found = describe_value(dtype)
            raise CheckpointError(f"{name}: {tensor[:80]} is not a float16 or float32 tensor (type {found}). {_AGAIN}")


def _read_spec(name: str, header: Mapping[str, object], num_tensors: int) -> GeneratorSpec:
    spec = header.get("spec")
    try:
        if not isinstance(spec, dict):
            raise TypeError(f"spec is {describe_value(spec)}")
        channels = tuple((int(size), int(width)) for size, width in spec["channels"])
        clamp = None if spec["conv_clamp"] is None else float(spec["conv_clamp"])
        # Files of former versions are all of square images.
        height, width = spec.get("const_size", (4, 4))
        checked = GeneratorSpec(
            **{**spec, "channels": channels, "conv_clamp": clamp, "const_size": (int(height), int(width))}
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{name}: its description of the network is unusable: {text_of(str(error), 200)}. {_AGAIN}"
        ) from error
    numbers = {"z_dim": checked.z_dim, "w_dim": checked.w_dim, "img_channels": checked.img_channels}
    numbers |= {} if checked.mapping_width is None else {"mapping_width": checked.mapping_width}
    numbers |= {"height of its constant": checked.const_size[0], "width of its constant": checked.const_size[1]}
    numbers |= {f"channels at {size} px": width for size, width in channels} | {"c_dim + 1": checked.c_dim + 1}
    for key, value in numbers.items():
        if type(value) is not int or not 1 <= value <= MAX_WIDTH:
            raise CheckpointError(f"{name}: {key} is {describe_value(value)}; 1 to {MAX_WIDTH} is possible. {_AGAIN}")
    if type(checked.mapping_layers) is not int or checked.mapping_layers > num_tensors:
        raise CheckpointError(f"{name}: mapping_layers does not fit its {num_tensors} tensors. {_AGAIN}")
    return checked


def _listed(names: Sequence[str]) -> str:
    return str([text_of(name) for name in names[:5]]) if names else "none"


def _assign_tensors(file_name: str, generator: Generator, tensors: Mapping[str, Tensor]) -> None:
    """Replace the generator's tensors; every name and shape must agree."""
    expected = generator.state_dict()
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        raise CheckpointError(
            f"{file_name}: tensors do not match its description: missing {_listed(missing)}, unknown "
            f"{_listed(surplus)}. {_AGAIN}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{file_name}: {name} has shape {tuple(tensor.shape)}, its description needs "
                f"{tuple(expected[name].shape)}. {_AGAIN}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{file_name}: {name} holds values that are not finite. {_AGAIN}")
    values = {name: tensor.float() for name, tensor in tensors.items()}
    for name, tensor in values.items():
        if tensor.ndim == 4:  # kernels lie channels-last, as synthesis wants them
            values[name] = tensor.contiguous(memory_format=torch.channels_last)
    generator.load_state_dict(values, assign=True)
