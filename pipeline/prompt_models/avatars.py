"""The bundled prompt model of the avatars domain: it knows the parts of cartoon portraits by their names.

It learned from renders, whose captions are true and whose regions are exact: what it measures is how far prompts go
where the prompt model knows the domain, not what CLIP would do there.

Shape suffixes: B batch, C channels, H height, W width, P prompts, T words, E embedding, h, w the dense map's sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.words import split_words
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.safetensors_json import load_with_json, save_with_json
from labelmill.pipeline.prompt_models.avatars_networks import (
    IMAGE_SIZE,
    MAX_WORDS,
    PADDING,
    PromptNetwork,
    Shape,
    fit_images,
)
from labelmill.pipeline.prompt_models.base import PromptModelError, check_images
from labelmill.pipeline.training.half_weights import half_weights, load_half_weights

FORMAT = "labelmill-prompt-model"
VERSION = 1
_BATCH_SIZE = 32
"""Images, or prompts, at once, always: the size of a batch chooses kernels and thereby bits."""


@dataclass(frozen=True)
class PromptModelInfo:
    """What the weights file says of itself."""

    shape: Shape
    words: tuple[str, ...]
    """The vocabulary; a word's id is its place, counted from 1."""
    provenance: dict[str, str]
    """Free text by key: data, steps, figures, licence, attribution."""


class AvatarsPrompts:
    """A trained prompt model, float32. What it says of an image or a prompt has the same bits in any batch."""

    def __init__(
        self,
        network: PromptNetwork,
        info: PromptModelInfo,
        device: str | torch.device = "cpu",
        *,
        name: str = "avatars-prompts",
        sha256: str = "",
    ) -> None:
        self.name, self.sha256, self.info, self.device = name, sha256, info, torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self._ids = {word: index for index, word in enumerate(info.words, start=1)}

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with before a softmax over prompts, as learned."""
        return float(self.network.log_scale.exp())

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as vectors [P, E] float32 of unit length.

        Raises PromptModelError on a prompt that is empty, too long or holds a word that the model never saw.
        """
        words_PT = torch.tensor([self._tokens(prompt) for prompt in prompts], dtype=torch.int64).view(-1, MAX_WORDS)
        if len(words_PT) == 0:
            return torch.empty(0, self.info.shape.embedding, device=self.device)
        parts = []
        for part_PT in words_PT.split(_BATCH_SIZE):
            padded_PT = part_PT[:1].repeat(_BATCH_SIZE, 1)
            padded_PT[: len(part_PT)] = part_PT
            with repeatable_kernels():
                parts.append(self.network.text(padded_PT.to(self.device))[: len(part_PT)])
        return functional.normalize(torch.cat(parts), dim=1)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Whole images as vectors [B, E] float32 of unit length.

        images float32 RGB, nominally in [-1, 1], any size. Raises PromptModelError on other shapes.
        """
        return functional.normalize(torch.cat([pooled_BE for pooled_BE, _ in self._look(images_BCHW)]), dim=1)

    def dense(self, images_BCHW: Tensor) -> Tensor:
        """The value and output projections of the attention pool at every position, float32 [B, E, 32, 32] whatever
        the images' size; not of unit length. Takes and raises what `embed_images` does."""
        return torch.cat([dense_BEhw for _, dense_BEhw in self._look(images_BCHW)])

    def _look(self, images_BCHW: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        check_images(images_BCHW)
        for part_BCHW in images_BCHW.split(_BATCH_SIZE):
            num = len(part_BCHW)
            fitted_BCHW = fit_images(part_BCHW.detach().to(self.device, torch.float32).clamp(-1, 1))
            padded_BCHW = torch.zeros(_BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE, device=self.device)
            padded_BCHW[:num] = fitted_BCHW
            with repeatable_kernels():
                pooled_BE, dense_BEhw = self.network.image(padded_BCHW)
            yield pooled_BE[:num], dense_BEhw[:num]

    def _tokens(self, prompt: str) -> list[int]:
        words = split_words(prompt)
        unknown = sorted({word for word in words if word not in self._ids})
        if unknown:
            raise PromptModelError(
                f"prompt {prompt!r}: {self.name} does not know {', '.join(map(repr, unknown))}; its words are "
                f"{', '.join(self.info.words)}"
            )
        if not 1 <= len(words) <= MAX_WORDS:
            raise PromptModelError(f"prompt {prompt!r}: has {len(words)} words; {self.name} takes 1 to {MAX_WORDS}")
        return encode(words, self._ids)


def encode(words: Sequence[str], ids: dict[str, int]) -> list[int]:
    """Ids of words, filled up to MAX_WORDS."""
    return [*(ids[word] for word in words), *([PADDING] * (MAX_WORDS - len(words)))]


def load_avatars_prompts(path: Path, device: str | torch.device = "cpu", name: str | None = None) -> AvatarsPrompts:
    """A model that `save_avatars_prompts` wrote. Raises PromptModelError, which names the file; executes nothing."""
    try:
        content = path.read_bytes()
        header, stored = load_with_json(content)
        info = _info(path, header)
    except PromptModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromptModelError(
            f"{path}: not the weights of an avatars prompt model ({error}); install labelmill again"
        ) from error
    network = PromptNetwork(len(info.words) + 1, info.shape)
    try:
        load_half_weights(network, stored)
    except ValueError as error:
        raise PromptModelError(f"{path}: damaged weights ({error}); install labelmill again") from error
    digest = hashlib.sha256(content).hexdigest()
    return AvatarsPrompts(network, info, device, name=name or str(path), sha256=digest)


def save_avatars_prompts(path: Path, network: PromptNetwork, info: PromptModelInfo) -> None:
    """Write weights as float16 with what they are, atomically."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "shape": asdict(info.shape),
        "words": list(info.words),
        "provenance": info.provenance,
    }
    write_atomically(path, save_with_json(half_weights(network), json.dumps(header, sort_keys=True)))


def _info(path: Path, header: Mapping[str, Any]) -> PromptModelInfo:
    found = header["format"], header["version"]
    if found != (FORMAT, VERSION):
        raise PromptModelError(f"{path}: holds {found}; this labelmill reads {(FORMAT, VERSION)}")
    return PromptModelInfo(Shape(**header["shape"]), tuple(header["words"]), dict(header["provenance"]))
