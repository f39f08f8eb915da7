"""Rare classes: images are edited until they show one, so that clustering sees it often enough for a cluster.

For each prompt, with a contrasting one ("a person with a beard", "a person without a beard"):

1. Score sampled images: cosine to the prompt less cosine to the contrast. Those of the highest scores are positive.
2. Logistic regression with balanced classes tells positive w from the others; its normal is the edit's direction.
3. The strength is the least, of a fixed ladder, that brings most images of `fit` over the lowest positive score; where
   none does, the one that brings over the most. What it reached is recorded.
4. New clusters, more than the class needs, are fitted to the edited images beside the other clusters, which stay. They
   start from the pixels that come nearest to the class of that name, as prompts see them, since an edit in all rows of
   w changes much besides; without a name, from those that the edit changes most. With one, those clusters stay that
   prompts give it; without any, nothing changes.

Differences from the paper and its code: 2,000 images are scored unless told, not 5,000; they are scored against a
contrast, not against a fixed value of .25, and a fixed share of them is positive, which needs no calibration of the
model, but takes others along where fewer images show the class, which `fit` says then; the penalty of the regression is
chosen on held-out samples, not scikit-learn's default; the strength is found, not given a prompt at a time (.3, .5);
rare classes get clusters beside the others, whose centroids stay as they are, where the paper clusters everything again
with the same k: edited images, as many as plain ones, pulled centroids of small parts away (in portraits, the mouth's).
They are fitted to edited images alone: over plain ones too they gather what is only like the class (the beard's,
mouths).

Shape suffixes: B batch, N samples, D style or features of a pixel, E embedding, S pixels, K clusters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.common.kmeans import KMeans
from labelmill.pipeline.labelers.common.pixel_reading import read_pixels, some_pixels
from labelmill.pipeline.labelers.feature_clusters.clusters import highest_size, read_layers
from labelmill.pipeline.labelers.feature_clusters.fitted import DiscoveryRecord
from labelmill.pipeline.labelers.feature_clusters.logistic_regression import fit_balanced
from labelmill.pipeline.prompt_models.base import PromptModel
from labelmill.schemas.labelers.feature_clusters import DiscoverConfig, FeatureClustersConfig

# Strengths that are tried, in deviations of the samples along the direction.
_LADDER = tuple(step / 2 for step in range(1, 13))

# Of an edited image's pixels the most changed, so many of them at most.
_CHANGED_SHARE, _MOST_CHANGED = 32, 128


@dataclass(frozen=True)
class Edit:
    """What gives an image a rare class."""

    edit_D: Tensor
    """Added to every row of w, float32."""
    record: DiscoveryRecord


def find_edits(config: FeatureClustersConfig, sampler: Sampler, model: PromptModel) -> list[Edit]:
    """An edit for each of `discover`, in order."""
    if not config.discover:
        return []
    seeds = range(config.discovery_first_seed, config.discovery_first_seed + config.discovery_samples)
    wide = sampler.config.model_copy(update={"truncation_psi": config.discovery_truncation_psi})
    wide_sampler = Sampler(sampler.generator, wide, sampler.numerics, sampler.device)
    images_NE = _embedded(wide_sampler, model, seeds)
    ws_NLD, _ = sampler.ws(seeds, psi=1.0)
    finder = _Finder(config, sampler, model, images_NE, ws_NLD[:, 0].contiguous())
    return [finder.find(rare) for rare in config.discover]


class _Finder:
    def __init__(
        self, config: FeatureClustersConfig, sampler: Sampler, model: PromptModel, images_NE: Tensor, w_ND: Tensor
    ) -> None:
        self._sampler, self._model, self._images_NE, self._w_ND = sampler, model, images_NE, w_ND
        self._base = edited_seeds(config)

    def find(self, rare: DiscoverConfig) -> Edit:
        prompts_2E = self._model.embed_prompts([rare.prompt, rare.against]).float().cpu()
        score_N = _scores(self._images_NE, prompts_2E)
        num_positive = rare.num_positive(len(score_N))
        order_N = score_N.argsort(descending=True, stable=True)
        is_positive_N = torch.zeros(len(score_N), dtype=torch.bool)
        is_positive_N[order_N[:num_positive]] = True
        threshold = float(score_N[order_N[num_positive - 1]])
        decision = fit_balanced(self._w_ND, is_positive_N)
        direction_D = decision.weights_D / decision.weights_D.norm().clamp_min(1e-12)
        deviation = float((self._w_ND.double().cpu() @ direction_D).std(correction=0))
        strength, moved = self._strength(direction_D, deviation, prompts_2E, threshold, rare.moved_share)
        record = DiscoveryRecord(
            prompt=rare.prompt,
            against=rare.against,
            num_scored=len(score_N),
            num_nearer=int((score_N > 0).sum()),
            num_positive=num_positive,
            least_positive_score=round(threshold, 4),
            accuracy=round(decision.balanced_accuracy, 4),
            strength=round(strength, 4),
            moved_share=round(moved, 4),
            moved_share_wanted=rare.moved_share,
            clusters=[],
        )
        return Edit((strength * direction_D).float().to(self._sampler.device), record)

    def _strength(
        self, direction_D: Tensor, deviation: float, prompts_2E: Tensor, threshold: float, wanted: float
    ) -> tuple[float, float]:
        """The least strength that moves enough images, or that which moves most; and the share that it moves."""
        best = (0.0, -1.0)
        for step in _LADDER:
            edit_D = (step * deviation * direction_D).float().to(self._sampler.device)
            images_NE = _embedded(self._sampler, self._model, self._base, edit_D)
            moved = float((_scores(images_NE, prompts_2E) >= threshold).float().mean())
            if moved > best[1]:
                best = (step * deviation, moved)
            if moved >= wanted:
                break
        return best


def edited_seeds(config: FeatureClustersConfig) -> range:
    """Seeds of the images that are edited: the first of `fit`."""
    return range(config.fit_first_seed, config.fit_first_seed + min(config.edited_samples, config.fit_samples))


class ClassMargins:
    """How much nearer a class is than all others, as prompts see the pixels of an image."""

    def __init__(self, names: Mapping[str, Sequence[str]], name: str, model: PromptModel) -> None:
        self._model, self._num_own = model, len(names[name])
        others = [prompt for other in names if other != name for prompt in names[other]]
        self._prompts_PE = model.embed_prompts([*names[name], *others]).float()

    def of(self, images_BCHW: Tensor, pixels: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Differences of cosines [S] at pixels of a height and width, by image. Images are RGB."""
        margins = []
        for dense_EHW, pixels_S in zip(self._model.dense(images_BCHW), pixels, strict=True):
            x_ES = functional.normalize(read_pixels(dense_EHW, pixels_S, size), dim=0)
            # One product for all prompts: equal ones must tie, whatever kernel the processor has.
            own_PS, others_PS = (self._prompts_PE.to(x_ES) @ x_ES).tensor_split([self._num_own])
            margins.append(own_PS.amax(dim=0) - others_PS.amax(dim=0))
        return margins


def starts_of_rare(
    edit: Edit,
    num_clusters: int,
    config: FeatureClustersConfig,
    sampler: Sampler,
    layers: Sequence[str],
    scales_D: Tensor,
    margins: ClassMargins | None = None,
) -> Tensor:
    """Centroids [K, D] of scaled features, of some of the edited images' pixels.

    With `margins`, of those that are of the class and whose margins the edit raises most; without, or where there are
    none, of those that it changes most.
    """
    found = []
    seeds = edited_seeds(config)
    for before, after in zip(sampler.batches(seeds, layers), sampler.batches(seeds, layers, edit.edit_D), strict=True):
        height, width = highest_size(before.features, layers)
        places = [seeds.index(seed) for seed in before.seeds]
        pixels = [some_pixels(height * width, place).to(sampler.device) for place in places]
        rises = _rises(before, after, pixels, (height, width), margins) if margins else [None] * len(before)
        for index, (pixels_S, rise_S) in enumerate(zip(pixels, rises, strict=True)):
            x_SD, y_SD = (read_layers(b.features, index, layers, pixels_S) * scales_D for b in (before, after))
            score_S = (y_SD - x_SD).square().sum(dim=1) if rise_S is None else rise_S
            count = min(_MOST_CHANGED, max(1, len(pixels_S) // _CHANGED_SHARE))
            most_S = score_S.argsort(descending=True, stable=True)[:count]
            found.append(y_SD[most_S[score_S[most_S] > -torch.inf]])
    found_SD = torch.cat(found)
    if not len(found_SD):
        return starts_of_rare(edit, num_clusters, config, sampler, layers, scales_D)
    kmeans = KMeans(num_clusters, restarts=config.restarts, iterations=config.iterations, device=sampler.device)
    return kmeans(found_SD[None]).centroids_BKD[0]


def _rises(
    before: Batch, after: Batch, pixels: Sequence[Tensor], size: tuple[int, int], margins: ClassMargins
) -> list[Tensor]:
    """By how much an edit raises the margins [S] of pixels, by image; -inf where they are not of the class then."""
    pairs = zip(*(margins.of(batch.rgb(), pixels, size) for batch in (before, after)), strict=True)
    return [torch.where(after_S > 0, after_S - before_S, -torch.inf) for before_S, after_S in pairs]


def _embedded(sampler: Sampler, model: PromptModel, seeds: range, edit_D: Tensor | None = None) -> Tensor:
    """Whole images as the model sees them [N, E] float32 on the CPU."""
    batches = sampler.batches(seeds, edit_D=edit_D)
    return torch.cat([model.embed_images(batch.rgb()).float().cpu() for batch in batches])


def _scores(images_NE: Tensor, prompts_2E: Tensor) -> Tensor:
    """How much nearer images are to the first prompt than to the second [N]."""
    return images_NE @ (prompts_2E[0] - prompts_2E[1])
