"""Fitting the style-mixing labeler: choices and calibration on images of the generator, without labels.

Shape suffixes: B batch, N variants, C channels, K parts, H height, W width, D style, L rows of w, S signals.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec, num_rows
from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.decision import likeliest
from labelmill.pipeline.labelers.common.joint_upsampling import downsample, resample
from labelmill.pipeline.labelers.common.kmeans import Clusters, PixelClusters
from labelmill.pipeline.labelers.style_mixing.confidence import ConfidenceModel, fit_confidence
from labelmill.pipeline.labelers.style_mixing.crossover import CrossoverTable, measure_crossovers
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing, MixingProvenance, readout_background
from labelmill.pipeline.labelers.style_mixing.foreground import (
    ForegroundModel,
    border_affinity,
    calibrate,
    cluster_probability,
    decide_by_clusters,
)
from labelmill.pipeline.labelers.style_mixing.labeler import (
    LabeledBatch,
    check_style_mixing,
    class_maps,
    found_by_clusters,
    found_by_readout,
)
from labelmill.pipeline.labelers.style_mixing.parts import PartsModel, fit_parts
from labelmill.pipeline.labelers.style_mixing.readout import Readout, ReadoutFit, readout_layers, readout_size
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

# Images and donors that `crossover: auto` is measured on, and images for `variant_resolution: auto`.
_CROSSOVER_IMAGES, _CROSSOVER_DONORS = 16, 8
_RESOLUTION_IMAGES = 32

# `variant_resolution: auto` goes no lower, and takes masks that agree so well with those of full variants. Such masks
# were within 1 point of mIoU of each other on drawings and on a trained generator, though not pixel by pixel the same.
_LOWEST_RESOLUTION = 32
_LEAST_RESOLUTION_AGREEMENT = 0.96


def fit_style_mixing(
    config: StyleMixingConfig, sampler: Sampler, checkpoint_sha256: str | None = None
) -> FittedStyleMixing:
    """Draw the donors, choose crossover and resolution, calibrate clusters, and teach the read-out."""
    spec = sampler.generator.spec
    check_style_mixing(config, spec)
    with repeatable_kernels():
        return _Fit(config, sampler).run(checkpoint_sha256)


class _Fit:
    """The steps of `fit`, in their order; each takes what the ones before it found."""

    def __init__(self, config: StyleMixingConfig, sampler: Sampler) -> None:
        self.config, self.sampler, self.spec = config, sampler, sampler.generator.spec
        self.clusterer = VariantClusterer(config, sampler.device, sampler.numerics.batch_size)
        donor_seeds = range(config.donor_first_seed, config.donor_first_seed + config.variants)
        self.donor_seeds = list(donor_seeds)
        self.donors_NLD, _ = sampler.ws(donor_seeds, psi=config.donor_truncation_psi)

    def run(self, checkpoint_sha256: str | None) -> FittedStyleMixing:
        config, spec = self.config, self.spec
        crossover, crossovers = self._choose_crossover()
        resolution, resolutions = self._choose_resolution(crossover)
        clusters = self._clusters(crossover, resolution, config.fit_samples)
        foreground = calibrate(clusters, config.variants)
        parts = self._fit_parts(clusters, foreground)
        readout = self._fit_readout(clusters, foreground, parts)
        confidence, readout_agreement = self._fit_confidence(clusters, foreground, parts, readout)
        provenance = MixingProvenance(
            config=config,
            checkpoint_sha256=checkpoint_sha256,
            resolution=spec.resolution,
            num_ws=spec.num_ws,
            w_dim=spec.w_dim,
            donor_seeds=self.donor_seeds,
            crossover=crossover,
            layout_agreement=crossovers.layout_agreement if crossovers else None,
            foreground_agreement=crossovers.foreground_agreement if crossovers else None,
            colour_change=crossovers.colour_change if crossovers else None,
            variant_resolution=resolution,
            variant_agreement=resolutions,
            readout_agreement=readout_agreement,
        )
        return FittedStyleMixing(provenance, self.donors_NLD, foreground, parts, readout, confidence)

    def _choose_crossover(self) -> tuple[int, CrossoverTable | None]:
        config = self.config
        if config.crossover != "auto":
            return config.crossover, None
        batches = list(self._samples(_CROSSOVER_IMAGES))
        resolution = None if config.variant_resolution == "auto" else config.variant_resolution
        donors_NLD = self.donors_NLD[:_CROSSOVER_DONORS]
        table = measure_crossovers(self.sampler.generator, batches, donors_NLD, self.clusterer, resolution)
        return table.choose(config.min_layout_agreement, config.max_foreground_loss), table

    def _choose_resolution(self, crossover: int) -> tuple[int, dict[int, float] | None]:
        """The variants' resolution, and what it was chosen from."""
        wanted, full = self.config.variant_resolution, self.spec.resolution
        if wanted != "auto":
            return wanted or full, None
        candidates = resolution_candidates(self.spec, crossover)
        if not candidates:
            return full, None
        count = min(_RESOLUTION_IMAGES, self.config.fit_samples)
        full_BHW = self._masks_at(crossover, full, count)
        agreement = {
            size: round(soft_iou(self._masks_at(crossover, size, count), full_BHW).mean().item(), 4)
            for size in candidates
        }
        near = [size for size in candidates if agreement[size] >= _LEAST_RESOLUTION_AGREEMENT]
        return min(near, default=full), agreement

    def _masks_at(self, crossover: int, resolution: int, count: int) -> Tensor:
        """Foreground [B, H, W] float32, 0 or 1, of the first images from variants of a resolution."""
        clusters = self._clusters(crossover, resolution, count)
        model = calibrate(clusters, self.config.variants)
        found = [self._found(part, batch, model, None) for part, batch in self._batches(clusters)]
        return torch.cat([some.decision.masks_BHW for some in found]).float()

    def _clusters(self, crossover: int, resolution: int, count: int) -> PixelClusters:
        generator, donors_NLD = self.sampler.generator, self.donors_NLD
        return Clusters.joined(
            [
                self.clusterer.of_batch(generator, batch, donors_NLD, crossover, resolution)
                for batch in self._samples(count)
            ]
        )

    def _samples(self, count: int) -> Iterator[Batch]:
        """The first images, in batches."""
        return self.sampler.batches(self._seeds(count))

    def _batches(self, clusters: PixelClusters, layers: tuple[str, ...] = ()) -> Iterator[tuple[PixelClusters, Batch]]:
        """The images that were clustered, again, in batches: variants were too many to keep, and so are features."""
        size = self.sampler.numerics.batch_size
        for number, batch in enumerate(self.sampler.batches(self._seeds(len(clusters)), layers)):
            yield clusters[number * size : (number + 1) * size], batch

    def _fit_parts(self, clusters: PixelClusters, foreground: ForegroundModel) -> PartsModel | None:
        config = self.config
        if config.parts == 1:
            return None
        affinity_BK = border_affinity(clusters, config.variants)
        probability_BK = cluster_probability(clusters, affinity_BK, foreground)
        return fit_parts(clusters, probability_BK, config.variants, config.parts)

    def _fit_readout(self, clusters: PixelClusters, foreground: ForegroundModel, parts: PartsModel | None) -> Readout:
        """Teach the masks of the clusters, as hard decisions: that taught better masks than probabilities."""
        config, size = self.config, readout_size(self.spec)
        fit = ReadoutFit(self.spec, config.parts, readout_background(foreground, self.spec))
        for part, batch in self._batches(clusters, readout_layers(self.spec)):
            maps_BKHW = class_maps(part, foreground, parts, config.variants)
            if maps_BKHW.shape[2] < size[0]:
                masks_BHW = decide_by_clusters(maps_BKHW, downsample(batch.images_BCHW, size)).masks_BHW
            else:
                maps_BKHW = resample(maps_BKHW, size)
                masks_BHW = likeliest(maps_BKHW.sum(dim=1), maps_BKHW)
            is_part_BHWK = functional.one_hot(masks_BHW.long(), config.parts + 1)[..., 1:]
            for index, is_part_HWK in enumerate(is_part_BHWK):
                features = {name: tensor[index] for name, tensor in batch.features.items()}
                fit.add(features, is_part_HWK.permute(2, 0, 1))
        return fit.solve()

    def _fit_confidence(
        self, clusters: PixelClusters, foreground: ForegroundModel, parts: PartsModel | None, readout: Readout
    ) -> tuple[ConfidenceModel, float]:
        """The confidence, and how well read-out and clusters agree."""
        agreements, signals = [], []
        for part, batch in self._batches(clusters, readout_layers(self.spec)):
            read, clustered = found_by_readout(batch, readout), self._found(part, batch, foreground, parts)
            first_BHW, second_BHW = ((found.decision.masks_BHW != 0).float() for found in (read, clustered))
            agreements.append(soft_iou(first_BHW, second_BHW))
            signals.append((read if self.config.masks_from == "readout" else clustered).signals_BS)
        agreement_B = torch.cat(agreements)
        return fit_confidence(torch.cat(signals), agreement_B), round(agreement_B.mean().item(), 4)

    def _found(
        self, clusters: PixelClusters, batch: Batch, model: ForegroundModel, parts: PartsModel | None
    ) -> LabeledBatch:
        return found_by_clusters(clusters, batch.images_BCHW, model, parts, self.config.variants)

    def _seeds(self, count: int) -> range:
        return range(self.config.fit_first_seed, self.config.fit_first_seed + count)


def resolution_candidates(spec: GeneratorSpec, crossover: int) -> list[int]:
    """Resolutions below the image's at which this generator's variants could be made, the lowest first."""
    if spec.architecture != "skip":
        return []
    sizes = [size for size, _ in spec.channels]
    return [size for size in sizes if _LOWEST_RESOLUTION <= size < spec.resolution and crossover < num_rows(size)]
