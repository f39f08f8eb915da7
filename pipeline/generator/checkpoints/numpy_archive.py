"""Arrays of .npz files, which are zip archives of .npy files, read without numpy's loader, which unpickles objects."""

import re
import struct

from labelmill.pipeline.generator.checkpoints.inert import UnreadableError, Unusable
from labelmill.pipeline.generator.checkpoints.tensors import StoredDtype, StoredTensor
from labelmill.pipeline.generator.checkpoints.torch_archive import read_zip

_MAGIC = b"\x93NUMPY"
_SUFFIX = ".npy"
_MAX_HEADER_BYTES = 4096
_HEADER = re.compile(
    r"\{'descr': '([^']{1,16})', 'fortran_order': (True|False), 'shape': \((\d{0,15}(?:, ?\d{1,15}){0,7}),?\), ?\}\s*"
)


def is_numpy_archive(content: memoryview) -> bool:
    """Whether a zip archive's first member is a .npy file."""
    if len(content) < 30:
        return False
    return bytes(content[30 : 30 + struct.unpack_from("<H", content, 26)[0]]).endswith(_SUFFIX.encode())


def read_numpy_archive(content: memoryview) -> dict[object, object]:
    """Arrays by name. Raises UnreadableError for a damaged archive, or one that would unpack to far more than it is."""
    members = read_zip(content, unpack=True)
    return {name.removesuffix(_SUFFIX): _array(data) for name, data in members.items() if name.endswith(_SUFFIX)}


def _array(data: memoryview) -> StoredTensor | Unusable:
    if len(data) < 12 or bytes(data[:6]) != _MAGIC:
        return Unusable("is not a .npy file of numpy's")
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    if length > _MAX_HEADER_BYTES:
        return Unusable("has a header that no array of numbers has")
    start = 8 + width + length
    match = _HEADER.fullmatch(bytes(data[8 + width : start]).decode("latin-1"))
    if match is None:
        return Unusable(
            "is not an array of numbers",
            "Save arrays under the tensors' names: numpy.savez('weights.npz', **{k: v.cpu().numpy() for k, v in "
            "G.state_dict().items()})",
        )
    try:
        dtype = StoredDtype((match[1],))
        dtype.set_state((3, match[1][0]))
        shape = tuple(int(size) for size in match[3].split(",") if size.strip())
        return dtype.array(data[start:], shape, fortran=match[2] == "True")
    except UnreadableError as error:
        return Unusable.because(error)
