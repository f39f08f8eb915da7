"""Models that know what words look like: `open_prompt_model("bundled:avatars-prompts", device)`."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.prompt_models.base import PromptModel, PromptModelError
from schemas.user_path import expand_user

__all__ = ["BUNDLED", "PromptModel", "PromptModelError", "open_prompt_model"]

BUNDLED = ("avatars-prompts",)
"""Names after `bundled:`."""
_BUNDLED_FOLDER = Path(__file__).resolve().parent / "bundled"
_FORMS = (
    "give bundled:avatars-prompts, or open-clip:ARCHITECTURE@PATH, such as open-clip:ViT-B-32@/weights/b32.safetensors"
)


def open_prompt_model(reference: str, device: str | torch.device = "cpu") -> PromptModel:
    """A prompt model by reference: `bundled:NAME` or `open-clip:ARCHITECTURE@PATH`.

    Nothing is downloaded, and nothing in a weights file is executed. Raises PromptModelError on anything unusable.
    """
    kind, _, rest = reference.partition(":")
    if kind == "bundled":
        if rest not in BUNDLED:
            raise PromptModelError(f"{reference!r}: no such bundled prompt model; there is {', '.join(BUNDLED)}")
        from pipeline.prompt_models.avatars import load_avatars_prompts

        return load_avatars_prompts(_BUNDLED_FOLDER / f"{rest}.safetensors", device, name=reference)
    if kind == "open-clip":
        from pipeline.prompt_models.open_clip import load_open_clip

        architecture, _, path = rest.partition("@")
        if not architecture or not path:
            raise PromptModelError(f"{reference!r}: no architecture and path of weights; {_FORMS}")
        return load_open_clip(architecture, expand_user(path), device, name=reference)
    raise PromptModelError(f"{reference!r}: not a prompt model; {_FORMS}")
