"""What an unpickled file holds, as one table: tensors and modules by their dotted path, however deep they lie.

A path joins the keys of dictionaries, the places in short lists and the names of submodules, so that
`{"g_ema": {"input.input": ...}}`, a module under `g_ema` and a flat `g_ema.input.input` all read alike.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from labelmill.pipeline.generator.checkpoints.inert import (
    MAX_OPERATIONS,
    MAX_PARTS,
    Dictionary,
    ExhaustedError,
    Record,
    Unusable,
    dictionary_of,
    text_of,
)
from labelmill.pipeline.generator.checkpoints.tensors import StoredArray, StoredTensor, tensor_of_number

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"

_AVERAGED = re.compile(
    r"(?i:(^|_|-)(ema|smooth|avg|average|averaged|running|shadow)(_|-|\d|$)|^gs$)|(?<=[a-z])(EMA|Ema)|EMA(?=[A-Z])"
)
_MAX_DEPTH = 32
_MAX_LISTED = 16
_MAX_PATH = 256
_MAX_TENSORS = 65_536
_MAX_KEYS = 8
_MAX_VISITS = MAX_OPERATIONS
# The places at which one value counts: a generator may be there as `G` and `G_ema`, a layer in several modules. More
# of them, and values that hold each other, could make a small file endless.
_MAX_PLACES = 8
# numpy's pickles store a variable without dimensions, such as a noise strength, as a number.
_NUMBER_ENDINGS = ("noise_strength", "weight")
_MAX_NUMBER = 1e30


@dataclass(frozen=True)
class Module:
    """A stored module of torch: its class's name and its attributes."""

    class_name: str
    state: dict[object, object]

    @classmethod
    def of(cls, value: object) -> "Module | None":
        """None for anything that is no module."""
        if not isinstance(value, Record):
            return None
        if value.name != PERSISTENT:
            attributes = dictionary_of(value) or {}
            is_module = isinstance(attributes.get("_modules"), dict)
            return cls(text_of(value.name), attributes) if is_module else None
        meta = value.args[0] if value.args else None
        if not isinstance(meta, dict):
            return None
        state = meta.get("state")
        return cls(text_of(meta.get("class_name")), state) if isinstance(state, dict) else None

    def group(self, name: str) -> dict[object, object]:
        """One of its dictionaries: `_parameters`, `_buffers`, `_modules`; empty when it is none."""
        return dictionary_of(self.state.get(name)) or {}

    @property
    def options(self) -> dict[object, object]:
        """The keyword arguments that NVIDIA's modules remember to be made with."""
        return self.group("_init_kwargs")


@dataclass(frozen=True)
class Entry:
    """A tensor and the dictionary or the outermost module that it lies in."""

    tensor: StoredTensor | Unusable
    owner: str

    def stored(self, name: str) -> StoredTensor:
        """The tensor. Raises UnreadableError, which names it, where it cannot be used."""
        if isinstance(self.tensor, Unusable):
            raise self.tensor.error(text_of(name))
        return self.tensor


@dataclass
class Contents:
    """All that matters in a file."""

    keys: tuple[str, ...] = ()
    """The first few of the outermost dictionary."""
    entries: dict[str, Entry] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    """Names of the classes of what is neither tensor nor module."""
    module_names: dict[str, dict[object, object]] = field(default_factory=dict)
    """The modules whose tensors a state dict holds, as torch saves them beside it, by the state dict's path."""

    def behind(self, prefix: str) -> dict[str, Entry]:
        """The tensors behind a prefix, by the rest of their paths."""
        start = len(prefix)
        return {path[start:]: entry for path, entry in self.entries.items() if path.startswith(prefix)}

    def modules_behind(self, prefix: str) -> dict[str, Module]:
        """The module that a prefix with its dot names, under "", and those within; empty where it names none."""
        own, start = prefix.removesuffix("."), len(prefix)
        if own not in self.modules:
            return {}
        within = {path[start:]: module for path, module in self.modules.items() if path.startswith(prefix)}
        return {**within, "": self.modules[own]}


def is_averaged(path: str) -> bool:
    """Whether a part of a path says that what lies there is the average of a training's weights."""
    return any(_AVERAGED.search(part) for part in path.split("."))


@dataclass(frozen=True)
class _Place:
    path: str
    owner: str
    in_module: bool


def list_contents(root: object) -> Contents:
    """The table of an unpickled value. Raises ExhaustedError for far more than any checkpoint holds."""
    keys = tuple(text_of(key) for key in islice(root, _MAX_KEYS)) if isinstance(root, dict) else ()
    contents, stack, num_visits = Contents(keys), [iter([(_Place("", "", False), root)])], 0
    num_places: Counter[int] = Counter()
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
            continue
        num_visits += 1
        if num_visits > _MAX_VISITS or len(contents.entries) + len(contents.modules) > _MAX_TENSORS:
            raise ExhaustedError("damaged: it holds far more values than any checkpoint")
        place, value = item
        children = _visit(contents, place, value)
        if children is not None:
            num_places[id(value)] += 1
            if len(stack) <= _MAX_DEPTH and num_places[id(value)] <= _MAX_PLACES:
                stack.append(children)
    return contents


def _visit(contents: Contents, place: _Place, value: object) -> Iterator[tuple[_Place, object]] | None:
    """Note a value; its parts, where it has any."""
    tensor = value.tensor if isinstance(value, StoredArray) else value
    if isinstance(tensor, StoredTensor | Unusable):
        contents.entries[place.path] = Entry(tensor, place.owner)
    elif isinstance(value, float | int):
        if place.path.endswith(_NUMBER_ENDINGS) and abs(value) < _MAX_NUMBER:
            contents.entries[place.path] = Entry(tensor_of_number(value), place.owner)
    elif (module := Module.of(value)) is not None:
        contents.modules[place.path] = module
        return _parts_of_module(place, module)
    elif isinstance(value, Record) and not place.in_module:
        if len(contents.records) < MAX_PARTS:
            contents.records[place.path] = text_of(value.name)
        return _parts_of_dictionary(place, dictionary_of(value) or {})
    elif isinstance(value, dict):
        state = value.state if isinstance(value, Dictionary) else None
        names = state.get("_metadata") if isinstance(state, dict) else None
        if isinstance(names, dict) and len(contents.module_names) < MAX_PARTS:
            contents.module_names[place.path] = names
        return _parts_of_dictionary(place, value)
    elif isinstance(value, list | tuple) and len(value) <= _MAX_LISTED:
        return _parts_of_dictionary(place, dict(enumerate(value)))
    elif place.in_module and value is not None:
        contents.entries[place.path] = Entry(Unusable(f"is {text_of(value)}, no tensor"), place.owner)
    return None


def _parts_of_module(place: _Place, module: Module) -> Iterator[tuple[_Place, object]]:
    owner = place.owner if place.in_module else place.path
    for group in ("_parameters", "_buffers", "_modules"):
        for name, value in module.group(group).items():
            yield _Place(_joined(place.path, name), owner, True), value


def _parts_of_dictionary(place: _Place, items: dict[object, object]) -> Iterator[tuple[_Place, object]]:
    owner = place.owner if place.in_module else place.path
    for name, value in items.items():
        yield _Place(_joined(place.path, name), owner, place.in_module), value


def _joined(path: str, name: object) -> str:
    text = text_of(name, _MAX_PATH)
    return f"{path}.{text}"[:_MAX_PATH] if path else text
