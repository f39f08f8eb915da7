"""Network-free masks by style mixing (Feng et al., CVPR 2023).

Recolour an image N times by mixing its late rows of w with donors', look at each pixel as the vector of its N colours,
and cluster: pixels of one segment change together. The paper clusters into two; here k-means over-clusters, and
evidence calibrated over many images in `fit` says which clusters are foreground.

Shape suffixes: B batch, N variants, C channels, H height, W width, P pixels (H * W), D style, L rows of w.
"""

import torch
from torch import Tensor

from pipeline.generator.networks import Generator
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

    def of_batch(self, generator: Generator, batch: Batch, donors_NLD: Tensor, crossover: int) -> Clusters:
        """Clusters of each image, a fixed number of images at a time, because sizes choose kernels and thereby bits.

        The last ones are padded with the last image.
        """
        at_once = images_per_pass(len(donors_NLD), generator.spec.resolution, donors_NLD.device)
        last, found = len(batch) - 1, []
        for start in range(0, len(batch), at_once):
            part = batch.select([min(index, last) for index in range(start, start + at_once)])
            found.append(self(mix(generator, part, donors_NLD, crossover)))
        return Clusters.joined(found).take(len(batch))


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

    def label(self, batch: Batch) -> Labels:
        """Masks and confidences of the batch's images."""
        crossover = self.fitted.provenance.crossover
        clusters = self.clusterer.of_batch(self.generator, batch, self.fitted.donors_NLD, crossover)
        return merge(clusters, self.fitted.foreground, len(self.fitted.donors_NLD))


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
    found: list[Clusters] = []
    for start in range(0, len(seeds), sampler.numerics.batch_size):
        batch = sampler.sample(seeds[start : start + sampler.numerics.batch_size])
        found.append(clusterer.of_batch(sampler.generator, batch, donors_NLD, crossover))
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
