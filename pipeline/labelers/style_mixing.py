"""Network-free masks by style mixing (Feng et al., CVPR 2023).

Recolour an image N times by mixing its late rows of w with donors', look at each pixel as the vector of its N colours,
and cluster: pixels of one segment change together. The paper clusters into two; here k-means over-clusters, and
evidence calibrated over many images in `fit` says which clusters are foreground.

Shape suffixes: B batch, N variants, C channels, H height, W width, P pixels (H * W), D style, L rows of w.
"""

import torch
from torch import Tensor

from pipeline.generator.sampling import Batch, Sampler
from pipeline.labelers.base import Labels
from pipeline.labelers.fitted import FittedStyleMixing, Provenance
from pipeline.labelers.foreground import calibrate, merge
from pipeline.labelers.kmeans import Clusters, KMeans
from pipeline.labelers.mixing import CrossoverTable, images_per_pass, measure_crossovers, mix
from schemas.config import StyleMixingConfig
from schemas.errors import ConfigError

# Images and donors that `crossover: auto` is measured on.
_CROSSOVER_IMAGES, _CROSSOVER_DONORS = 16, 8

# Deviations below this share of the image's range are noise; dividing by less would only blow it up.
_LEAST_DEVIATION = 0.05


def pixel_vectors(variants_BNCHW: Tensor, normalisation: str) -> Tensor:
    """Each pixel's colours over the variants [B, P, N * C] float32, normalised over its variants."""
    x_BPNC = variants_BNCHW.float().flatten(3).permute(0, 3, 1, 2)
    if normalisation != "none":
        x_BPNC = x_BPNC - x_BPNC.mean(dim=2, keepdim=True)
    if normalisation == "standardised":
        x_BPNC = x_BPNC / (x_BPNC.square().mean(dim=2, keepdim=True).sqrt() + _LEAST_DEVIATION)
    return x_BPNC.flatten(2).contiguous()


class VariantClusterer:
    """Variants of images to clusters of their pixels, with a configuration's settings."""

    def __init__(self, config: StyleMixingConfig, device: str | torch.device = "cpu") -> None:
        self.normalisation = config.normalisation
        self.kmeans = KMeans(config.clusters, restarts=config.restarts, iterations=config.iterations, device=device)

    def __call__(self, variants_BNCHW: Tensor) -> Clusters:
        return self.kmeans(pixel_vectors(variants_BNCHW, self.normalisation))


def check_crossover(config: StyleMixingConfig, num_ws: int) -> None:
    """Raises ConfigError when the generator has no such row to mix from."""
    if config.crossover != "auto" and not 1 <= config.crossover <= num_ws - 1:
        raise ConfigError(
            f"labeler.crossover: {config.crossover}, but this generator has {num_ws} rows of w; "
            f"1 to {num_ws - 1} (the last changes colour only), or `auto`"
        )


class StyleMixingLabeler:
    """Labels batches with what `fit` found."""

    classes = ("background", "foreground")
    layers: tuple[str, ...] = ()

    def __init__(self, config: StyleMixingConfig, sampler: Sampler, fitted: FittedStyleMixing) -> None:
        self.generator, self.fitted = sampler.generator, fitted
        self.clusterer = VariantClusterer(config, sampler.device)
        self.images_per_pass = images_per_pass(config.variants, sampler.device)

    def label(self, batch: Batch) -> Labels:
        """Masks and confidences, a fixed number of images at a time; the last ones are padded."""
        parts = [self._label(part) for part in _parts(batch, self.images_per_pass)]
        masks_BHW = torch.cat([part.masks_BHW for part in parts])[: len(batch)]
        return Labels(masks_BHW, torch.cat([part.confidence_B for part in parts])[: len(batch)])

    def _label(self, batch: Batch) -> Labels:
        variants_BNCHW = mix(self.generator, batch, self.fitted.donors_NLD, self.fitted.provenance.crossover)
        return merge(self.clusterer(variants_BNCHW), self.fitted.foreground, variants_BNCHW.shape[1])


def fit_style_mixing(
    config: StyleMixingConfig, sampler: Sampler, checkpoint_sha256: str | None = None
) -> FittedStyleMixing:
    """Draw the donors, choose the crossover, and calibrate the merging of clusters on images without labels."""
    spec = sampler.generator.spec
    check_crossover(config, spec.num_ws)
    donor_seeds = range(config.donor_first_seed, config.donor_first_seed + config.variants)
    donors_NLD, _ = sampler.ws(donor_seeds, psi=config.donor_truncation_psi)
    crossover, table = _choose_crossover(config, sampler, donors_NLD)
    clusters = _clusters_of_fit_images(config, sampler, donors_NLD, crossover)
    provenance = Provenance(
        config=config,
        checkpoint_sha256=checkpoint_sha256,
        resolution=spec.resolution,
        num_ws=spec.num_ws,
        w_dim=spec.w_dim,
        donor_seeds=list(donor_seeds),
        crossover=crossover,
        layout_agreement=None if table is None else table.layout_agreement,
        colour_change=None if table is None else table.colour_change,
    )
    return FittedStyleMixing(provenance, donors_NLD, calibrate(clusters, config.variants))


def _clusters_of_fit_images(
    config: StyleMixingConfig, sampler: Sampler, donors_NLD: Tensor, crossover: int
) -> Clusters:
    clusterer = VariantClusterer(config, sampler.device)
    seeds = range(config.fit_first_seed, config.fit_first_seed + config.fit_samples)
    batch_size, part_size = sampler.numerics.batch_size, images_per_pass(config.variants, sampler.device)
    found: list[Clusters] = []
    for start in range(0, len(seeds), batch_size):
        batch = sampler.sample(seeds[start : start + batch_size])
        for part in _parts(batch, part_size):
            clusters = clusterer(mix(sampler.generator, part, donors_NLD, crossover))
            found.append(clusters.take(min(part_size, len(seeds) - sum(map(len, found)))))
    return Clusters.joined(found)


def _choose_crossover(
    config: StyleMixingConfig, sampler: Sampler, donors_NLD: Tensor
) -> tuple[int, CrossoverTable | None]:
    if config.crossover != "auto":
        return config.crossover, None
    count = min(_CROSSOVER_IMAGES, sampler.numerics.batch_size)
    batch = sampler.sample(range(config.fit_first_seed, config.fit_first_seed + count))
    table = measure_crossovers(sampler.generator, batch, donors_NLD[:_CROSSOVER_DONORS])
    return table.choose(config.min_layout_agreement), table


def _parts(batch: Batch, size: int) -> list[Batch]:
    """The batch in parts of one size, the last padded with its last sample: sizes choose kernels, and thereby bits."""
    last = len(batch) - 1
    return [batch.select([min(i, last) for i in range(start, start + size)]) for start in range(0, len(batch), size)]
