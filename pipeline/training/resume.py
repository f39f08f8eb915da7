"""Which settings a resumed training must keep."""

from collections.abc import Collection, Mapping
from pathlib import Path

from labelmill.pipeline.training.state import TrainingStateError


def refuse_changes(
    state: Path, saved: object, asked: Mapping[str, object], *, free: Collection[str] = (), way_out: str
) -> None:
    """Raise TrainingStateError naming every setting in which a saved training differs from the one asked for.

    free: names that an earlier version saved, too, and that may change. way_out: what else to do than to restore them.
    """
    assert isinstance(saved, dict)
    differences = changes({key: value for key, value in saved.items() if key not in free}, asked)
    if differences:
        raise TrainingStateError(
            f"{state}: was trained with other settings: {'; '.join(differences)}. Restore them, or {way_out}"
        )


def changes(saved: Mapping[str, object], asked: Mapping[str, object], prefix: str = "") -> list[str]:
    """A phrase for each field in which saved settings differ from those asked for."""
    found: list[str] = []
    for key in sorted(saved.keys() | asked.keys()):
        old, new = saved.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r}, now {new!r}")
    return found
