"""Reading a run file: YAML to a checked configuration, with every mistake explained at once."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError

from labelmill.schemas.errors import ConfigError
from labelmill.schemas.regular_file import read_regular_file
from labelmill.schemas.secrets import shown, without_secrets
from labelmill.schemas.user_path import expand_user

Model = TypeVar("Model", bound=BaseModel)

# A mapping of 4,096 clusters, the largest file that is read here, has 700 kB and 45,000 values.
_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
_MOST_LENGTH = 4 * _MOST_BYTES
_MOST_DEPTH = 50
_MERGE = "<<"

# How pydantic names the types that a value may be of.
_KIND_OF_VALUE = re.compile(r"(constrained-|list\[|dict\[|literal\[|function-|nullable|(str|int|float|bool|[A-Z]\w*)$)")


def load_config(path: str | Path, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """Read a YAML file into `model`, `overrides` (`a.b=c`) applied. Raises ConfigError with every mistake."""
    values = read_mapping(path)
    apply_overrides(values, overrides)
    return validate(values, str(path), model, expand_user(path).parent)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked. Raises ConfigError where it holds none."""
    try:
        text = read_regular_file(expand_user(path), _MOST_BYTES).decode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: it is not UTF-8 text") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a run file is a mapping of keys to values, found {type(values).__name__}")
    return values


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set keys to what `a.b=c` says, in order. Raises ConfigError for what is not written so."""
    for override in overrides:
        _apply_override(values, override)


def validate(values: Mapping[str, Any], source: str, model: type[Model], folder: Path | None = None) -> Model:
    """Check parsed values against a model, strictly. Raises ConfigError with every mistake.

    folder: where the paths of files to read begin; the working directory unless given.
    """
    context = {} if folder is None else {"folder": folder}
    try:
        return model.model_validate_json(json.dumps(values), strict=True, context=context)
    except ValidationError as error:
        lines = [_explain(mistake, model) for mistake in error.errors()]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        text = "\n".join([f"{source}: {count}", *(f"  {line}" for line in lines)])
        # Not from `error`, which quotes all values as they are.
        raise ConfigError(without_secrets(text)) from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, nested no deeper than a run file is. YAML 1.1 reads `no` as False, 010 as 8, 12:30 as
    750 and 1e-3 as text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._count += 1
        if self._depth > _MOST_DEPTH or self._count > _MOST_VALUES:
            problem = f"more than {_MOST_DEPTH} levels of nesting, or {_MOST_VALUES:,} values"
            raise _refused(problem, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("bool", r"true|false", "tf"),
    ("null", r"null|~|", ["n", "~", ""]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
]:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    merged: dict[Any, Any] | None = None
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int):
            raise _refused(f"a key is text or a number, not a {type(key).__name__}", key_node.start_mark)
        if key in mapping or (key == _MERGE and merged is not None):
            raise _refused(f"key {shown(key)} is given twice", key_node.start_mark)
        value = loader.construct_object(value_node, deep=True)
        if key == _MERGE:
            merged = _merge(value, value_node.start_mark)
        else:
            mapping[key] = value
    return {**(merged or {}), **mapping}


def _merge(value: Any, mark: yaml.Mark) -> dict[Any, Any]:
    """The keys that `<<` brings in: of one mapping, or of several, of which the first that has a key decides."""
    mappings = value if isinstance(value, list) else [value]
    if not all(isinstance(mapping, dict) for mapping in mappings):
        raise _refused(f"{_MERGE} takes a mapping or a list of mappings, such as {_MERGE}: *name", mark)
    return {key: value for mapping in reversed(mappings) for key, value in mapping.items()}


def _construct_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text: str = loader.construct_scalar(node)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _refused("half of a surrogate pair, which is not a character", node.start_mark)
    return text


_Loader.yaml_constructors = {
    "tag:yaml.org,2002:map": _construct_mapping,
    "tag:yaml.org,2002:str": _construct_text,
    **{
        f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
        for kind in ("seq", "int", "float", "bool", "null")
    },
    None: yaml.SafeLoader.yaml_constructors[None],
}


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text safely: plain values, few enough however often aliases repeat them.

    Raises ConfigError naming `source` and the line, without quoting it: a secret may stand there by mistake.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ConfigError(f"{source}: not YAML: {error.problem or error.context}{place}") from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{source}: not YAML: the character #x{error.character:x} is not allowed") from error
    except (ValueError, LookupError) as error:
        raise ConfigError(
            f"{source}: not YAML: a value that does not fit its tag, or a number that is too long"
        ) from error


def _check_size(node: yaml.Node, sizes: dict[yaml.Node, tuple[int, int] | None]) -> tuple[int, int]:
    """A node's length in characters, roughly, and its depth, once aliases are written out. `sizes` are those of the
    nodes before it, None for those that it lies within: aliases name nothing else. Raises where it is too much."""
    if node in sizes:
        known = sizes[node]
        if known is None:
            raise _refused("an alias within what it stands for", node.start_mark)
        return known
    sizes[node] = None
    length, depth = 1, 1
    if isinstance(node, yaml.ScalarNode):
        length += len(node.value)
    else:
        nested = [child for pair in node.value for child in (pair if isinstance(pair, tuple) else (pair,))]
        found = [_check_size(child, sizes) for child in nested]
        length += sum(each[0] for each in found)
        depth += max((each[1] for each in found), default=0)
    if length > _MOST_LENGTH or depth > _MOST_DEPTH:
        problem = f"aliases that stand for more than {_MOST_LENGTH:,} characters, or {_MOST_DEPTH} levels, in all"
        raise _refused(problem, node.start_mark)
    sizes[node] = length, depth
    return length, depth


def _refused(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"--set {without_secrets(override)}: write it as key.subkey=value")
    target = values
    for depth, parent in enumerate(parents):
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {key}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    target[last] = parse_yaml(text, f"--set {key}")


def _explain(mistake: Any, model: type[BaseModel]) -> str:
    """One line for one mistake: the dotted key, the value found, what is allowed."""
    location, section = _as_written(model, mistake["loc"])
    key = ".".join(shown(part) if "://" in part else part for part in location)
    field = section.model_fields.get(location[-1]) if section and location else None
    if mistake["type"] == "extra_forbidden":
        names = list(section.model_fields) if section else []
        close = difflib.get_close_matches(location[-1], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed here: {', '.join(names)}"
        return f"{key}: unknown key; {hint}"
    if mistake["type"] == "missing":
        return f"{key}: is required"
    if mistake["type"] == "union_tag_invalid":
        allowed, found = mistake["ctx"]["expected_tags"], shown(mistake["ctx"]["tag"])
        return f"{key}.{_telling_key(mistake)}: input should be one of {allowed}, found {found}"
    if mistake["type"] == "union_tag_not_found":
        found = shown(mistake["input"])
        return f"{key}: input should be a section with a {_telling_key(mistake)} of its own, found {found}"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    is_shown = not isinstance(mistake["input"], dict) and (field is None or field.repr)
    found = f", found {shown(mistake['input'])}" if is_shown else ""
    return f"{key}: {message}{found}" if key else message


def _telling_key(mistake: Any) -> str:
    """The key that tells the kinds of a section apart."""
    return next((name for name in ("type", "kind") if name in mistake["ctx"]["discriminator"]), "method")


def _as_written(model: type[BaseModel], location: Iterable[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """A mistake's place as the run file has it, and the section that its last key would belong to.

    Where a section is one of several kinds, told apart by a key, pydantic puts the kind's name into the place; where a
    value may be of several types, the type.
    """
    written: list[str] = []
    section: type[BaseModel] | None = model
    inside: type[BaseModel] | None = model
    kinds: dict[Any, type[BaseModel]] = {}
    is_union = False
    for part in location:
        if part in kinds:
            inside, kinds = kinds[part], {}
            continue
        if is_union and isinstance(part, str) and _KIND_OF_VALUE.match(part):
            is_union = False
            continue
        section, kinds = inside, {}
        written.append(str(part))
        field = section.model_fields.get(str(part)) if section else None
        if field is not None:
            kinds, is_union = _kinds(field.annotation), get_origin(field.annotation) in (Union, UnionType)
            inside = _one_section(field.annotation)
        else:
            inside, is_union = None, False
    return written, section


def _one_section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is of, be it optional."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    sections = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    return sections[0] if len(sections) == 1 else None


def _kinds(annotation: Any) -> dict[Any, type[BaseModel]]:
    """The sections that a union is of, by the tags that tell them apart."""
    kinds = {}
    for member in get_args(annotation):
        tags = [extra.tag for extra in get_args(member)[1:] if isinstance(extra, Tag)]
        section = _one_section(get_args(member)[0]) if tags else None
        if section is not None:
            kinds[tags[0]] = section
    return kinds
