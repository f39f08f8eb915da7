"""Network-free masks by style mixing (Feng et al., CVPR 2023).

Recolour an image N times by mixing its late rows of w with donors', look at each pixel as the vector of its N colours,
and cluster: pixels of one segment change together. The paper clusters into two; here k-means over-clusters, and
evidence calibrated over many images in `fit` says which clusters are foreground. With `masks_from: clusters` every
image is labeled so; with `masks_from: readout` those masks of the images of `fit` have taught a linear read-out of the
generator's features, and an image is labeled from its own synthesis. Either way, edges are snapped to the image's.

Shape suffixes: B batch, N variants, C channels, H height, W width, D style, L rows of w, S signals.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec, num_rows
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.decision import Decision, decide
from labelmill.pipeline.labelers.common.kmeans import PixelClusters
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing
from labelmill.pipeline.labelers.style_mixing.foreground import (
    ForegroundModel,
    border_affinity,
    cluster_probability,
    decide_by_clusters,
    familiarity,
    on_pixels,
)
from labelmill.pipeline.labelers.style_mixing.mixing import bytes_per_pass, mix_in_passes
from labelmill.pipeline.labelers.style_mixing.parts import PartsModel, part_maps
from labelmill.pipeline.labelers.style_mixing.readout import Readout, readout_layers
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer, pixel_vectors
from labelmill.pipeline.process.memory import free_bytes
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.sample import OptionalFile

__all__ = ["StyleMixingLabeler", "VariantClusterer", "check_style_mixing", "pixel_vectors"]


def check_style_mixing(config: StyleMixingConfig, spec: GeneratorSpec) -> None:
    """Raises ConfigError when the generator has no such row to mix from, or no such resolution to stop at."""
    if config.crossover != "auto" and not 1 <= config.crossover <= spec.num_ws - 1:
        raise ConfigError(
            f"labeler.crossover: {config.crossover}, but this generator has {spec.num_ws} rows of w; "
            f"1 to {spec.num_ws - 1} (the last changes colour only), or `auto`"
        )
    size = config.variant_resolution
    if size is None or size == "auto":
        return
    sizes = [size for size, _ in spec.channels if size >= 8]
    if size not in sizes:
        raise ConfigError(f"labeler.variant_resolution: {size}, but this generator can stop at {sizes}; or `auto`")
    if size < spec.resolution and spec.architecture != "skip":
        raise ConfigError(
            f"labeler.variant_resolution: {size}, but a generator of architecture {spec.architecture!r} has an RGB "
            f"output at {spec.resolution} px alone; use null"
        )
    if config.crossover != "auto" and config.crossover >= num_rows(size):
        raise ConfigError(
            f"labeler.variant_resolution: at {size} px synthesis ends with row {num_rows(size) - 1} of w, and "
            f"labeler.crossover is {config.crossover}; raise the one or lower the other"
        )


def check_memory(config: StyleMixingConfig, sampler: Sampler) -> None:
    """Raises ConfigError where the largest variants that `fit` or a label may make do not fit into memory."""
    spec, device = sampler.generator.spec, sampler.device
    wanted = config.variant_resolution if isinstance(config.variant_resolution, int) else spec.resolution

    def needed(resolution: int) -> int:
        return bytes_per_pass(config.variants, spec, resolution, device, sampler.numerics.batch_size)

    free = free_bytes(device)
    if needed(wanted) <= free:
        return
    sizes = [size for size, _ in spec.channels if 8 <= size < wanted and needed(size) <= free]
    fits = f"labeler.variant_resolution: {sizes[-1]} fits" if sizes and spec.architecture == "skip" else ""
    raise ConfigError(
        f"labeler.variants: {config.variants} variants of {wanted} px need {needed(wanted) / 1e9:.1f} GB beside the "
        f"generator, and the {device.type.upper()} has {free / 1e9:.1f} GB left; "
        f"{fits or 'fewer variants or a lower numerics.batch_size need less'}"
    )


def mixing_classes(num_parts: int) -> tuple[str, ...]:
    """Names of the mask values."""
    parts = [f"part_{number}" for number in range(1, num_parts + 1)] if num_parts > 1 else ["foreground"]
    return ("background", *parts)


@dataclass(frozen=True)
class LabeledBatch:
    """Masks, and what was noticed about them."""

    decision: Decision
    signals_BS: Tensor


def found_by_clusters(
    clusters: PixelClusters,
    images_BCHW: Tensor,
    foreground: ForegroundModel,
    parts: PartsModel | None,
    num_variants: int,
) -> LabeledBatch:
    """Masks of images whose variants were clustered."""
    decision = decide_by_clusters(class_maps(clusters, foreground, parts, num_variants), images_BCHW)
    return LabeledBatch(decision, decision.sharpness()[:, None])


def class_maps(
    clusters: PixelClusters, foreground: ForegroundModel, parts: PartsModel | None, num_variants: int
) -> Tensor:
    """Probability of each part of the foreground [B, K, h, w], as noisy as the clusters are."""
    probability_BK = cluster_probability(clusters, border_affinity(clusters, num_variants), foreground)
    if parts is None:
        return on_pixels(clusters, probability_BK)[:, None]
    return part_maps(clusters, probability_BK, num_variants, parts)


def found_by_readout(batch: Batch, readout: Readout) -> LabeledBatch:
    """Masks of a batch that has the read-out's features."""
    parts_BKHW, halves_B2HW = readout(batch.features)
    # Scores know the edges already: they are moved by a pixel of the features at most.
    decision = decide(parts_BKHW, batch.images_BCHW, radius=max(1, min(parts_BKHW.shape[2:]) // 64))
    first_BHW, second_BHW = (halves_B2HW > 0.5).float().unbind(dim=1)
    return LabeledBatch(decision, torch.stack([decision.sharpness(), soft_iou(first_BHW, second_BHW)], dim=1))


class StyleMixingLabeler:
    """Labels batches with what `fit` found."""

    optional_files: tuple[OptionalFile, ...] = ()

    def __init__(self, config: StyleMixingConfig, sampler: Sampler, fitted: FittedStyleMixing) -> None:
        self.generator, self.config, self.fitted = sampler.generator, config, fitted
        self.batch_size = sampler.numerics.batch_size
        self.classes = mixing_classes(config.parts)
        self.layers = readout_layers(sampler.generator.spec) if config.masks_from == "readout" else ()
        self.donors_NLD = fitted.donors_NLD
        self.crossover = fitted.provenance.crossover
        self.variant_resolution = fitted.provenance.variant_resolution
        self._clusterer = VariantClusterer(config, sampler.device, self.batch_size)

    def label(self, batch: Batch) -> Labels:
        """Masks and confidences of the batch's images."""
        # Sizes choose kernels and thereby bits: all that follows sees batches of one size.
        count, whole = len(batch), batch.padded(self.batch_size)
        found = self._by_readout(whole) if self.config.masks_from == "readout" else self._by_clusters(batch, whole)
        masks_BHW = found.decision.masks_BHW
        confidence_B = self.fitted.confidence(found.signals_BS) * familiarity(masks_BHW, self.fitted.foreground)
        return Labels(masks_BHW[:count], confidence_B[:count])

    def variants(self, batch: Batch) -> Tensor:
        """The style-mixed variants [B, N, C, H, W] that `masks_from: clusters` looks at, at their resolution."""
        passes = mix_in_passes(
            self.generator,
            batch,
            self.donors_NLD,
            self.crossover,
            self.variant_resolution,
            batch_size=self.batch_size,
        )
        return torch.cat([variants_BNCHW for _, variants_BNCHW in passes])[: len(batch)]

    def _by_readout(self, whole: Batch) -> LabeledBatch:
        return found_by_readout(whole, self.fitted.readout)

    def _by_clusters(self, batch: Batch, whole: Batch) -> LabeledBatch:
        clusters = self._clusterer.of_batch(
            self.generator, batch, self.donors_NLD, self.crossover, self.variant_resolution
        )
        model = self.fitted
        return found_by_clusters(
            clusters.padded(len(whole)), whole.images_BCHW, model.foreground, model.parts, len(self.donors_NLD)
        )
