"""Tensors of .safetensors files that other programs wrote, as views of the file's bytes."""

from labelmill.pipeline.generator.checkpoints.inert import UnreadableError, Unusable, describe_value, text_of
from labelmill.pipeline.generator.checkpoints.tensors import (
    Storage,
    StoredTensor,
    contiguous_strides,
    integers,
    kind_bytes,
)
from labelmill.pipeline.process.safetensors_json import LENGTH_BYTES, DamagedFileError, read_json_header

_KINDS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bf16", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip


def is_safetensors(content: bytes) -> bool:
    """The format begins with its header's length in 8 bytes and the header, which is JSON."""
    return content[8:9] == b"{" and int.from_bytes(content[:LENGTH_BYTES], "little") < 2**32


def read_safetensors(content: memoryview) -> dict[object, object]:
    """Tensors by name. Raises UnreadableError for a damaged file."""
    try:
        entries = read_json_header(content)
    except DamagedFileError as error:
        raise UnreadableError(str(error)) from error
    data = content[LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little") :]
    return {name: _tensor(name, entry, data) for name, entry in entries.items() if name != "__metadata__"}


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
