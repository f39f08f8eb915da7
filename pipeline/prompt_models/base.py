"""What a prompt model is: text, images and every place of an image as vectors of one space.

Shape suffixes: B batch, C channels, H height, W width, P prompts, E embedding, h, w height and width of the dense map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from labelmill.schemas.errors import LabelmillError


class PromptModelError(LabelmillError):
    """A prompt model, or what is asked of it, is unusable: the message names the file or prompt and a way out."""


class PromptModel(Protocol):
    """A vision-language model whose dense features lie in the space of its prompts."""

    name: str
    """The reference it was opened by."""
    sha256: str
    """Hash of the bytes of its weights file."""

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as vectors [P, E] float32 of unit length. Raises PromptModelError on prompts it cannot read."""
        ...

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Whole images as vectors [B, E] float32 of unit length. images float32 RGB, nominally in [-1, 1], any size."""
        ...

    def dense(self, images_BCHW: Tensor) -> Tensor:
        """What is where: [B, E, h, w] float32 in the prompts' space, not of unit length; the map covers the image.

        Takes images as `embed_images` does.
        """
        ...


def check_images(images_BCHW: Tensor) -> None:
    """Raises PromptModelError unless images are [B, 3, H, W] with B, H and W at least 1."""
    shape = tuple(images_BCHW.shape)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise PromptModelError(f"images of shape {list(shape)}; prompt models take [B, 3, H, W], B, H and W at least 1")
