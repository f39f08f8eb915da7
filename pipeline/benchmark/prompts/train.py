"""Train the avatars prompt model, resumably, on a CPU: what `labelmill train-prompt-model` runs.

Shape suffixes: B images, R regions, V views, K captions, T words, E embedding, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.captions import Caption, vocabulary
from labelmill.pipeline.avatars.renders import VALIDATION_SEEDS
from labelmill.pipeline.avatars.words import split_words
from labelmill.pipeline.benchmark.oracle.images import as_images
from labelmill.pipeline.benchmark.prompts.captioned_images import (
    TRAINING_SEEDS,
    CaptionedRenders,
    load_captioned,
    prompt_batch,
)
from labelmill.pipeline.benchmark.prompts.evaluate import name_regions, score_accessory
from labelmill.pipeline.benchmark.training_loop import AdamWTrainer, AdamWTraining
from labelmill.pipeline.prompt_models.avatars import AvatarsPrompts, PromptModelInfo, encode, save_avatars_prompts
from labelmill.pipeline.prompt_models.avatars_networks import PromptNetwork, Shape
from labelmill.pipeline.training.state import locked

WEIGHTS_FILE = "avatars-prompts.safetensors"
_ACCESSORY_WORDS = ("a hat", "glasses", "a beard")


@dataclass(frozen=True, kw_only=True)
class PromptTraining(AdamWTraining):
    """One training. A batch has up to four regions of each image."""

    steps: int = 500
    batch_size: int = 48
    peak_rate: float = 2e-3
    warm_up_steps: int = 50
    checkpoint_interval_seconds: float = 240.0


class PromptTrainer(AdamWTrainer[PromptTraining, PromptNetwork]):
    """Leaves `avatars-prompts.safetensors` after every checkpoint."""

    def __init__(
        self, config: PromptTraining, folder: Path, data: CaptionedRenders, validation: CaptionedRenders
    ) -> None:
        self.data, self.validation = data, validation
        self.words = vocabulary()
        self.ids = {word: index for index, word in enumerate(self.words, start=1)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = PromptNetwork(len(self.words) + 1, Shape())
        network.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(config, folder, network)

    def losses(self, random: np.random.Generator) -> dict[str, Tensor]:
        """Of images and of regions."""
        config = self.config
        batch = prompt_batch(self.data, config.batch_size, random)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            pooled_BE, dense_BEHW = self.network.image(batch.images_BCHW.contiguous(memory_format=torch.channels_last))
            texts_KE = self.network.text(word_ids(batch.captions, self.ids)).float()
        regions_RE = pool_regions(dense_BEHW, batch.region_images_R, batch.regions_RHW)
        cosines_VK = functional.normalize(torch.cat([pooled_BE, regions_RE])) @ functional.normalize(texts_KE).T
        logits_VK = self.network.log_scale.exp() * cosines_VK + self.network.offset
        return contrastive_losses(logits_VK, batch.truths_VK, num_images=config.batch_size)

    def publish(self) -> None:
        """Save the model with how it does on the validation's renders."""
        info = PromptModelInfo(Shape(), self.words, {})
        model = AvatarsPrompts(PromptNetwork(len(self.words) + 1, info.shape), info)
        model.network.load_state_dict(self.network.state_dict())
        provenance = {
            "data": (
                f"renders of avatars, seeds {TRAINING_SEEDS.start:,} to {TRAINING_SEEDS.stop - 1:,}, augmented; "
                "captions from their attributes, regions from their exact masks"
            ),
            "validation": validate(model, self.validation),
            **self.provenance(),
        }
        save_avatars_prompts(self.folder / WEIGHTS_FILE, self.network, PromptModelInfo(Shape(), self.words, provenance))


def pool_regions(dense_BEHW: Tensor, region_images_R: Tensor, regions_RHW: Tensor) -> Tensor:
    """The mean of dense features over each region, [R, E]."""
    weights_RHW = regions_RHW.float() / regions_RHW.sum(dim=(1, 2), keepdim=True)
    return torch.einsum("rehw,rhw->re", dense_BEHW[region_images_R], weights_RHW)


def contrastive_losses(logits_VK: Tensor, truths_VK: Tensor, num_images: int) -> dict[str, Tensor]:
    """CLIP's loss where several captions fit a view, and pairs whose truth is unknown count for nothing.

    For images and regions apart: a caption's softmax over the views and a view's over the captions, averaged over the
    pairs that fit (UniCL, Yang et al. 2022), and the log odds of each pair (SigLIP, Zhai et al. 2023), pairs that fit
    and pairs that do not weighing the same.
    """
    losses = {}
    for name, rows in (("images", slice(0, num_images)), ("regions", slice(num_images, None))):
        logits, true = logits_VK[rows], truths_VK[rows] == 1.0
        known = true | (truths_VK[rows] == 0.0)
        masked = logits.masked_fill(~known, -1e4)
        by_view, by_caption = (masked.log_softmax(dim=dim).masked_fill(~true, 0.0) for dim in (1, 0))
        fitting = true.sum().clamp_min(1)
        odds = functional.softplus(torch.where(true, -logits, logits))
        odds_loss = (odds[true].sum() / fitting + odds[known & ~true].sum() / (known & ~true).sum().clamp_min(1)) / 2
        losses[name] = odds_loss + 0.25 * (_mean_of_rows(by_view, true, 1) + _mean_of_rows(by_caption, true, 0))
    return losses


def _mean_of_rows(log_likelihood: Tensor, true: Tensor, dim: int) -> Tensor:
    """Minus the mean log likelihood of what fits, first of each row (dim 1) or column (dim 0), then of those."""
    counts = true.sum(dim=dim)
    means = log_likelihood.sum(dim=dim) / counts.clamp_min(1)
    return -means.sum() / (counts > 0).sum().clamp_min(1)


def word_ids(captions: Sequence[Caption], ids: dict[str, int]) -> Tensor:
    """int64 [K, T]."""
    return torch.tensor([encode(split_words(caption.text), ids) for caption in captions])


def validate(model: AvatarsPrompts, validation: CaptionedRenders) -> str:
    """One line on regions and accessories of renders that were not learned from."""
    images_BCHW = as_images(validation.renders.images_NHWC)
    naming = name_regions(model, images_BCHW, validation.renders.masks_NHW)
    images_BE = model.embed_images(images_BCHW)
    figures = []
    for index, words in enumerate(_ACCESSORY_WORDS):
        has_B = validation.accessories_N3[:, index]
        if has_B.any() and not has_B.all():
            scores = score_accessory(model, images_BE, has_B, words)
            figures.append(f"{words} {scores.balanced_accuracy:.3f}")
    return (
        f"{len(validation):,} renders from seed {VALIDATION_SEEDS.start:,}: regions named right, mean over classes "
        f"{naming.mean:.4f}; balanced accuracy of {', '.join(figures)}"
    )


def train_avatars_prompts(config: PromptTraining, folder: Path, cache: Path) -> None:
    """Train or resume until the last step, or until a signal. Raises Interrupted then: the same call goes on."""
    torch.set_num_threads(config.threads)
    captioned, validation = (
        load_captioned(seeds, cache, config.threads) for seeds in (TRAINING_SEEDS, VALIDATION_SEEDS)
    )
    with locked(folder):
        PromptTrainer(config, folder, captioned, validation).run()
