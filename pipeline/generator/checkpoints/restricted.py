"""A reader of pickles that cannot run code: it interprets the opcodes itself and has no way to import anything.

A pickle is a program for a small stack machine. Python's own machine imports what the program names and calls it.
This one knows names only: a name in the table of constructors given to it stands for one of our functions, which
build inert values; what any other name would make becomes a Record of that name. Long byte strings stay views of the
file, the number of operations is limited, and nothing in the program (memo indices, lengths, keys) decides how much
is allocated.
"""

import struct
from collections.abc import Callable, Mapping

from labelmill.pipeline.generator.checkpoints.inert import (
    Budget,
    Constructor,
    Cursor,
    ExhaustedError,
    Global,
    Record,
    UnreadableError,
    Unusable,
    describe_value,
    text_of,
)

_MAX_INTEGER_BYTES = 16
_SMALL_BYTES = 4096
_MAX_GLOBAL_NAME = 200
# Integers below it hash to themselves. Larger ones can be chosen to hash alike, which takes forever to look up.
_MAX_KEY = 2**60


class _Stop(Exception):  # noqa: N818
    """The pickle's end."""

    def __init__(self, value: object) -> None:
        self.value = value


class PickleReader:
    """Reads one pickle at the cursor, leaving the cursor behind it.

    `constructors` maps names such as `collections.OrderedDict` to functions of the argument tuple; other names make
    Records, and arguments that a constructor cannot use an Unusable. `load_persistent` resolves the references that
    torch's files use for storages. Raises UnreadableError where the program itself is damaged or asks for too much.
    """

    def __init__(
        self,
        cursor: Cursor,
        constructors: Mapping[str, Constructor],
        budget: Budget,
        load_persistent: Callable[[object], object] | None = None,
    ) -> None:
        self.cursor, self.constructors, self.budget = cursor, constructors, budget
        self.load_persistent = load_persistent
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def read(self) -> object:
        """The pickled value, of plain containers, Records and what the constructors return."""
        content, cursor, budget, operations = self.cursor.content, self.cursor, self.budget, _OPERATIONS
        end = len(content)
        try:
            while cursor.position < end:
                opcode = content[cursor.position]
                cursor.position += 1
                budget.operations -= 1
                if budget.operations < 0:
                    budget.spend(0)
                operations[opcode](self)
        except _Stop as stop:
            return stop.value
        except IndexError as error:
            raise UnreadableError(
                f"damaged pickle: a value is missing for the operation that ends at position {cursor.position:,}"
            ) from error
        raise UnreadableError(f"truncated: the pickle stops after {end:,} bytes, unfinished")

    def pop_mark(self) -> list[object]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def fetch_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > _MAX_GLOBAL_NAME:
            raise UnreadableError("damaged pickle: a global without a usable name")
        full_name = canonical_name(f"{module}.{name}")
        if full_name not in self.constructors and full_name not in _VENDORED:
            self.budget.note_unknown(text_of(full_name))
        self.stack.append(Global(full_name))

    def call(self, function: object, args: object, keywords: object = None) -> object:
        """What a call would have made. Nothing is called but our own constructors."""
        if not isinstance(args, tuple):
            raise UnreadableError(f"damaged pickle: calls with {describe_value(args)} for arguments")
        self._charge(args)
        if not isinstance(function, Global):
            return Record(function.name if isinstance(function, Record) else "what a call returned", args)
        constructor = self.constructors.get(function.name)
        if constructor is None:
            return Record(function.name, args)
        if keywords:
            return Unusable(f"is made by {function.name} with keyword arguments")
        try:
            return constructor(args)
        except ExhaustedError:
            raise
        except UnreadableError as error:
            return Unusable.because(error)
        except IndexError:
            return Unusable(f"is made by {function.name} without its arguments")

    def build(self) -> None:
        """Attributes for the value below; those of values that have none are of no use here."""
        state = self.stack.pop()
        set_state = getattr(self.stack[-1], "set_state", None)
        if set_state is not None:
            self._charge(state if isinstance(state, tuple) else ())
            set_state(state)

    def _charge(self, args: tuple[object, ...]) -> None:
        """Constructors read lists to their end, and turn text to bytes."""
        self.budget.spend(
            sum(len(value) for value in args if isinstance(value, list | tuple)),
            sum(len(value) for value in args if isinstance(value, str)),
        )

    def extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Record | Unusable):
            raise UnreadableError(f"damaged pickle: appends to {describe_value(target)}")

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if len(items) % 2:
            raise UnreadableError(f"damaged pickle: sets items of {describe_value(target)}")
        if isinstance(target, dict):
            target.update(_pairs(items))
        elif isinstance(target, Record):
            target.items.update(_pairs(items))
        elif not isinstance(target, Unusable):
            raise UnreadableError(f"damaged pickle: sets items of {describe_value(target)}")


# NVIDIA's modules, which projects copy into packages of their own.
_VENDORED = ("torch_utils.persistence._reconstruct_persistent_obj", "dnnlib.tflib.network.Network")
_RENAMED_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def canonical_name(name: str) -> str:
    """The name that a global has in NVIDIA's repositories and in Python 3."""
    for vendored in _VENDORED:
        if name.endswith(f".{vendored}"):
            return vendored
    module, _, attribute = name.rpartition(".")
    return f"{_RENAMED_MODULES[module]}.{attribute}" if module in _RENAMED_MODULES else name


def _pairs(items: list[object]) -> dict[object, object]:
    """Keys and values in turn to a dict. Items under other keys than scalars, which no tensor has, are left out."""
    pairs = zip(items[::2], items[1::2], strict=True)
    return {key: value for key, value in pairs if _is_simple_key(key)}


def _is_simple_key(key: object) -> bool:
    if isinstance(key, int):
        return -_MAX_KEY < key < _MAX_KEY
    return key is None or isinstance(key, str | float)


_Operation = Callable[[PickleReader], None]


def _unknown(reader: PickleReader) -> None:
    position = reader.cursor.position - 1
    code = reader.cursor.content[position]
    raise UnreadableError(f"damaged: pickle operation {code:#04x} at position {position:,}, which no checkpoint needs")


def _stop(reader: PickleReader) -> None:
    raise _Stop(reader.stack.pop())


def _mark(reader: PickleReader) -> None:
    reader.marks.append(reader.stack)
    reader.stack = []


def _constant(value: object) -> _Operation:
    return lambda reader: reader.stack.append(value)


def _number(form: str) -> _Operation:
    layout = struct.Struct(form)
    return lambda reader: reader.stack.append(layout.unpack(reader.cursor.take(layout.size))[0])


def _length(reader: PickleReader, size: int) -> int:
    return int.from_bytes(reader.cursor.take(size), "little")


def _long(size: int) -> _Operation:
    def operation(reader: PickleReader) -> None:
        length = _length(reader, size)
        if length > _MAX_INTEGER_BYTES:
            raise UnreadableError(f"damaged: an integer of {length:,} bytes")
        reader.stack.append(int.from_bytes(reader.cursor.take(length), "little", signed=True))

    return operation


def _text(size: int) -> _Operation:
    def operation(reader: PickleReader) -> None:
        raw = reader.cursor.take(_length(reader, size))
        reader.stack.append(str(raw, "utf-8", errors="replace"))

    return operation


def _legacy_text(size: int) -> _Operation:
    """Python 2 strings; Latin-1 keeps their bytes."""
    return lambda reader: reader.stack.append(str(reader.cursor.take(_length(reader, size)), "latin-1"))


def _bytes(size: int) -> _Operation:
    def operation(reader: PickleReader) -> None:
        raw = reader.cursor.take(_length(reader, size))
        reader.stack.append(bytes(raw) if len(raw) <= _SMALL_BYTES else raw)

    return operation


def _tuple_of(length: int) -> _Operation:
    def operation(reader: PickleReader) -> None:
        if len(reader.stack) < length:
            raise UnreadableError("damaged pickle: too few values for a tuple")
        items = reader.stack[-length:]
        del reader.stack[-length:]
        reader.stack.append(tuple(items))

    return operation


def _collected(make: Callable[[list[object]], object]) -> _Operation:
    """What lies above the topmost mark, as one value."""

    def operation(reader: PickleReader) -> None:
        items = reader.pop_mark()  # restores the stack that the value goes to
        reader.stack.append(make(items))

    return operation


def _put(size: int) -> _Operation:
    def operation(reader: PickleReader) -> None:
        reader.memo[_length(reader, size)] = reader.stack[-1]

    return operation


def _memoize(reader: PickleReader) -> None:
    reader.memo[len(reader.memo)] = reader.stack[-1]


def _get(size: int) -> _Operation:
    def operation(reader: PickleReader) -> None:
        index = _length(reader, size)
        if index not in reader.memo:
            raise UnreadableError(f"damaged pickle: value {index:,} was never remembered")
        reader.stack.append(reader.memo[index])

    return operation


def _global(reader: PickleReader) -> None:
    module = reader.cursor.line()
    reader.fetch_global(module, reader.cursor.line())


def _stack_global(reader: PickleReader) -> None:
    name = reader.stack.pop()
    reader.fetch_global(reader.stack.pop(), name)


def _reduce(reader: PickleReader) -> None:
    args = reader.stack.pop()
    reader.stack.append(reader.call(reader.stack.pop(), args))


def _new_object_with_keywords(reader: PickleReader) -> None:
    keywords = reader.stack.pop()
    args = reader.stack.pop()
    reader.stack.append(reader.call(reader.stack.pop(), args, keywords))


def _persistent(reader: PickleReader) -> None:
    if reader.load_persistent is None:
        raise UnreadableError(
            "refers to data outside of itself; it is only a part of a checkpoint", "Give the whole file"
        )
    reader.stack.append(reader.load_persistent(reader.stack.pop()))


def _pop(reader: PickleReader) -> None:
    if reader.stack:
        reader.stack.pop()
    else:
        reader.pop_mark()


def _pop_mark(reader: PickleReader) -> None:
    reader.pop_mark()


def _append(reader: PickleReader) -> None:
    item = reader.stack.pop()
    reader.extend([item])


def _set_item(reader: PickleReader) -> None:
    value = reader.stack.pop()
    reader.set_items([reader.stack.pop(), value])


def _protocol(reader: PickleReader) -> None:
    version = reader.cursor.take(1)[0]
    if version > 5:
        raise UnreadableError(f"damaged: pickle protocol {version}, 5 is the newest")


def _frame(reader: PickleReader) -> None:
    """A hint on buffering."""
    reader.cursor.take(8)


def _read_only(reader: PickleReader) -> None:
    """Everything is."""


# Opcodes of protocols 2 to 5, as documented in Python's pickletools. Sets become lists: nothing here asks for
# membership.
_BY_CHARACTER: dict[bytes, _Operation] = {
    b".": _stop,
    b"(": _mark,
    b"0": _pop,
    b"1": _pop_mark,
    b"2": lambda reader: reader.stack.append(reader.stack[-1]),
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"J": _number("<i"),
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"G": _number(">d"),
    b"\x8a": _long(1),
    b"\x8b": _long(4),
    b"T": _legacy_text(4),
    b"U": _legacy_text(1),
    b"X": _text(4),
    b"\x8c": _text(1),
    b"\x8d": _text(8),
    b"B": _bytes(4),
    b"C": _bytes(1),
    b"\x8e": _bytes(8),
    b"\x96": _bytes(8),
    b")": _constant(()),
    b"t": _collected(tuple),
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"]": lambda reader: reader.stack.append([]),
    b"a": _append,
    b"e": lambda reader: reader.extend(reader.pop_mark()),
    b"\x8f": lambda reader: reader.stack.append([]),
    b"\x90": lambda reader: reader.extend(reader.pop_mark()),
    b"\x91": _collected(list),
    b"}": lambda reader: reader.stack.append({}),
    b"s": _set_item,
    b"u": lambda reader: reader.set_items(reader.pop_mark()),
    b"q": _put(1),
    b"r": _put(4),
    b"\x94": _memoize,
    b"h": _get(1),
    b"j": _get(4),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"\x81": _reduce,
    b"\x92": _new_object_with_keywords,
    b"b": lambda reader: reader.build(),
    b"Q": _persistent,
    b"\x80": _protocol,
    b"\x95": _frame,
    b"\x98": _read_only,
}
_OPERATIONS: list[_Operation] = [_BY_CHARACTER.get(bytes([code]), _unknown) for code in range(256)]


def read_pickle(
    content: memoryview,
    constructors: Mapping[str, Constructor],
    budget: Budget,
    load_persistent: Callable[[object], object] | None = None,
) -> object:
    """The value of a pickle that begins at the first byte."""
    return PickleReader(Cursor(content), constructors, budget, load_persistent).read()
