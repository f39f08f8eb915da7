"""What `torch.save` writes, read without torch: zip archives (torch 1.6 and later) and the older stream.

`torch.load(weights_only=True)` keeps code out as well, but believes the sizes a file declares: a stream of 272 bytes
makes torch 2.13 reserve 8 GiB. Here each storage is a view of bytes that are there.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labelmill.pipeline.generator.checkpoints.inert import (
    MAX_NAME,
    Budget,
    Constructor,
    Cursor,
    Global,
    UnreadableError,
    Unusable,
    describe_value,
    text_of,
)
from labelmill.pipeline.generator.checkpoints.restricted import PickleReader, read_pickle
from labelmill.pipeline.generator.checkpoints.tensors import (
    BASIC_CONSTRUCTORS,
    STORAGE_KINDS,
    Storage,
    kind_bytes,
    never_called,
)

ZIP_MAGIC = b"PK\x03\x04"
# A pickle of the number 0x1950a86a20f9469cfc6c.
STREAM_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_GIVE_SAVED = "Give the file that torch.save or numpy.savez wrote"
_TORCH_SCRIPT = "a TorchScript program"
# Elements that no generator has, and their bytes.
_FOREIGN_ELEMENTS = {
    "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
    "UntypedStorage": 1,
}  # fmt: skip
_MAX_RECORDS = 65_536
_MAX_GROWTH = 4
_ALLOWANCE_BYTES = 64 * 2**20
_DEFLATED = 8
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
    raise UnreadableError("not a file that torch.save writes", _GIVE_SAVED)


def _read_archive(content: memoryview, budget: Budget) -> object:
    """The object saved in a zip archive. Raises UnreadableError."""
    records = read_zip(content)
    folder = next((name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")), None)
    if folder is None:
        raise UnreadableError("a zip archive, but none that torch.save writes (it has no data.pkl)", _GIVE_SAVED)
    if f"{folder}constants.pkl" in records:
        raise UnreadableError(_TORCH_SCRIPT)
    big = bytes(records.get(f"{folder}byteorder", b"little")) == b"big"

    def look_up(described: "_Described") -> Storage:
        data = records.get(f"{folder}data/{described.key}")
        if data is None:
            raise UnreadableError(f"damaged: its record data/{described.key} is missing")
        if len(data) != described.num_bytes:
            raise UnreadableError(
                f"damaged: record data/{described.key} has {len(data):,} bytes, its description "
                f"{described.num_elements:,} elements"
            )
        return Storage(described.kind, data, ">" if big else "<")

    def load_persistent(reference: object) -> object:
        return _resolve(reference, look_up)

    return read_pickle(records[f"{folder}data.pkl"], _CONSTRUCTORS, budget, load_persistent)


@dataclass(frozen=True, slots=True)
class _Described:
    """A storage as a reference describes it."""

    class_name: str
    kind: str
    """Empty for elements that no generator has."""
    key: str
    num_elements: int

    @property
    def num_bytes(self) -> int:
        size = kind_bytes(self.kind) if self.kind else _FOREIGN_ELEMENTS[self.class_name]
        return self.num_elements * size


def _resolve(reference: object, look_up: Callable[[_Described], Storage]) -> object:
    """What a reference stands for: a storage, or a module's class, which old files name beside its source text."""
    if not isinstance(reference, tuple) or not reference or not isinstance(reference[0], str):
        raise UnreadableError("damaged: a reference without description")
    if reference[0] == "module" and len(reference) > 1:
        return reference[1]
    described = _describe_storage(reference)
    stored = look_up(described)
    if not described.kind or (len(reference) == 6 and reference[5] is not None):
        return Unusable(f"holds elements of {described.class_name}, which no generator has")
    return stored


def _describe_storage(reference: tuple[object, ...]) -> _Described:
    """('storage', class, key, location, number of elements[, view])."""
    if reference[0] != "storage" or len(reference) not in (5, 6):
        raise UnreadableError("damaged: a storage without description")
    storage_class, key, num_elements = reference[1], reference[2], reference[4]
    if not isinstance(storage_class, Global) or not isinstance(key, str) or type(num_elements) is not int:
        raise UnreadableError("damaged: an unusable description of a storage")
    name = storage_class.name.rpartition(".")[2]
    kind = STORAGE_KINDS.get(name, "") if storage_class.name in _CONSTRUCTORS else ""
    if (not kind and name not in _FOREIGN_ELEMENTS) or num_elements < 0 or len(key) > MAX_NAME:
        raise UnreadableError(f"damaged: a storage of class {text_of(storage_class.name)}")
    return _Described(name, kind, text_of(key), num_elements)


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
    described: dict[str, _Described] = {}

    def note(storage: _Described) -> Storage:
        described[storage.key] = storage
        return Storage(storage.kind, memoryview(b""), order)

    def note_persistent(reference: object) -> object:
        return _resolve(reference, note)

    PickleReader(cursor, _DESCRIBING, budget, note_persistent).read()
    keys = PickleReader(cursor, {}, budget).read()
    storages = _read_storages(cursor, keys, described, order)

    def look_up(storage: _Described) -> Storage:
        if storage.key not in storages:
            raise UnreadableError(f"damaged: its storage {storage.key} is missing")
        return storages[storage.key]

    def load_persistent(reference: object) -> object:
        return _resolve(reference, look_up)

    return PickleReader(Cursor(content, start), _CONSTRUCTORS, budget, load_persistent).read()


def _read_storages(cursor: Cursor, keys: object, described: Mapping[str, _Described], order: str) -> dict[str, Storage]:
    if not isinstance(keys, list):
        raise UnreadableError("damaged: no list of storages")
    storages: dict[str, Storage] = {}
    for key in keys:
        if not isinstance(key, str) or key not in described:
            raise UnreadableError(f"damaged: nothing describes storage {describe_value(key)}")
        storage = described[key]
        stored = int.from_bytes(cursor.take(8), "big" if order == ">" else "little")
        if stored != storage.num_elements:
            raise UnreadableError(
                f"damaged: a storage of {stored:,} elements is described as one of {storage.num_elements:,}"
            )
        storages[key] = Storage(storage.kind, cursor.take(storage.num_bytes), order)
    return storages


def _ignore_tensor(args: tuple[object, ...]) -> object:
    return None


_DESCRIBING: dict[str, Constructor] = {
    **_CONSTRUCTORS,
    **{name: _ignore_tensor for name in _CONSTRUCTORS if name.startswith("torch._utils.")},
}


def load_from_bytes(budget: Budget) -> Constructor:
    """torch.storage._load_from_bytes: a storage saved inside another pickle."""

    def load(args: tuple[object, ...]) -> object:
        raw = args[0]
        if not isinstance(raw, bytes | memoryview):
            raise UnreadableError(f"damaged: a storage stored as {describe_value(raw)}")
        loaded = read_stream(memoryview(raw), budget)  # torch never nests the newer form
        if not isinstance(loaded, Storage | Unusable):
            raise UnreadableError(f"damaged: {describe_value(loaded)} instead of a storage")
        return loaded

    return load


def read_zip(content: memoryview, *, unpack: bool = False) -> dict[str, memoryview]:
    """Members of a zip archive as views, checksums verified. Raises UnreadableError.

    A compressed member, which torch never writes, is refused; with `unpack`, all of them together may grow to a few
    times the file.
    """
    num_entries, start = _find_directory(content)
    limit = _MAX_GROWTH * len(content) + _ALLOWANCE_BYTES if unpack else len(content)
    if num_entries > _MAX_RECORDS:
        raise UnreadableError(f"a zip archive of {num_entries:,} members; torch writes far fewer", _GIVE_SAVED)
    cursor, records, num_bytes = Cursor(content, start), {}, 0
    for _ in range(num_entries):
        name, checksum, data = _read_entry(content, cursor, limit - num_bytes if unpack else None)
        num_bytes += len(data)
        if num_bytes > limit:
            raise UnreadableError("damaged: members of the archive overlap")
        if checksum != 0 and zlib.crc32(data) != checksum:
            raise UnreadableError(f"damaged: the checksum of its member {name[:60]!r} is wrong")
        records[name] = data
    return records


def _find_directory(content: memoryview) -> tuple[int, int]:
    """Number of members and position of the archive's directory, from the record at its end."""
    window_start = max(0, len(content) - _END.size - _MAX_COMMENT_BYTES)
    found = bytes(content[window_start:]).rfind(b"PK\x05\x06")
    if found < 0 or window_start + found + _END.size > len(content):
        raise UnreadableError("truncated: a zip archive whose end is missing")
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


def _read_entry(content: memoryview, cursor: Cursor, room: int | None) -> tuple[str, int, memoryview]:
    """One member: its name, checksum and bytes. Compressed ones may unpack to `room` bytes; None: are refused."""
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
    is_deflated = method == _DEFLATED and room is not None
    if not is_deflated and (method != 0 or size != stored):
        raise UnreadableError(
            f"its member {name[:60]!r} is compressed, which torch.save never does: refused",
            "Unpack the archive and pack it again without compression",
        )
    header = Cursor(content, offset).take(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = struct.unpack_from("<2H", header, 26)
    data = Cursor(content, offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes).take(stored)
    return name, checksum, _unpacked(name, data, size, room or 0) if is_deflated else data


def _unpacked(name: str, data: memoryview, size: int, room: int) -> memoryview:
    """The content of a compressed member, which must be as long as announced."""
    if size > room:
        raise UnreadableError(
            f"damaged: its member {name[:60]!r} would unpack to {size:,} bytes, out of proportion to the file"
        )
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error as error:
        raise UnreadableError(f"damaged: its member {name[:60]!r} cannot be unpacked") from error
    if len(content) != size:
        raise UnreadableError(f"damaged: its member {name[:60]!r} is not as long as announced")
    return memoryview(content)


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
