"""Boxes from a file, by the keys of samples: COCO's JSON, or JSON lines. Nothing in it is executed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labelmill.pipeline.instances.boxes import Box, FoundBox, TooManyInstancesError, usable_boxes
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.instances import BoxFileConfig
from labelmill.schemas.regular_file import read_regular_file
from labelmill.schemas.user_path import expand_user

_MOST_BYTES = 2**30
_MOST_MISTAKES = 20


@dataclass(frozen=True)
class BoxFile:
    """What a file says that can be used."""

    boxes: Mapping[str, tuple[Box, ...]]
    """By key, those of highest score first; images without any included."""
    problems: tuple[str, ...]
    """A line for each box that is left out."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Image(_Model):
    id: int
    file_name: str
    height: int | None = None
    width: int | None = None


class _Category(_Model):
    id: int
    name: str


class _Annotation(_Model):
    image_id: int
    category_id: int
    bbox: Any = None
    score: Any = 1.0


class _Coco(_Model):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


class _Found(_Model):
    label: Any = Field(None, alias="class")
    score: Any = 1.0
    box: Any = None


class _Line(_Model):
    key: str
    instances: list[_Found]


def read_content(config: BoxFileConfig) -> bytes:
    """The file. Raises ConfigError where it cannot be read."""
    path = _path(config)
    try:
        return read_regular_file(path, _MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"instances.detector.path: {path}: cannot be read: {error.strerror or error}") from error


def content_sha256(config: BoxFileConfig) -> str:
    """Of the file, hex. Raises ConfigError where it cannot be read."""
    return hashlib.sha256(read_content(config)).hexdigest()


def read_boxes(config: BoxFileConfig, size: tuple[int, int]) -> BoxFile:
    """Boxes for images of a height and width. Raises ConfigError for a file that is neither format, is of images of
    another size, or has more boxes of an image than can be numbered: all such mistakes at once."""
    source = f"instances.detector.path: {_path(config)}"
    content = read_content(config)
    mistakes: list[str] = []
    found = _parsed(content, size, mistakes)
    boxes: dict[str, tuple[Box, ...]] = {}
    problems: list[str] = []
    for key, each in found.items():
        try:
            boxes[key], lines = usable_boxes(each, size, key)
        except TooManyInstancesError as error:
            mistakes.append(str(error))
        else:
            problems += lines
    if mistakes:
        more = len(mistakes) - _MOST_MISTAKES
        shown = [*mistakes[:_MOST_MISTAKES], *([f"and {more} more"] if more > 0 else [])]
        raise ConfigError("\n  ".join([f"{source}: cannot be used:", *shown]))
    return BoxFile(boxes, tuple(problems))


def _path(config: BoxFileConfig) -> Path:
    return config.folder / expand_user(config.path)


def _parsed(content: bytes, size: tuple[int, int], mistakes: list[str]) -> dict[str, list[FoundBox]]:
    """Boxes by key as they stand in the file."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        mistakes.append("it is not UTF-8 text")
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None  # several lines, or no JSON at all
    if isinstance(values, dict) and "images" in values:
        return _of_coco(values, size, mistakes)
    return _of_lines(text, mistakes)


def _of_coco(values: Any, size: tuple[int, int], mistakes: list[str]) -> dict[str, list[FoundBox]]:
    try:
        file = _Coco.model_validate(values)
    except ValidationError as error:
        mistakes += [f"COCO: {_explained(mistake)}" for mistake in error.errors(include_input=False)]
        return {}
    names = {category.id: category.name for category in file.categories}
    keys = {image.id: _key(image.file_name) for image in file.images}
    found: dict[str, list[FoundBox]] = {}
    for image in file.images:
        if (image.height, image.width) not in (size, (None, None)):
            mistakes.append(
                f"image {image.file_name} has {image.width} x {image.height} pixels, the generator's images have "
                f"{size[1]} x {size[0]}; scale the boxes"
            )
        if keys[image.id] in found:
            mistakes.append(f"image {image.file_name} is there twice")
        found[keys[image.id]] = []
    for number, annotation in enumerate(file.annotations, start=1):
        if annotation.image_id not in keys:
            mistakes.append(f"annotation {number} is of image {annotation.image_id}, which the file does not list")
        elif annotation.category_id not in names:
            mistakes.append(
                f"annotation {number} is of category {annotation.category_id}, which the file does not list"
            )
        else:
            box = FoundBox(names[annotation.category_id], annotation.score, annotation.bbox)
            found[keys[annotation.image_id]].append(box)
    return found


def _of_lines(text: str, mistakes: list[str]) -> dict[str, list[FoundBox]]:
    found: dict[str, list[FoundBox]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            parsed = _Line.model_validate(json.loads(line))
        except ValidationError as error:
            mistakes += [f"line {number}: {_explained(mistake)}" for mistake in error.errors(include_input=False)]
        except (ValueError, RecursionError):
            mistakes.append(f'line {number}: is no JSON; a line is {{"key": KEY, "instances": [...]}}')
        else:
            if parsed.key in found:
                mistakes.append(f"line {number}: key {parsed.key} is there twice")
            found[parsed.key] = [FoundBox(each.label, each.score, each.box) for each in parsed.instances]
    return found


def _key(file_name: str) -> str:
    """`0000000012` of `images/0000000012.png`."""
    return PurePosixPath(file_name.replace("\\", "/")).name.partition(".")[0]


def _explained(mistake: Any) -> str:
    place = ".".join(map(str, mistake["loc"]))
    message = str(mistake["msg"])
    return f"{place}: {message[0].lower()}{message[1:]}" if place else message
