"""Tensors as files describe them: a view of the file's bytes with a shape, checked before anything is allocated."""

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.generator.checkpoints.inert import (
    Constructor,
    Dictionary,
    Global,
    UnreadableError,
    Unusable,
    describe_value,
    text_of,
)

_MAX_DIMENSIONS = 8

# Names of torch's storage classes to the kind and size of their elements; bfloat16 is the upper half of a float32.
STORAGE_KINDS = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "u1",
}
_BFLOAT16 = "bf16"
_NUMPY_KINDS = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


def kind_bytes(kind: str) -> int:
    """Bytes of one element."""
    return 2 if kind == _BFLOAT16 else int(kind[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A run of equal elements in the file."""

    kind: str
    content: memoryview
    byte_order: str = "<"

    @property
    def num_elements(self) -> int:
        return len(self.content) // kind_bytes(self.kind)


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A strided view of a storage; all of it lies inside, and no element counts for many."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""

    def __post_init__(self) -> None:
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        available = self.storage.num_elements
        if self.num_elements > available or (self.num_elements > 0 and last >= available):
            raise UnreadableError(
                f"damaged: a tensor of shape {self.shape} lies outside its {available:,} stored elements"
            )

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def to_float32(self) -> Tensor:
        """A contiguous copy. Raises UnreadableError when a value is not finite as float32."""
        values = torch.from_numpy(self._values())
        if not bool(torch.isfinite(values).all()):
            raise UnreadableError(
                "holds values that are not finite", "Give a checkpoint from before the training diverged"
            )
        return values

    def _values(self) -> NDArray[np.float32]:
        kind, order = self.storage.kind, self.storage.byte_order
        stored = np.dtype(order + ("u2" if kind == _BFLOAT16 else kind))
        flat = np.frombuffer(self.storage.content, dtype=stored, count=self.storage.num_elements)
        strides = tuple(stride * stored.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
        if kind == _BFLOAT16:
            return np.left_shift(view, 16, dtype=np.uint32, out=np.empty(self.shape, np.uint32)).view(np.float32)
        with np.errstate(over="ignore"):  # what overflows is reported as not finite
            return np.array(view, dtype=np.float32, order="C")


def contiguous_strides(shape: Sequence[int], *, fortran: bool = False) -> tuple[int, ...]:
    """Strides in elements of a densely stored array."""
    sizes = list(shape) if fortran else list(reversed(shape))
    strides = [math.prod(sizes[:index]) for index in range(len(sizes))]
    return tuple(strides if fortran else reversed(strides))


def integers(value: object, *, low: int = 0, high: int = 2**48) -> tuple[int, ...]:
    """A tuple or list of a few integers within bounds."""
    if not isinstance(value, tuple | list) or len(value) > _MAX_DIMENSIONS:
        raise UnreadableError(f"damaged: {describe_value(value)} stands for a shape")
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool) or not low <= item <= high:
            raise UnreadableError(f"damaged: {describe_value(item)} stands for a size")
    return tuple(value)


def rebuild_tensor(args: tuple[object, ...]) -> StoredTensor:
    """torch's recipe: storage, offset, shape, strides, and flags that do not matter here."""
    storage, offset, shape, strides = args[0], args[1], args[2], args[3]
    if not isinstance(storage, Storage):
        raise _unfit("a tensor", storage)
    sizes, steps = integers(shape), integers(strides)
    if len(sizes) != len(steps):
        raise UnreadableError(f"damaged: shape {sizes} with strides {steps}")
    return StoredTensor(storage, integers((offset,))[0], sizes, steps)


def _unfit(subject: str, part: object) -> UnreadableError:
    """What to raise for a tensor, array or parameter made of something that is none."""
    if isinstance(part, Unusable):
        return part.error("its storage")
    return UnreadableError(f"damaged: {subject} made of {describe_value(part)}")


def rebuild_parameter(args: tuple[object, ...]) -> StoredTensor:
    """A parameter is its tensor."""
    if not isinstance(args[0], StoredTensor):
        raise _unfit("a parameter", args[0])
    return args[0]


def _rebuild_from_type(args: tuple[object, ...]) -> StoredTensor:
    """A tensor with attributes: how the tensor is rebuilt, its class, the arguments, the attributes."""
    function, arguments = args[0], args[2]
    rebuild = _TENSOR_CONSTRUCTORS.get(function.name) if isinstance(function, Global) else None
    if rebuild is None or not isinstance(arguments, tuple):
        raise UnreadableError(f"damaged: a tensor made by {describe_value(function)}")
    return rebuild(arguments)


def _rebuild_from_array(args: tuple[object, ...]) -> StoredTensor:
    """A tensor of a device, such as a TPU, that torch saves as a numpy array."""
    found = args[0].tensor if isinstance(args[0], StoredArray) else args[0]
    if not isinstance(found, StoredTensor):
        raise _unfit("a tensor", found)
    return found


class StoredDtype:
    """A numpy.dtype of plain numbers."""

    is_usable = True

    def __init__(self, args: tuple[object, ...]) -> None:
        self.kind, self.byte_order = text_of(args[0], 8).lstrip("<>=|"), "<"
        if self.kind not in _NUMPY_KINDS:
            raise UnreadableError(f"holds numbers of numpy type {self.kind!r}, which no StyleGAN2 needs")

    def set_state(self, state: object) -> None:
        """The second entry is the byte order."""
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        self.is_usable = isinstance(order, str) and order in ("<", ">", "=", "|")
        self.byte_order = ">" if order == ">" else "<"

    def array(self, raw: object, shape: tuple[int, ...], *, fortran: bool = False) -> StoredTensor:
        """Raises UnreadableError when the content does not fit."""
        if not self.is_usable:
            raise UnreadableError("damaged: the state of a numpy type")
        content = raw.encode("latin-1", errors="replace") if isinstance(raw, str) else raw
        if not isinstance(content, bytes | memoryview):
            raise UnreadableError(f"damaged: numbers stored as {describe_value(raw)}")
        storage = Storage(self.kind, memoryview(content), self.byte_order)
        return StoredTensor(storage, 0, shape, contiguous_strides(shape, fortran=fortran))


class StoredArray:
    """A numpy.ndarray, whose content arrives as its state: version, shape, type, order, bytes."""

    def __init__(self) -> None:
        self.tensor: StoredTensor | Unusable = Unusable("is a numpy array without content")

    def set_state(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            self.tensor = Unusable("is a numpy array with a damaged state")
        elif isinstance(state[2], StoredDtype):
            try:
                self.tensor = state[2].array(state[4], integers(state[1]), fortran=state[3] is True)
            except UnreadableError as error:
                self.tensor = Unusable.because(error)
        else:
            self.tensor = Unusable.because(_unfit("a numpy array", state[2]))


def _scalar(args: tuple[object, ...]) -> object:
    """numpy's recipe for one number, as a Python number."""
    dtype, raw = args[0], args[1]
    if not isinstance(dtype, StoredDtype):
        raise _unfit("a numpy number", dtype)
    value = float(dtype.array(raw, ()).to_float32()) if dtype.kind != "f8" else _double(dtype, raw)
    return int(value) if dtype.kind[0] in "iub" else value


def _double(dtype: StoredDtype, raw: object) -> float:
    stored = dtype.array(raw, ()).storage
    return float(np.frombuffer(stored.content, dtype=f"{stored.byte_order}f8", count=1)[0])


def tensor_of_number(value: float) -> StoredTensor:
    """A number as a tensor without dimensions."""
    return StoredTensor(Storage("f8", memoryview(struct.pack("<d", value))), 0, (), ())


def _encode(args: tuple[object, ...]) -> bytes:
    """Bytes as Python 3 writes them in pickle protocol 2: text with one character a byte."""
    if len(args) != 2 or args[1] != "latin1" or not isinstance(args[0], str):
        raise UnreadableError("damaged: encoded bytes")
    return args[0].encode("latin-1", errors="replace")


def _from_buffer(args: tuple[object, ...]) -> StoredTensor:
    """numpy's recipe of pickle protocol 5: bytes, type, shape, order; with order K, the order of the axes."""
    raw, dtype, shape, order = args[0], args[1], args[2], args[3]
    if not isinstance(dtype, StoredDtype) or not isinstance(order, str):
        raise _unfit("a numpy array", dtype)
    stored = dtype.array(raw, integers(shape), fortran=order == "F")
    if order != "K" or len(args) < 5 or args[4] is None:
        return stored
    axes = integers(args[4])
    if sorted(axes) != list(range(len(stored.shape))):
        raise UnreadableError("damaged: a numpy array with impossible axes")
    sizes, strides = ([values[axis] for axis in axes] for values in (stored.shape, stored.strides))
    return StoredTensor(stored.storage, 0, tuple(sizes), tuple(strides))


def _reconstruct(args: tuple[object, ...]) -> StoredArray:
    return StoredArray()


def never_called(name: str) -> Constructor:
    """A class that is referred to but never called."""

    def refuse(args: tuple[object, ...]) -> object:
        raise UnreadableError(f"calls {name}: refused")

    return refuse


def _dictionary(args: tuple[object, ...]) -> Dictionary:
    """An ordered dictionary; its items arrive one by one, those of Python 2 as a list of pairs."""
    made = Dictionary()
    pairs = args[0] if args and isinstance(args[0], list) else ()
    for pair in pairs:
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):
            made[pair[0]] = pair[1]
    return made


def _default_dictionary(args: tuple[object, ...]) -> Dictionary:
    """Its first argument makes missing values, which nobody asks for here."""
    return Dictionary()


def _collection(args: tuple[object, ...]) -> list[object]:
    """Sets, lists and tuples that older protocols call by name; nothing here asks for membership."""
    return list(args[0]) if args and isinstance(args[0], list | tuple) else []


def _numpy_constructors() -> dict[str, Constructor]:
    """Each under its name before and since numpy 2."""
    constructors: dict[str, Constructor] = {
        "numpy.ndarray": never_called("numpy.ndarray"),
        "numpy.dtype": StoredDtype,
    }
    for core in ("numpy.core", "numpy._core"):
        constructors[f"{core}.multiarray._reconstruct"] = _reconstruct
        constructors[f"{core}.multiarray.scalar"] = _scalar
        constructors[f"{core}.numeric._frombuffer"] = _from_buffer
    return constructors


_TENSOR_CONSTRUCTORS: dict[str, Callable[[tuple[object, ...]], StoredTensor]] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._utils._rebuild_xla_tensor": _rebuild_from_array,
    "torch._utils._rebuild_device_tensor_from_numpy": _rebuild_from_array,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}
# What tensors, and the dictionaries that hold them, are made of. Everything else becomes a Record of its name.
BASIC_CONSTRUCTORS: dict[str, Constructor] = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _default_dictionary,
    "dnnlib.util.EasyDict": _default_dictionary,
    **{f"builtins.{name}": _collection for name in ("set", "frozenset", "list", "tuple")},
    "torch.Size": lambda args: integers(args[0]),
    **_TENSOR_CONSTRUCTORS,
    **_numpy_constructors(),
}
