"""Which settings a resumed training must keep."""

from pathlib import Path

from pipeline.generator.training_state import TrainingStateError
from schemas.training import TrainGeneratorConfig

# Fields that a resumed training may change.
FREE_FIELDS = (
    "output", "total_images", "max_seconds", "device", "threads", "cache", "checkpoint_interval_seconds",
    "sample_interval_images", "initialise_from", "log_interval_steps", "monitor", "growth",
)  # fmt: skip


def comparable(config: TrainGeneratorConfig) -> dict[str, object]:
    """The fields that must not change when a training is resumed."""
    values = config.model_dump(mode="json", exclude=set(FREE_FIELDS))
    values["data"].pop("num_processes", None)  # which changes no image
    return values


def refuse_changes(state: Path, saved: object, asked: dict[str, object]) -> None:
    """Raise TrainingStateError naming every field in which a saved training differs from the one asked for."""
    assert isinstance(saved, dict)
    kept = {key: value for key, value in saved.items() if key not in FREE_FIELDS}  # an earlier version kept more
    differences = changes(kept, asked)
    if differences:
        raise TrainingStateError(
            f"{state}: was trained with other settings: {'; '.join(differences)}. Restore them, or choose another "
            f"output and start there from {state.parent}, named in initialise_from (without grow_from)"
        )


def refuse_other_data(state: Path, saved: object, found: str) -> None:
    """Raise TrainingStateError where the data holds other images than before, by the SHA-256 of their pixels."""
    if saved != found:
        raise TrainingStateError(
            f"{state}: learned from other images than there are now. Restore them, or choose another output and start "
            f"there from {state.parent}, named in initialise_from (without grow_from)"
        )


def changes(saved: object, asked: dict[str, object], prefix: str = "") -> list[str]:
    """A phrase for each field in which saved settings differ from those asked for."""
    assert isinstance(saved, dict)
    found: list[str] = []
    for key in sorted(saved.keys() | asked.keys()):
        old, new = saved.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r}, now {new!r}")
    return found
