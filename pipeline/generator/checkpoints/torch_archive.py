"""What `torch.save` writes, read without torch: zip archives (torch 1.6 and later) and the older stream.

`torch.load(weights_only=True)` keeps code out as well, but believes the sizes a file declares: a stream of 272 bytes
makes torch 2.13 reserve 8 GiB. Here each storage is a view of bytes that are there.
"""

import struct
import zlib
from collections.abc import Mapping

from pipeline.generator.checkpoints.inert import Budget, Constructor, Cursor, Global, UnreadableError, describe_value
from pipeline.generator.checkpoints.restricted import PickleReader, read_pickle
from pipeline.generator.checkpoints.tensors import (
    BASIC_CONSTRUCTORS,
    STORAGE_KINDS,
    Storage,
    kind_bytes,
    never_called,
)

ZIP_MAGIC = b"PK\x03\x04"
# A pickle of the number 0x1950a86a20f9469cfc6c.
STREAM_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_TORCH_SCRIPT = "a TorchScript program; save its state_dict instead"
_MAX_RECORDS = 65_536
_MAX_COMMENT_BYTES = 65_535

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_LOCATOR = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL_HEADER_BYTES = 30


_CONSTRUCTORS: dict[str, Constructor] = {
    **BASIC_CONSTRUCTORS,
    **{f"torch.{name}": never_called(name) for name in STORAGE_KINDS},
    **{f"torch.cuda.{name}": never_called(name) for name in STORAGE_KINDS},
}


def read_saved(content: memoryview, budget: Budget) -> object:
    """The object in a file that `torch.save` wrote, as inert records and views. Raises UnreadableError."""
    if content[: len(ZIP_MAGIC)] == ZIP_MAGIC:
        return _read_archive(content, budget)
    if content[: len(STREAM_MAGIC)] == STREAM_MAGIC:
        return read_stream(content, budget)
    raise UnreadableError("not a file that torch.save writes")


def _read_archive(content: memoryview, budget: Budget) -> object:
    """The object saved in a zip archive. Raises UnreadableError."""
    records = read_zip(content)
    folder = next((name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")), None)
    if folder is None:
        raise UnreadableError("a zip archive, but none that torch.save writes (it has no data.pkl)")
    if f"{folder}constants.pkl" in records:
        raise UnreadableError(_TORCH_SCRIPT)
    big = bytes(records.get(f"{folder}byteorder", b"little")) == b"big"

    def load_persistent(reference: object) -> Storage:
        kind, key, num_elements = _parse_reference(reference)
        if f"{folder}data/{key}" not in records:
            raise UnreadableError(f"damaged: its record data/{key[:60]} is missing")
        data = records[f"{folder}data/{key}"]
        if len(data) != num_elements * kind_bytes(kind):
            raise UnreadableError(
                f"damaged: record data/{key[:60]} has {len(data):,} bytes, its description {num_elements:,} elements"
            )
        return Storage(kind, data, ">" if big else "<")

    return read_pickle(records[f"{folder}data.pkl"], _CONSTRUCTORS, budget, load_persistent)


def _parse_reference(reference: object) -> tuple[str, str, int]:
    """('storage', class, key, location, number of elements[, view]) to kind, key and number."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise UnreadableError("damaged: a storage without description")
    _, storage_class, key, _, num_elements = reference[:5]
    if not isinstance(storage_class, Global) or not isinstance(key, str) or type(num_elements) is not int:
        raise UnreadableError("damaged: an unusable description of a storage")
    kind = STORAGE_KINDS.get(storage_class.name.rpartition(".")[2])
    if kind is None or num_elements < 0 or (len(reference) == 6 and reference[5] is not None):
        raise UnreadableError(f"a storage of class {storage_class.name}: refused")
    return kind, key, num_elements


def read_stream(content: memoryview, budget: Budget) -> object:
    """The object saved by torch before 1.6, or a storage nested in a pickle. Raises UnreadableError.

    Five pickles (a magic number, the protocol, facts on the system, the object, the keys of its storages), then for
    each key the number of elements and the elements. The object only refers to storages, so a first pass over it
    collects their descriptions and a second one, with the data located, builds it.
    """
    cursor = Cursor(content)
    for _ in range(2):
        PickleReader(cursor, {}, budget).read()
    system = PickleReader(cursor, {}, budget).read()
    order = ">" if isinstance(system, dict) and system.get("little_endian") is False else "<"
    start = cursor.position
    described: dict[str, tuple[str, int]] = {}

    def note(reference: object) -> Storage:
        kind, key, num_elements = _parse_reference(reference)
        described[key] = (kind, num_elements)
        return Storage(kind, memoryview(b""), order)

    storages: Mapping[str, Storage] = {}
    PickleReader(cursor, _DESCRIBING, budget, note).read()
    keys = PickleReader(cursor, {}, budget).read()
    storages = _read_storages(cursor, keys, described, order)

    def look_up(reference: object) -> Storage:
        _, key, _ = _parse_reference(reference)
        if key not in storages:
            raise UnreadableError(f"damaged: its storage {key[:60]} is missing")
        return storages[key]

    return PickleReader(Cursor(content, start), _CONSTRUCTORS, budget, look_up).read()


def _read_storages(
    cursor: Cursor, keys: object, described: Mapping[str, tuple[str, int]], order: str
) -> dict[str, Storage]:
    if not isinstance(keys, list):
        raise UnreadableError("damaged: no list of storages")
    storages: dict[str, Storage] = {}
    for key in keys:
        if not isinstance(key, str) or key not in described:
            raise UnreadableError(f"damaged: nothing describes storage {describe_value(key)}")
        kind, num_elements = described[key]
        stored = int.from_bytes(cursor.take(8), "big" if order == ">" else "little")
        if stored != num_elements:
            raise UnreadableError(f"damaged: a storage of {stored:,} elements is described as one of {num_elements:,}")
        storages[key] = Storage(kind, cursor.take(num_elements * kind_bytes(kind)), order)
    return storages


def _ignore_tensor(args: tuple[object, ...]) -> object:
    return None


_DESCRIBING: dict[str, Constructor] = {
    **_CONSTRUCTORS,
    **{name: _ignore_tensor for name in _CONSTRUCTORS if name.startswith("torch._utils.")},
}


def load_from_bytes(budget: Budget) -> Constructor:
    """torch.storage._load_from_bytes: a storage saved inside another pickle."""

    def load(args: tuple[object, ...]) -> Storage:
        raw = args[0]
        if not isinstance(raw, bytes | memoryview):
            raise UnreadableError(f"damaged: a storage stored as {describe_value(raw)}")
        loaded = read_stream(memoryview(raw), budget)  # torch never nests the newer form
        if not isinstance(loaded, Storage):
            raise UnreadableError(f"damaged: {describe_value(loaded)} instead of a storage")
        return loaded

    return load


def read_zip(content: memoryview) -> dict[str, memoryview]:
    """Members of an uncompressed zip archive as views, checksums verified. Raises UnreadableError.

    torch never compresses; a compressed member, which could grow without limit, is refused.
    """
    num_entries, start = _find_directory(content)
    if num_entries > _MAX_RECORDS:
        raise UnreadableError(f"a zip archive of {num_entries:,} members; torch writes far fewer")
    cursor, records, num_bytes = Cursor(content, start), {}, 0
    for _ in range(num_entries):
        name, checksum, data = _read_entry(content, cursor)
        num_bytes += len(data)
        if num_bytes > len(content):
            raise UnreadableError("damaged: members of the archive overlap")
        if checksum != 0 and zlib.crc32(data) != checksum:
            raise UnreadableError(f"damaged: the checksum of its member {name[:60]!r} is wrong. Fetch it again")
        records[name] = data
    return records


def _find_directory(content: memoryview) -> tuple[int, int]:
    """Number of members and position of the archive's directory, from the record at its end."""
    window_start = max(0, len(content) - _END.size - _MAX_COMMENT_BYTES)
    found = bytes(content[window_start:]).rfind(b"PK\x05\x06")
    if found < 0 or window_start + found + _END.size > len(content):
        raise UnreadableError("truncated: a zip archive whose end is missing. Fetch it again")
    end = window_start + found
    _, _, _, _, num_entries, _, start, _ = _END.unpack_from(content, end)
    locator = end - _END64_LOCATOR.size
    if locator >= 0 and bytes(content[locator : locator + 4]) == b"PK\x06\x07":
        position = _END64_LOCATOR.unpack_from(content, locator)[2]
        if position + _END64.size > len(content):
            raise UnreadableError("damaged: the archive's directory lies outside of the file")
        fields = _END64.unpack_from(content, position)
        num_entries, start = fields[7], fields[9]
    return num_entries, start


def _read_entry(content: memoryview, cursor: Cursor) -> tuple[str, int, memoryview]:
    """One member: its name, checksum and bytes."""
    fields = _ENTRY.unpack(cursor.take(_ENTRY.size))
    signature, method, checksum, stored, size, offset = (
        fields[0], fields[4], fields[7], fields[8], fields[9], fields[16]
    )  # fmt: skip
    name = str(cursor.take(fields[10]), "utf-8", errors="replace")
    extra = cursor.take(fields[11])
    cursor.take(fields[12])
    if signature != b"PK\x01\x02":
        raise UnreadableError("damaged: the archive's directory is garbled")
    size, stored, offset = _wide_fields(extra, size, stored, offset)
    if "/code/" in name:
        raise UnreadableError(_TORCH_SCRIPT)
    if method != 0 or size != stored:
        raise UnreadableError(f"its member {name[:60]!r} is compressed, which torch.save never does: refused")
    header = Cursor(content, offset).take(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack_from("<2H", header, 26)
    data = Cursor(content, offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes).take(size)
    return name, checksum, data


def _wide_fields(extra: memoryview, *narrow: int) -> list[int]:
    """Sizes and offset, from the zip64 extra field where they do not fit 32 bits."""
    values, position = list(narrow), 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        body = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if tag != 1:
            continue
        wide = iter([part[0] for part in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])])
        values = [next(wide, value) if value == 0xFFFFFFFF else value for value in values]
    return values
