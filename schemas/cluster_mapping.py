"""The class of each cluster: `clusters.yaml`, which a fit writes and a person may edit."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from labelmill.schemas.errors import ConfigError
from labelmill.schemas.yaml_file import read_mapping, validate

IGNORED = "ignore"
"""Name given instead of a class to a cluster whose pixels become 255."""
MOST_CLASSES = 255
"""Mask values 0 to 254; 255 is ignore."""

ClassName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_ -]{0,63}$")]
_CLASS_NAME = TypeAdapter(ClassName)


def is_class_name(name: str) -> bool:
    """Whether a text can name a class: a letter, then up to 63 letters, digits, spaces, - and _."""
    try:
        return bool(_CLASS_NAME.validate_python(name))
    except ValidationError:
        return False


def check_class_names(names: list[str]) -> None:
    """Raises ValueError unless these can be the classes of a dataset."""
    if len(names) < 2:
        raise ValueError(f"at least two classes are needed, the first of them the background, got {names}")
    if len(names) > MOST_CLASSES:
        raise ValueError(f"masks hold at most {MOST_CLASSES} classes, got {len(names)}")
    if IGNORED in names:
        raise ValueError(f"{IGNORED!r} cannot name a class: it marks pixels that are left out")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"classes given twice: {', '.join(twice)}")


class ClusterMapping(BaseModel):
    """The class of each cluster, by cluster number.

    In the file a cluster is `3: {name: hair, similarity: 0.31, ...}` or just `3: hair`; the values beside the name show
    a person how sure the name is, and are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    clustering: str | None = None
    """Identity of the clusters, as written by the fit that made them. A mapping for other clusters is refused."""
    classes: list[ClassName]
    """Names of the mask values 0, 1, ...; the first is the background."""
    clusters: dict[int, str]
    """A class, or `ignore`, per cluster."""

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: list[str]) -> list[str]:
        check_class_names(classes)
        return classes

    @field_validator("clusters", mode="before")
    @classmethod
    def _names_alone(cls, clusters: Any) -> Any:
        if not isinstance(clusters, dict):
            return clusters
        return {
            _number(key): entry["name"] if isinstance(entry, dict) and "name" in entry else entry
            for key, entry in clusters.items()
        }

    @model_validator(mode="after")
    def _check_clusters(self) -> "ClusterMapping":
        known = (*self.classes, IGNORED)
        strangers = {number: name for number, name in self.clusters.items() if name not in known}
        if strangers:
            raise ValueError(f"clusters of unknown classes: {_listed(strangers)}; the classes are {', '.join(known)}")
        negative = [number for number in self.clusters if number < 0]
        if negative:
            raise ValueError(f"clusters are numbered from 0, got {negative}")
        return self

    def check_clusters(self, num_clusters: int, at_least: int | None = None) -> None:
        """Raises ConfigError unless exactly these clusters have a class.

        at_least: number of clusters that are certain, where `fit` has yet to decide how many of the others are kept.
        """
        least = num_clusters if at_least is None else at_least
        unknown = sorted(set(self.clusters) - set(range(num_clusters)))
        missing = sorted(set(range(least)) - set(self.clusters))
        there = f"there are clusters 0 to {least - 1}"
        if least < num_clusters:
            there += f", and up to {num_clusters - 1} with those of rare classes"
        if unknown:
            raise ConfigError(f"labeler.mapping: names unknown clusters {_numbers(unknown)}; {there}")
        if missing:
            raise ConfigError(f"labeler.mapping: has no class for clusters {_numbers(missing)}; {there}")


def load_mapping(path: str | Path) -> ClusterMapping:
    """Read `clusters.yaml`. Raises ConfigError with every mistake in it."""
    return validate(read_mapping(path), str(path), ClusterMapping)


def _number(key: Any) -> Any:
    """A key as a number: in JSON, keys are text."""
    return int(key) if isinstance(key, str) and re.fullmatch(r"0|-?[1-9][0-9]{0,8}", key) else key


def _listed(entries: dict[int, str]) -> str:
    return ", ".join(f"{number}: {name}" for number, name in sorted(entries.items()))


def _numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
