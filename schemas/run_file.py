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

from schemas.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

# How pydantic names the types that a value may be of.
_KIND_OF_VALUE = re.compile(r"(constrained-|list\[|dict\[|literal\[|function-|nullable|(str|int|float|bool|[A-Z]\w*)$)")


def load_config(path: str | Path, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """Read a YAML file into `model`, `overrides` (`a.b=c`) applied. Raises ConfigError with every mistake."""
    values = read_mapping(path)
    apply_overrides(values, overrides)
    return validate(values, str(path), model)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked. Raises ConfigError where it holds none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a run file is a mapping of keys to values, found {type(values).__name__}")
    return values


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Set keys to what `a.b=c` says, in order. Raises ConfigError for what is not written so."""
    for override in overrides:
        _apply_override(values, override)


def validate(values: Mapping[str, Any], source: str, model: type[Model]) -> Model:
    """Check parsed values against a model, strictly. Raises ConfigError with every mistake."""
    try:
        return model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        lines = [_explain(mistake, model) for mistake in error.errors()]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError("\n".join([f"{source}: {count}", *(f"  {line}" for line in lines)])) from error


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values. YAML 1.1 reads `no` as False, 010 as 8, 12:30 as 750 and 1e-3 as text."""


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
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int):
            problem = f"a key is text or a number, not {key!r}"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        if key in mapping:
            problem = f"key {key!r} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text safely. Raises ConfigError naming `source` and the line."""
    try:
        # _Loader derives from SafeLoader: it builds plain values only.
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not YAML: {error}") from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not all([*parents, last]):
        raise ConfigError(f"--set {override}: write it as key.subkey=value")
    target = values
    for depth, parent in enumerate(parents):
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, not a section")
    target[last] = parse_yaml(text, f"--set {override}")


def _explain(mistake: Any, model: type[BaseModel]) -> str:
    """One line for one mistake: the dotted key, the value found, what is allowed."""
    location, section = _as_written(model, mistake["loc"])
    key = ".".join(location)
    if mistake["type"] == "extra_forbidden":
        names = list(section.model_fields) if section else []
        close = difflib.get_close_matches(location[-1], names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed here: {', '.join(names)}"
        return f"{key}: unknown key; {hint}"
    if mistake["type"] == "missing":
        return f"{key}: is required"
    if mistake["type"] == "union_tag_invalid":
        return (
            f"{key}.method: input should be one of {mistake['ctx']['expected_tags']}, found {mistake['ctx']['tag']!r}"
        )
    if mistake["type"] == "union_tag_not_found":
        return f"{key}: input should be a section with a method of its own, found {mistake['input']!r}"
    message = mistake["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = "" if isinstance(mistake["input"], dict) else f", found {mistake['input']!r}"
    return f"{key}: {message}{found}" if key else message


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
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _kinds(annotation: Any) -> dict[Any, type[BaseModel]]:
    """The sections that a union is of, by the tags that tell them apart."""
    kinds = {}
    for member in get_args(annotation):
        tags = [extra.tag for extra in get_args(member)[1:] if isinstance(extra, Tag)]
        section = _one_section(get_args(member)[0]) if tags else None
        if section is not None:
            kinds[tags[0]] = section
    return kinds
