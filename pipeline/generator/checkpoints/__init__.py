"""Generators from files: one module a format, chosen by `open_checkpoint`."""

from pathlib import Path

import torch

from pipeline.generator.checkpoints.native import CheckpointInfo, LoadedCheckpoint, load_generator
from schemas.errors import CheckpointError

__all__ = ["CheckpointError", "CheckpointInfo", "LoadedCheckpoint", "bundled_names", "open_checkpoint"]

BUNDLED_PREFIX = "bundled:"
_BUNDLED_FOLDER = Path(__file__).resolve().parent.parent / "bundled"


def bundled_names() -> list[str]:
    """Names that `bundled:NAME` takes."""
    return sorted(path.stem for path in _BUNDLED_FOLDER.glob("*.safetensors"))


def open_checkpoint(ref: str, device: str | torch.device = "cpu") -> LoadedCheckpoint:
    """Load a generator from `bundled:NAME` or a path onto a device.

    Raises CheckpointError, which names the file, what was found and what would work.
    """
    loaded = load_generator(_resolve(ref))
    loaded.generator.to(device)
    return loaded


def _resolve(ref: str) -> Path:
    if ref.startswith(BUNDLED_PREFIX):
        name = ref.removeprefix(BUNDLED_PREFIX)
        if name not in bundled_names():
            known = ", ".join(BUNDLED_PREFIX + known for known in bundled_names()) or "none in this installation"
            raise CheckpointError(f"no bundled generator {name!r}; there are: {known}")
        return _BUNDLED_FOLDER / f"{name}.safetensors"
    path = Path(ref).expanduser()
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{ref}: cannot read {path.suffix or 'a file without suffix'}; .safetensors works")
    return path
