"""Models that know what words look like: `open_prompt_model("bundled:avatars-prompts", device)`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from labelmill.pipeline.prompt_models.base import PromptModel, PromptModelError
from labelmill.schemas.user_path import expand_user

__all__ = ["BUNDLED", "PromptModel", "PromptModelError", "bundled_weights", "hash_prompt_model", "open_prompt_model"]

BUNDLED = ("avatars-prompts",)
"""Names after `bundled:`."""
_BUNDLED_FOLDER = Path(__file__).resolve().parent / "bundled"
_FORMS = (
    "give bundled:avatars-prompts, or open-clip:ARCHITECTURE@PATH, such as open-clip:ViT-B-32@/weights/b32.safetensors"
)


def open_prompt_model(reference: str, device: str | torch.device = "cpu", folder: Path = Path()) -> PromptModel:
    """A prompt model by reference: `bundled:NAME` or `open-clip:ARCHITECTURE@PATH`.

    folder: where relative paths begin. Nothing is downloaded, and nothing in a weights file is executed. Raises
    PromptModelError on anything unusable.
    """
    kind, architecture, weights = _parts(reference, folder)
    if kind == "bundled":
        from labelmill.pipeline.prompt_models.avatars import load_avatars_prompts

        return load_avatars_prompts(weights, device, name=reference)
    from labelmill.pipeline.prompt_models.open_clip import load_open_clip

    return load_open_clip(architecture, weights, device, name=reference)


def hash_prompt_model(reference: str, folder: Path = Path()) -> dict[str, str]:
    """SHA-256 (hex) of each file that a prompt model is read from, by what it is. Raises PromptModelError."""
    kind, architecture, weights = _parts(reference, folder)
    files = {"prompt_model_weights": weights}
    if kind == "open-clip":
        from labelmill.pipeline.prompt_models.open_clip import check_weights_file

        check_weights_file(weights)
        if architecture.endswith(".json"):
            files["prompt_model_architecture"] = Path(architecture)
    return {name: _sha256(path) for name, path in files.items()}


def _parts(reference: str, folder: Path) -> tuple[str, str, Path]:
    """Kind, architecture (a name, or a file's path) and weights file of a reference. Raises PromptModelError where it
    is none."""
    kind, _, rest = reference.partition(":")
    if kind == "bundled":
        if rest not in BUNDLED:
            raise PromptModelError(f"{reference!r}: no such bundled prompt model; available: {', '.join(BUNDLED)}")
        return kind, rest, bundled_weights(rest)
    if kind == "open-clip":
        architecture, _, path = rest.partition("@")
        if not architecture or not path:
            raise PromptModelError(f"{reference!r}: no architecture and path of weights; {_FORMS}")
        if architecture.endswith(".json"):
            architecture = str(folder / expand_user(architecture))
        return kind, architecture, folder / expand_user(path)
    raise PromptModelError(f"{reference!r}: not a prompt model; {_FORMS}")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PromptModelError(f"{path}: the prompt model cannot be read: {error.strerror or error}") from error


def bundled_weights(name: str) -> Path:
    """The file of a bundled model's weights; its card lies beside it."""
    return _BUNDLED_FOLDER / f"{name}.safetensors"
