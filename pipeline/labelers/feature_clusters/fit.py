"""Fitting the feature-clusters labeler: layer, k, centroids, softness and names, without labels.

Shape suffixes: B batch, S pixels, D features of a pixel, K clusters, h w resolution of the highest layer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.common.kmeans import KMeans
from labelmill.pipeline.labelers.common.pixel_reading import some_pixels
from labelmill.pipeline.labelers.feature_clusters.choose import (
    START_POINTS,
    ClusteringTrial,
    PixelSample,
    SampleClusters,
    SampleCollector,
    best_layers,
    best_number,
    channel_scales,
    cluster_sample,
)
from labelmill.pipeline.labelers.feature_clusters.clusters import (
    ClusterModel,
    highest_size,
    layer_channels,
    layer_resolutions,
    read_layers,
)
from labelmill.pipeline.labelers.feature_clusters.discovery import (
    ClassMargins,
    Edit,
    edited_seeds,
    find_edits,
    starts_of_rare,
)
from labelmill.pipeline.labelers.feature_clusters.fitted import ClusterRecord, ClustersProvenance, FittedFeatureClusters
from labelmill.pipeline.labelers.feature_clusters.labeler import (
    FeatureClustersLabeler,
    check_feature_clusters,
    check_mapping,
    layer_candidates,
)
from labelmill.pipeline.labelers.feature_clusters.naming import (
    ClusterPool,
    ClusterShares,
    by_mapping,
    by_number,
    by_prompts,
    coverage,
    of_sample,
)
from labelmill.pipeline.labelers.feature_clusters.streamed_kmeans import StreamedKMeans, mean_distance
from labelmill.pipeline.labelers.style_mixing.fit import fit_style_mixing
from labelmill.pipeline.labelers.style_mixing.label_free import foreground_probability
from labelmill.pipeline.labelers.style_mixing.readout import Readout
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.prompt_models.base import PromptModel
from labelmill.schemas.cluster_mapping import ClusterMapping
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.feature_clusters import DiscoverConfig, FeatureClustersConfig

# Temperature of the assignment, in parts of the mean squared distance to the nearest centroid. On the bundled generator
# mIoU with the best possible names rises from 0 (hard) to here and stays so up to .5, while probabilities become less
# than the share of pixels that are right.
_SOFTNESS = 0.3


def needs_prompt_model(config: FeatureClustersConfig) -> bool:
    """Whether `fit` asks a vision-language model: a mapping spares it the names, not the rare classes nor the choice
    of k."""
    named = config.names is not None and config.mapping is None
    return bool(config.discover) or named or chooses_by_names(config)


def chooses_by_names(config: FeatureClustersConfig) -> bool:
    """Whether k is chosen by how many classes its clusters bear; with a mapping too, which is for just that k."""
    return isinstance(config.clusters, list) and config.names is not None


def fit_feature_clusters(
    config: FeatureClustersConfig,
    sampler: Sampler,
    checkpoint_sha256: str | None = None,
    prompt_model: PromptModel | None = None,
) -> FittedFeatureClusters:
    """Choose layer and k, cluster, and name. prompt_model: what `needs_prompt_model` asks for.

    Raises ConfigError, before any work, where configuration, generator and memory do not go together, and what the
    prompt model raises for prompts that it cannot read.
    """
    check_feature_clusters(config, sampler)
    assert prompt_model is not None or not needs_prompt_model(config)
    if prompt_model is not None:
        read_prompts(config, prompt_model)
    with repeatable_kernels():
        return _Fit(config, sampler, prompt_model).run(checkpoint_sha256)


def read_prompts(config: FeatureClustersConfig, prompt_model: PromptModel) -> None:
    """Have the model read every prompt, so that one it does not know is found before the work. Raises what it does."""
    prompts = [prompt for some in (config.names or {}).values() for prompt in some]
    prompts += [prompt for rare in config.discover for prompt in (rare.prompt, rare.against)]
    prompt_model.embed_prompts(prompts)


@dataclass(frozen=True)
class _Chosen:
    """Layer, k and the sample's clusters."""

    layers: tuple[str, ...]
    scales_D: Tensor
    x_SD: Tensor
    """Scaled features of the sample."""
    clusters: SampleClusters
    layer_trials: dict[str, ClusteringTrial] | None
    cluster_trials: dict[int, ClusteringTrial] | None


class _Fit:
    """The steps of `fit`, in their order."""

    def __init__(self, config: FeatureClustersConfig, sampler: Sampler, prompt_model: PromptModel | None) -> None:
        self.config, self.sampler, self.spec = config, sampler, sampler.generator.spec
        self.prompt_model = prompt_model

    def run(self, checkpoint_sha256: str | None) -> FittedFeatureClusters:
        config, spec = self.config, self.spec
        edits = find_edits(config, self.sampler, self.prompt_model) if self.prompt_model else []
        chosen = self._choose()
        centroids_KD = self._refined(chosen, chosen.clusters.centroids_KD)
        temperature = _SOFTNESS * mean_distance(chosen.x_SD, centroids_KD)
        centroids_KD, rare = self._with_rare(chosen, centroids_KD, edits)
        model = ClusterModel(chosen.layers, centroids_KD, chosen.scales_D, temperature)
        model, shares, order = self._ordered(model)
        rare = [[order.index(number) for number in numbers] for numbers in rare]
        classes, named_by, records = self._named(model, shares, edits, rare)
        discoveries = [
            edit.record.model_copy(update={"clusters": numbers}) for edit, numbers in zip(edits, rare, strict=True)
        ]
        provenance = ClustersProvenance(
            config=config,
            checkpoint_sha256=checkpoint_sha256,
            resolution=spec.resolution,
            num_ws=spec.num_ws,
            w_dim=spec.w_dim,
            layers=list(chosen.layers),
            layer_trials=chosen.layer_trials,
            cluster_trials=chosen.cluster_trials,
            trial=chosen.clusters.trial,
            classes=classes,
            named_by=named_by,
            prompt_model=self.prompt_model.name if self.prompt_model else None,
            prompt_model_sha256=self.prompt_model.sha256 if self.prompt_model else None,
            clusters=records,
            discoveries=discoveries,
            mixing=None,
            foreground_agreement=None,
        )
        edits_QD = torch.stack([edit.edit_D for edit in edits]) if edits else torch.empty(0, spec.w_dim)
        alone = FittedFeatureClusters(provenance, model, edits_QD, mixing=None)
        return self._with_foreground(alone) if config.wants_foreground else alone

    def _with_foreground(self, alone: FittedFeatureClusters) -> FittedFeatureClusters:
        """The same with the label-free foreground where it is to be used, and how far it agrees."""
        config = self.config
        mixing = fit_style_mixing(config.style_mixing, self.sampler, alone.provenance.checkpoint_sha256)
        agreed = self._agreement(FeatureClustersLabeler(self.sampler, alone), mixing.readout)
        trusted = config.foreground == "label_free" or agreed >= config.least_agreement
        update = {"foreground_agreement": round(agreed, 4), "mixing": mixing.provenance if trusted else None}
        return replace(alone, provenance=alone.provenance.model_copy(update=update), mixing=mixing if trusted else None)

    def _agreement(self, labeler: FeatureClustersLabeler, readout: Readout) -> float:
        """Mean IoU of foreground and background, by the clusters and label-free, where the clusters say something."""
        counts_22 = torch.zeros(2, 2, dtype=torch.int64, device=self.sampler.device)
        layers = tuple(dict.fromkeys([*labeler.layers, *readout.layers]))
        for batch in self._images(layers, self.config.naming_samples):
            maps_BNhw = labeler.class_maps(batch)
            found_Bhw = foreground_probability(readout, batch.features, tuple(maps_BNhw.shape[2:])) > 0.5
            known_Bhw = maps_BNhw.argmax(dim=1) != len(labeler.classes)
            said_Bhw = maps_BNhw[:, 0] < maps_BNhw[:, 1:-1].sum(dim=1)
            counts_22 += torch.stack(
                [torch.stack([(known_Bhw & (said_Bhw == a) & (found_Bhw == b)).sum() for b in (False, True)])
                 for a in (False, True)]
            )  # fmt: skip
        return sum(float(counts_22[i, i] / (counts_22[i].sum() + counts_22[1 - i, i]).clamp_min(1)) for i in (0, 1)) / 2

    def _choose(self) -> _Chosen:
        candidates = layer_candidates(self.config, self.spec)
        sample = self._sample(tuple(dict.fromkeys(name for layers in candidates for name in layers)))
        layers, layer_trials = candidates[0], None
        numbers = [self.config.clusters] if isinstance(self.config.clusters, int) else self.config.clusters
        if len(candidates) > 1:
            middle = numbers[len(numbers) // 2]
            by_name = {
                " ".join(names): self._clustered(sample, self._scaled(sample, names)[1], middle).trial
                for names in candidates
            }
            layers, layer_trials = tuple(best_layers(by_name).split()), by_name
        scales_D, x_SD = self._scaled(sample, layers)
        tried = {number: self._clustered(sample, x_SD, number) for number in numbers}
        number, cluster_trials = numbers[0], None
        if len(tried) > 1:
            cluster_trials = {number: clusters.trial for number, clusters in tried.items()}
            number = best_number(cluster_trials)
            check_mapping(self.config, number)
        return _Chosen(layers, scales_D, x_SD, tried[number], layer_trials, cluster_trials)

    def _sample(self, layers: tuple[str, ...]) -> PixelSample:
        channels, resolutions = layer_channels(self.spec), layer_resolutions(self.spec)
        collector = SampleCollector(
            layers,
            num_features=sum(channels[name] for name in layers),
            size=self.spec.size_at(max(resolutions[name] for name in layers)),
            num_images=self.config.fit_samples,
            dense=self.prompt_model.dense if self.prompt_model and chooses_by_names(self.config) else None,
            num_dense=self.config.naming_samples,
        )
        for batch in self._images(layers):
            collector.add(batch)
        return collector.sample()

    def _scaled(self, sample: PixelSample, layers: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """What the layers' features are multiplied by [D], and the sample's scaled ones [S, D]."""
        raw_SD = sample.of(layers)
        scales_D = channel_scales(raw_SD, self.config.normalisation)
        return scales_D, raw_SD * scales_D

    def _clustered(self, sample: PixelSample, x_SD: Tensor, number: int) -> SampleClusters:
        config = self.config
        kmeans = KMeans(
            number,
            restarts=config.restarts,
            iterations=config.iterations,
            device=self.sampler.device,
            start_points=START_POINTS,
        )
        clusters = cluster_sample(sample, x_SD, kmeans)
        if sample.dense_FE is not None:
            clusters = replace(clusters, trial=self._named_trial(sample, clusters))
        return clusters

    def _named_trial(self, sample: PixelSample, clusters: SampleClusters) -> ClusteringTrial:
        """The trial with what prompts make of its clusters."""
        config = self.config
        assert self.prompt_model is not None and config.names is not None
        pooled_KE, shares = of_sample(sample, clusters.cluster_S, len(clusters.centroids_KD))
        records = by_prompts(pooled_KE, config.names, self.prompt_model, config.min_margin, config.unsure, shares)
        classes_found, unsure_share = coverage(records)
        return clusters.trial.model_copy(update={"classes_found": classes_found, "unsure_share": unsure_share})

    def _refined(self, chosen: _Chosen, starts_KD: Tensor, edit: Edit | None = None, num_fixed: int = 0) -> Tensor:
        """Centroids after the passes over all images, or with an edit over the edited ones alone."""
        stream = StreamedKMeans(starts_KD, num_fixed)
        for _ in range(self.config.passes):
            number = 0
            for batch in self._edited(chosen.layers, edit) if edit else self._images(chosen.layers):
                stream.add(self._pixels(batch, chosen, number))
                number += len(batch)
            stream.move()
        return stream.centroids_KD

    def _with_rare(self, chosen: _Chosen, centroids_KD: Tensor, edits: list[Edit]) -> tuple[Tensor, list[list[int]]]:
        """Centroids with those of rare classes, and the numbers of each one's. The others stay as they are."""
        rare: list[list[int]] = []
        for edit, discover in zip(edits, self.config.discover, strict=bool(edits)):
            first = len(centroids_KD)
            if discover.extra_clusters:
                centroids_KD = self._with_one(chosen, centroids_KD, edit, discover)
            rare.append(list(range(first, len(centroids_KD))))
        return centroids_KD, rare

    def _with_one(self, chosen: _Chosen, centroids_KD: Tensor, edit: Edit, discover: DiscoverConfig) -> Tensor:
        """Centroids with those of one rare class; of named ones, those that prompts give the name."""
        config, num_new, first = self.config, discover.extra_clusters, len(centroids_KD)
        margins = None
        if discover.name is not None and config.names is not None and self.prompt_model is not None:
            margins = ClassMargins(config.names, discover.name, self.prompt_model)
        new_KD = starts_of_rare(edit, num_new, config, self.sampler, chosen.layers, chosen.scales_D, margins)
        joined_KD = self._refined(chosen, torch.cat([centroids_KD, new_KD]), edit, num_fixed=first)
        if discover.name is None or config.names is None:
            return joined_KD
        # With a mapping too: it is for just the clusters that a fit without one keeps.
        assert self.prompt_model is not None
        model = ClusterModel(chosen.layers, joined_KD, chosen.scales_D, torch.tensor(1.0))
        pooled_KE = self._pooled(model, self._edited(chosen.layers, edit))
        shares = ClusterShares([0.0] * len(joined_KD), [0.0] * len(joined_KD))
        records = by_prompts(pooled_KE, config.names, self.prompt_model, config.min_margin, config.unsure, shares)
        kept = [number for number in range(first, len(joined_KD)) if records[number].name == discover.name]
        return torch.cat([centroids_KD, joined_KD[kept]])

    def _pixels(self, batch: Batch, chosen: _Chosen, first_number: int) -> Tensor:
        """Scaled features [S, D] of a batch's pixels; of large images, of some of them."""
        height, width = highest_size(batch.features, chosen.layers)
        read = []
        for index in range(len(batch)):
            pixels_S = some_pixels(height * width, first_number + index).to(self.sampler.device)
            read.append(read_layers(batch.features, index, chosen.layers, pixels_S))
        return torch.cat(read) * chosen.scales_D

    def _ordered(self, model: ClusterModel) -> tuple[ClusterModel, ClusterShares, list[int]]:
        """Clusters anew in order: that with most of the images' borders first, then by size. Old numbers in order."""
        pixels_K, border_K = self._counted(model)
        background = int(border_K.argmax())
        by_size = pixels_K.argsort(descending=True, stable=True).tolist()
        order = [background, *(number for number in by_size if number != background)]
        shares = ClusterShares(
            [round(float(pixels_K[number] / pixels_K.sum()), 6) for number in order],
            [round(float(border_K[number] / border_K.sum()), 6) for number in order],
        )
        ordered = ClusterModel(model.layers, model.centroids_KD[order], model.scales_D, model.temperature)
        return ordered, shares, order

    def _counted(self, model: ClusterModel) -> tuple[Tensor, Tensor]:
        """Pixels of each cluster [K], and those on the images' borders, over the images of `fit`."""
        num_clusters = len(model.centroids_KD)
        pixels_K, border_K = torch.zeros(num_clusters).double(), torch.zeros(num_clusters).double()
        for batch in self._images(model.layers):
            nearest_Bhw = model.nearest(batch.features).cpu()
            width = max(1, min(nearest_Bhw.shape[1:]) // 32)
            inner_Bhw = nearest_Bhw[:, width:-width, width:-width]
            counts_K = torch.bincount(nearest_Bhw.flatten(), minlength=num_clusters)
            pixels_K += counts_K
            border_K += counts_K - torch.bincount(inner_Bhw.flatten(), minlength=num_clusters)
        return pixels_K, border_K

    def _named(
        self, model: ClusterModel, shares: ClusterShares, edits: list[Edit], rare: list[list[int]]
    ) -> tuple[list[str], str, list[ClusterRecord]]:
        """Classes, what named them, and the clusters' records."""
        config = self.config
        if isinstance(config.mapping, ClusterMapping):
            _check_clustering(config.mapping, model)
            return list(config.mapping.classes), "mapping", by_mapping(config.mapping, shares)
        if config.names is None:
            records = by_number(shares)
            return [record.name for record in records], "numbers", records
        assert self.prompt_model is not None
        pooled_KE = self._pooled(model, self._images(model.layers, config.naming_samples))
        for edit, numbers in zip(edits, rare, strict=True):
            # What is rare is looked at where it was put.
            pooled_KE[numbers] = self._pooled(model, self._edited(model.layers, edit))[numbers]
        records = by_prompts(pooled_KE, config.names, self.prompt_model, config.min_margin, config.unsure, shares)
        for discover, numbers in zip(config.discover, rare, strict=True):
            # They were kept for having this name among the clusters of that edit alone, and others came since.
            for number in numbers if discover.name else []:
                records[number] = records[number].model_copy(update={"name": discover.name, "is_unsure": False})
        return list(config.names), "prompts", records

    def _pooled(self, model: ClusterModel, batches: Iterable[Batch]) -> Tensor:
        assert self.prompt_model is not None
        pool = ClusterPool(len(model.centroids_KD), self.prompt_model)
        for batch in batches:
            pool.add(batch, model)
        return pool.pooled()

    def _images(self, layers: tuple[str, ...], count: int | None = None) -> Iterator[Batch]:
        """The images of `fit` in their order. They are too many to keep: every pass draws them anew."""
        first = self.config.fit_first_seed
        return self.sampler.batches(range(first, first + (count or self.config.fit_samples)), layers)

    def _edited(self, layers: tuple[str, ...], edit: Edit) -> Iterator[Batch]:
        """The edited images."""
        return self.sampler.batches(edited_seeds(self.config), layers, edit.edit_D)


def _check_clustering(mapping: ClusterMapping, model: ClusterModel) -> None:
    if mapping.clustering not in (None, model.clustering):
        raise ConfigError(
            f"labeler.mapping: is for the clusters {mapping.clustering}, but this fit made {model.clustering}: another "
            f"checkpoint, other settings, or another machine, whose clusters may be numbered otherwise. Fit without a "
            f"mapping, and edit the clusters.yaml that this writes"
        )
