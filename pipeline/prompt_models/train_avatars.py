"""Train the avatars prompt model, resumably, on a CPU: what `labelmill train-prompt-model` runs.

Every random number of step t comes from (seed, t), so a training that was killed and resumed takes the same steps as
one that was not. Leaves `state/`, `log.jsonl` and, after every checkpoint, `avatars-prompts.safetensors`.

Shape suffixes: B images, R regions, V views, K captions, T words, E embedding, H, W height and width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.benchmark.oracle_data import VALIDATION_SEEDS
from pipeline.benchmark.oracle_images import as_images
from pipeline.generator.train import StopSignals
from pipeline.generator.training_log import TrainingLog
from pipeline.generator.training_state import TrainingStateError, latest_state, read_progress, read_tensors, write_state
from pipeline.prompt_models.avatars import AvatarsPrompts, PromptModelInfo, encode, save_avatars_prompts
from pipeline.prompt_models.avatars_captions import Caption, vocabulary
from pipeline.prompt_models.avatars_data import TRAINING_SEEDS, CaptionedRenders, load_captioned, prompt_batch
from pipeline.prompt_models.avatars_evaluation import name_regions, score_accessory
from pipeline.prompt_models.avatars_networks import PromptNetwork, Shape
from pipeline.prompt_models.words import split_words

LICENCE = "Apache-2.0"
ATTRIBUTION = "trained on avataaars by Pablo Stanley, free for personal and commercial use, drawn with DiceBear (MIT)"
WEIGHTS_FILE = "avatars-prompts.safetensors"
_ACCESSORY_WORDS = ("a hat", "glasses", "a beard")


@dataclass(frozen=True)
class PromptTraining:
    """One training. All but the last two fields must stay when it is resumed."""

    steps: int = 500
    """Batches to learn from."""
    batch_size: int = 48
    """Images a batch, with up to four regions each."""
    peak_rate: float = 2e-3
    """AdamW's rate after the warm-up; from there it falls to 0 along a half cosine."""
    warm_up_steps: int = 50
    """Steps over which the rate rises from 0."""
    weight_decay: float = 1e-3
    """AdamW's decoupled decay."""
    precision: str = "bfloat16"
    """Arithmetic of the networks: float32, or bfloat16, which is faster on CPUs with matrix units."""
    seed: int = 0
    """Of initial weights, order, captions and augmentation."""
    threads: int = 1
    """Threads of PyTorch."""
    checkpoint_interval_seconds: float = 240.0
    """Seconds between saved states."""


FREE_FIELDS = ("threads", "checkpoint_interval_seconds")


class PromptTrainer:
    """Network, optimiser and counter of one training, resumed from `folder` if it holds a state."""

    def __init__(
        self, config: PromptTraining, folder: Path, data: CaptionedRenders, validation: CaptionedRenders
    ) -> None:
        self.config, self.folder, self.data, self.validation = config, folder, data, validation
        self.words = vocabulary()
        self.ids = {word: index for index, word in enumerate(self.words, start=1)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = PromptNetwork(len(self.words) + 1, Shape())
        self.network.image.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.network.parameters(), weight_decay=config.weight_decay, foreach=True)
        self.num_steps, self.seconds = 0, 0.0
        self.log = TrainingLog(folder / "log.jsonl", interval=50)
        self._restore()

    def step(self) -> None:
        """Learn from one batch."""
        started, config = time.monotonic(), self.config
        batch = prompt_batch(self.data, config.batch_size, np.random.default_rng([config.seed, self.num_steps]))
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            pooled_BE, dense_BEHW = self.network.image(batch.images_BCHW.contiguous(memory_format=torch.channels_last))
            texts_KE = self.network.text(word_ids(batch.captions, self.ids)).float()
        regions_RE = pool_regions(dense_BEHW, batch.region_images_R, batch.regions_RHW)
        cosines_VK = functional.normalize(torch.cat([pooled_BE, regions_RE])) @ functional.normalize(texts_KE).T
        logits_VK = self.network.log_scale.exp() * cosines_VK + self.network.offset
        losses = contrastive_losses(logits_VK, batch.truths_VK, num_images=config.batch_size)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.num_steps += 1
        self.seconds += time.monotonic() - started
        for name, loss in losses.items():
            self.log.add(name, loss)
        self.log.step(self.num_steps, self.num_steps * config.batch_size, self.seconds)

    def rate(self) -> float:
        """The optimiser's rate at the coming step."""
        step, config = self.num_steps, self.config
        if step < config.warm_up_steps:
            return config.peak_rate * (step + 1) / config.warm_up_steps
        share = (step - config.warm_up_steps) / max(1, config.steps - config.warm_up_steps)
        return config.peak_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, share))))

    def save(self) -> None:
        """Publish the state of this step and the model as it is."""
        info = PromptModelInfo(Shape(), self.words, self._provenance())
        save_avatars_prompts(self.folder / WEIGHTS_FILE, self.network, info)
        moments = {}
        for name, parameter in self.network.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                moments[f"{name}/{key}"] = self.optimiser.state[parameter][key]
        progress = {
            "config": _fixed(self.config),
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "log_sums": self.log.sums(),
        }
        groups = {"network": self.network.state_dict(), "moments": moments}
        write_state(self.folder / "state", self.num_steps, groups, progress)

    def _restore(self) -> None:
        state = latest_state(self.folder / "state")
        if state is None:
            self.log.truncate(0, {})
            return
        progress, asked = read_progress(state), _fixed(self.config)
        saved = progress["config"]
        assert isinstance(saved, dict)
        differing = [
            f"{key} was {saved.get(key)!r}, now {asked[key]!r}" for key in asked if saved.get(key) != asked[key]
        ]
        if differing:
            raise TrainingStateError(
                f"{state}: trained with other settings: {'; '.join(differing)}; choose another --out"
            )
        self.network.load_state_dict(read_tensors(state, "network"))
        moments = read_tensors(state, "moments")
        numbers = {key: value for key, value in progress.items() if isinstance(value, int | float)}
        self.num_steps, self.seconds = int(numbers["num_steps"]), float(numbers["seconds"])
        for name, parameter in self.network.named_parameters():
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(self.num_steps)),
                "exp_avg": torch.empty_like(parameter).copy_(moments[f"{name}/exp_avg"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(moments[f"{name}/exp_avg_sq"]),
            }
        self.log.truncate(self.num_steps, progress["log_sums"])

    def _provenance(self) -> dict[str, str]:
        info = PromptModelInfo(Shape(), self.words, {})
        model = AvatarsPrompts(PromptNetwork(len(self.words) + 1, info.shape), info)
        model.network.load_state_dict(self.network.state_dict())
        return {
            "data": (
                f"renders of avatars, seeds {TRAINING_SEEDS.start:,} to {TRAINING_SEEDS.stop - 1:,}, augmented; "
                "captions from their attributes, regions from their exact masks"
            ),
            "steps": f"{self.num_steps:,} of {self.config.steps:,}, {self.config.batch_size} images each",
            "training": f"{self.seconds / 60:.1f} minutes, {self.config.precision}, {self.config.threads} thread",
            "validation": validate(model, self.validation),
            "licence": LICENCE,
            "attribution": ATTRIBUTION,
        }


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


def train_avatars_prompts(config: PromptTraining, folder: Path, cache: Path) -> str | None:
    """Train or resume until the last step, or until a signal, whose name is returned: the same call goes on."""
    torch.set_num_threads(config.threads)
    trainer = PromptTrainer(
        config,
        folder,
        load_captioned(TRAINING_SEEDS, cache, config.threads),
        load_captioned(VALIDATION_SEEDS, cache, config.threads),
    )
    next_save = time.monotonic() + config.checkpoint_interval_seconds
    with StopSignals() as stop:
        while trainer.num_steps < config.steps and stop.requested is None:
            trainer.step()
            if time.monotonic() > next_save:
                trainer.save()
                next_save = time.monotonic() + config.checkpoint_interval_seconds
        if trainer.num_steps > 0:  # a signal may come before the first step
            trainer.save()
    return None if trainer.num_steps >= config.steps else stop.requested


def _fixed(config: PromptTraining) -> dict[str, object]:
    return {key: value for key, value in asdict(config).items() if key not in FREE_FIELDS}
