"""Tensors of .safetensors files that other programs wrote, as views of the file's bytes."""

import json

from pipeline.generator.checkpoints.inert import UnreadableError, Unusable, describe_value, text_of
from pipeline.generator.checkpoints.tensors import Storage, StoredTensor, contiguous_strides, integers, kind_bytes

_KINDS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bf16", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
_LENGTH_BYTES = 8


def is_safetensors(content: bytes) -> bool:
    """The format begins with its header's length in 8 bytes and the header, which is JSON."""
    return content[8:9] == b"{" and int.from_bytes(content[:_LENGTH_BYTES], "little") < 2**32


def read_safetensors(content: memoryview) -> dict[object, object]:
    """Tensors by name. Raises UnreadableError for a damaged file."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if start > len(content):
        raise UnreadableError(f"truncated: {len(content):,} bytes, fewer than its header")
    try:
        entries = json.loads(bytes(content[_LENGTH_BYTES:start]))
    except (ValueError, RecursionError) as error:
        raise UnreadableError("damaged: the header of a safetensors file that is no JSON") from error
    if not isinstance(entries, dict):
        raise UnreadableError(f"damaged: the header of a safetensors file is {describe_value(entries)}")
    entries.pop("__metadata__", None)
    return {name: _tensor(name, entry, content[start:]) for name, entry in entries.items()}


def _tensor(name: str, entry: object, content: memoryview) -> StoredTensor | Unusable:
    fields = entry if isinstance(entry, dict) else {}
    dtype, title = fields.get("dtype"), text_of(name)
    shape = integers(fields.get("shape"))
    offsets = integers(fields.get("data_offsets"))
    if len(offsets) != 2 or not offsets[0] <= offsets[1]:
        raise UnreadableError(f"damaged: {title} has no place in the file")
    if offsets[1] > len(content):
        raise UnreadableError(f"truncated: {title} lies behind the file's end")
    kind = _KINDS.get(dtype) if isinstance(dtype, str) else None
    if kind is None:
        return Unusable(f"holds numbers of type {describe_value(dtype)}, which no generator has")
    data = content[offsets[0] : offsets[1]]
    tensor = StoredTensor(Storage(kind, data), 0, shape, contiguous_strides(shape))
    if tensor.num_elements * kind_bytes(kind) != len(data):
        raise UnreadableError(f"damaged: {title} has shape {shape} and {len(data):,} bytes")
    return tensor
