"""Semantic parts by clusters of the generator's features (Segmentation in Style: Pakhomov et al., 2021).

Features of one layer, clustered over many images, give parts that mean the same in every image. Each pixel takes the
class of its nearest centroid, so that a mask costs one synthesis.

Differences from the paper and its code:

- Features are clustered at their own resolution; the code resizes them to 128 x 128 first (bilinear, corners aligned).
  Distances are what is resized, which is the same for a nearest centroid (`ClusterModel.distances`).
- k-means sees as many images as it is given, in mini-batches on the device, from several k-means++ starts; the code
  holds 50 images' features in one matrix for scikit-learn.
- The code reads every pixel of those, 819,200, for each of scikit-learn's 10 starts; here 4 starts of 20 iterations see
  32,768 pixels over 256 images, and 3 passes after them all images again, of layers above 64 px the same 4,096 pixels
  of an image in each pass.
- k is 96 unless told, and channels are standardised. The code takes 9 or 10 clusters for people, 25 where prompts
  name, 7 to 12 for animals.
- Assignment is soft; classes add up their clusters, and edges are snapped to the image's. The paper takes the nearest
  centroid, upsampled. On the bundled generator softness and snapping raise mIoU by .6 points.
- Where style mixing finds a foreground without labels that agrees with the clusters', it decides, and clusters compete
  within it (`foreground`): clusters of one layer mix what looks alike, such as light clothes and a light ground. On dev
  images of the bundled generators the weighted IoU rises by .05 to .1, and mIoU by .02 to .03.
- A pixel is background unless the other classes together pass a half, and then the likeliest of those (decision.py):
  .4 background, .3 skin and .3 hair are skin or hair, not the likeliest class.
- Which cluster is which class comes from prompts or from a saved mapping; the code's are numbers in a notebook.
- Truncation is the run's own in `fit` as in labeling; the code's differs by domain from .2 to .7.

Shape suffixes: B batch, K clusters, N classes, h w resolution of the highest layer, H W of the images.
"""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.labelers.common.decision import decide, shares
from labelmill.pipeline.labelers.feature_clusters.choose import START_POINTS, sample_plan
from labelmill.pipeline.labelers.feature_clusters.clusters import layer_channels, layer_resolutions
from labelmill.pipeline.labelers.feature_clusters.fitted import FittedFeatureClusters
from labelmill.pipeline.labelers.style_mixing.label_free import foreground_probability, within_foreground
from labelmill.pipeline.labelers.style_mixing.labeler import check_style_mixing
from labelmill.pipeline.labelers.style_mixing.readout import readout_layers
from labelmill.pipeline.process.memory import free_bytes
from labelmill.schemas.cluster_mapping import MOST_CLASSES, ClusterMapping
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.sample import IGNORE, OptionalFile

_DEFAULT_RESOLUTION = 64
_AUTO_RESOLUTIONS = range(16, 129)


def layer_candidates(config: FeatureClustersConfig, spec: GeneratorSpec) -> list[tuple[str, ...]]:
    """The layers to cluster; several sets of them only with `layers: auto`. Raises ConfigError on unknown ones."""
    resolutions = layer_resolutions(spec)
    found: list[tuple[str, ...]]
    if config.layers is None:
        return [(f"b{min(_DEFAULT_RESOLUTION, spec.resolution)}.conv1",)]
    if config.layers == "auto":
        found = [(name,) for name, size in resolutions.items() if name.endswith("conv1") and size in _AUTO_RESOLUTIONS]
        return found or [(f"b{spec.resolution}.conv1",)]
    layers = tuple([config.layers] if isinstance(config.layers, str) else config.layers)
    unknown = [name for name in layers if name not in resolutions]
    if unknown:
        raise ConfigError(
            f"labeler.layers: {', '.join(unknown)} not in this generator; there are {', '.join(resolutions)}, or `auto`"
        )
    return [layers]


def num_clusters_asked(config: FeatureClustersConfig) -> int:
    """The largest k, without clusters of rare classes."""
    return config.clusters if isinstance(config.clusters, int) else max(config.clusters)


def num_clusters_at_most(config: FeatureClustersConfig) -> int:
    """The largest k, clusters of rare classes included."""
    return num_clusters_asked(config) + sum(rare.extra_clusters for rare in config.discover)


def check_mapping(config: FeatureClustersConfig, number: int) -> None:
    """Raises ConfigError where the mapping can be for no clusters that are so many without those of rare classes."""
    if isinstance(config.mapping, ClusterMapping):
        # Clusters of rare classes with a name are kept where prompts give it to them.
        certain = sum(rare.extra_clusters for rare in config.discover if rare.name is None)
        possible = sum(rare.extra_clusters for rare in config.discover)
        config.mapping.check_clusters(number + possible, at_least=number + certain)


def check_feature_clusters(config: FeatureClustersConfig, sampler: Sampler) -> None:
    """Raises ConfigError, before any work, where configuration, generator and memory do not go together."""
    spec, most = sampler.generator.spec, num_clusters_at_most(config)
    if config.wants_foreground:
        check_style_mixing(config.style_mixing, spec)
    num_extra = most - num_clusters_asked(config)
    number = f"{most - num_extra} clusters" + (f" and {num_extra} for discover" if num_extra else "")
    candidates = layer_candidates(config, spec)
    if config.names is None and config.mapping is None and most > MOST_CLASSES:
        raise ConfigError(
            f"labeler.clusters: {number} without names, but masks hold {MOST_CLASSES} classes; lower it, or "
            f"give labeler.names or labeler.mapping, which join clusters"
        )
    if isinstance(config.clusters, int):
        check_mapping(config, config.clusters)
    free = free_bytes(sampler.device)
    needed = max(bytes_needed(config, spec, layers, most, sampler.numerics.batch_size) for layers in candidates)
    if needed > free:
        fitting = max(
            (k for k in range(2, most) if _needs(config, spec, candidates, k, sampler.numerics.batch_size) <= free),
            default=0,
        )
        remedy = f"at most {fitting - num_extra} fit" if fitting - num_extra >= 2 else "lower numerics.batch_size"
        raise ConfigError(
            f"labeler.clusters: {number} need {needed / 1e9:.1f} GB beside the generator, and the "
            f"{sampler.device.type.upper()} has {free / 1e9:.1f} GB left; {remedy}, or take a lower layer"
        )
    _check_sample(config, spec, candidates)


def _check_sample(config: FeatureClustersConfig, spec: GeneratorSpec, candidates: list[tuple[str, ...]]) -> None:
    """Raises ConfigError where either half of the sample has fewer pixels than there are to be clusters."""
    resolutions, channels = layer_resolutions(spec), layer_channels(spec)
    names = {name for layers in candidates for name in layers}
    num_features = sum(channels[name] for name in names)
    num_pixels = prod(spec.size_at(max(resolutions[name] for name in names)))
    every, per_image = sample_plan(num_features, num_pixels, config.fit_samples)
    pixels = config.fit_samples // every // 2 * per_image
    asked = num_clusters_asked(config)
    if asked > pixels:
        raise ConfigError(
            f"labeler.clusters: {asked} clusters, but half of the {config.fit_samples} images of fit_samples give "
            f"{pixels} pixels of {' '.join(candidates[-1])} to start them from; lower it, or raise labeler.fit_samples"
        )


def _needs(
    config: FeatureClustersConfig, spec: GeneratorSpec, candidates: list[tuple[str, ...]], k: int, batch_size: int
) -> int:
    return max(bytes_needed(config, spec, layers, k, batch_size) for layers in candidates)


def bytes_needed(
    config: FeatureClustersConfig, spec: GeneratorSpec, layers: tuple[str, ...], num_clusters: int, batch_size: int
) -> int:
    """About what `fit` or labeling takes at its worst moment, beside the generator.

    Labeling holds the clusters' distances and probabilities of a batch, twice over while they are resized, and at the
    images' resolution the classes' maps with their linear models of the colours; `fit` scores its sample of pixels for
    the centroids of all starts.
    """
    resolutions, channels = layer_resolutions(spec), layer_channels(spec)
    num_pixels = prod(spec.size_at(max(resolutions[name] for name in layers)))
    num_classes = 1 + _num_classes(config, num_clusters)
    maps = (2 * (spec.img_channels + 1) + (3 if config.probabilities else 0)) * num_classes
    names = readout_layers(spec) if config.wants_foreground else ()
    tapped = sum(channels[name] * prod(spec.size_at(resolutions[name])) for name in names)
    labeling = 4 * batch_size * (4 * num_clusters * num_pixels + maps * prod(spec.image_size) + tapped)
    num_features = sum(channels[name] for name in layers)
    num_read = min(32768, 2**26 // num_features)
    starts = num_clusters * config.restarts
    fitting = 4 * (3 * starts * num_read + starts * (START_POINTS + num_features) + 3 * num_read * num_features)
    return max(labeling, fitting)


def _num_classes(config: FeatureClustersConfig, num_clusters: int) -> int:
    if isinstance(config.mapping, ClusterMapping):
        return len(config.mapping.classes)
    return num_clusters if config.names is None else len(config.names)


class FeatureClustersLabeler:
    """Labels batches with what `fit` found."""

    def __init__(self, sampler: Sampler, fitted: FittedFeatureClusters, gives_probabilities: bool = False) -> None:
        self.fitted = fitted
        self.optional_files: tuple[OptionalFile, ...] = ("probabilities.png",) if gives_probabilities else ()
        self.batch_size = sampler.numerics.batch_size
        self.classes = tuple(fitted.provenance.classes)
        self._readout = None if fitted.mixing is None else fitted.mixing.readout
        tapped = {*fitted.model.layers, *(self._readout.layers if self._readout else ())}
        self.layers = tuple(name for name in sampler.generator.spec.conv_names if name in tapped)
        values = torch.tensor(fitted.class_of_cluster)
        # Clusters that mean nothing are a class of their own until the end.
        self._num_maps = len(self.classes) + 1
        of_cluster_K = torch.where(values == IGNORE, len(self.classes), values)
        self._membership_KN = functional.one_hot(of_cluster_K, self._num_maps).float().to(sampler.device)
        self._has_ignored = bool((values == IGNORE).any())

    def label(self, batch: Batch) -> Labels:
        """Masks and confidences of the batch's images.

        A confidence is the share of its pixels that a mask may be expected to have right: the mean of their likeliest
        class's probability. Ignored pixels are neither right nor wrong; a mask of nothing else has 0.
        """
        # Sizes choose kernels and thereby bits: all that follows sees batches of one size.
        count, whole = len(batch), batch.padded(self.batch_size)
        maps_BNhw = self.class_maps(whole)
        used = self._num_maps if self._has_ignored else self._num_maps - 1
        decision = decide(maps_BNhw[:, 1:used], whole.images_BCHW, radius=max(1, min(maps_BNhw.shape[2:]) // 64))
        masks_BHW = decision.masks_BHW
        if self._has_ignored:
            masks_BHW = torch.where(masks_BHW == len(self.classes), IGNORE, masks_BHW).to(torch.uint8)
        probabilities_BNHW = decision.probabilities()[:count] if self.optional_files else None
        if probabilities_BNHW is not None and self._has_ignored:
            probabilities_BNHW = shares(probabilities_BNHW[:, :-1])
        return Labels(masks_BHW[:count], self._confidence(maps_BNhw)[:count], probabilities_BKHW=probabilities_BNHW)

    def _confidence(self, maps_BNhw: Tensor) -> Tensor:
        """The mean of the likeliest class's probability over pixels that are not ignored [B] in [0, 1]."""
        probability_Bhw, class_Bhw = maps_BNhw.max(dim=1)
        kept_Bhw = (class_Bhw != len(self.classes)).float()
        sums_B = (probability_Bhw * kept_Bhw).sum(dim=(1, 2))
        return (sums_B / kept_Bhw.sum(dim=(1, 2)).clamp_min(1)).clamp(0, 1)

    def class_maps(self, batch: Batch) -> Tensor:
        """Probability of each class, and last of what is ignored [B, N + 1, h, w] float32, before edges are refined."""
        probabilities_BhwK = self.fitted.model.probabilities(batch.features)
        weights_BKN = self._membership_KN.expand(len(probabilities_BhwK), -1, -1)
        maps_BSN = torch.bmm(probabilities_BhwK.flatten(1, 2), weights_BKN)
        maps_BNhw = maps_BSN.transpose(1, 2).unflatten(2, probabilities_BhwK.shape[1:3]).contiguous()
        if self._readout is None:
            return maps_BNhw
        size = tuple(maps_BNhw.shape[2:])
        return within_foreground(maps_BNhw, foreground_probability(self._readout, batch.features, size))
