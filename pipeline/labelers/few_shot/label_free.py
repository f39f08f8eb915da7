"""What `fit` learns without annotations: how features vary, and the foreground that style mixing finds.

Both depend on generator and settings alone, so that fits of other annotations may share them.

Shape suffixes: B batch, K classes, M members, H height, W width, N images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.few_shot.features import layer_widths, layers_of, map_size
from labelmill.pipeline.labelers.few_shot.shots import Shots
from labelmill.pipeline.labelers.few_shot.statistics import FeatureStatistics, StatisticsCollector, variant_features
from labelmill.pipeline.labelers.style_mixing.fit import fit_style_mixing
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing
from labelmill.pipeline.labelers.style_mixing.label_free import foreground_probability
from labelmill.pipeline.labelers.style_mixing.readout import Readout
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.labelers.few_shot import FewShotConfig
from labelmill.schemas.sample import IGNORE


@dataclass(frozen=True)
class LabelFree:
    """What every fit with these settings begins with."""

    statistics: FeatureStatistics | None
    """None where features are taken as they are."""
    mixing: FittedStyleMixing | None
    """None where nothing asks for it."""


def fit_label_free(config: FewShotConfig, sampler: Sampler, checkpoint_sha256: str | None = None) -> LabelFree:
    """Look at images without annotations: seconds on a small generator, minutes on a large one."""
    wants_mixing = config.foreground != "learned" or config.normalisation == "style"
    mixing = fit_style_mixing(config.style_mixing, sampler, checkpoint_sha256) if wants_mixing else None
    statistics = _statistics(config, sampler, mixing) if needs_statistics(config) else None
    return LabelFree(statistics, mixing)


def needs_statistics(config: FewShotConfig) -> bool:
    """Whether features are scaled or reduced."""
    return config.normalisation != "none" or config.head.type == "linear"


def _statistics(config: FewShotConfig, sampler: Sampler, mixing: FittedStyleMixing | None) -> FeatureStatistics:
    spec = sampler.generator.spec
    layers = layers_of(config, spec)
    collector = StatisticsCollector(layer_widths(spec, layers), map_size(spec, layers))
    first, number = config.style_mixing.fit_first_seed, 0
    for batch in sampler.batches(range(first, first + config.statistics_samples), layers):
        collector.add(batch)
        if config.normalisation != "style":
            continue
        assert mixing is not None
        donors_NLD = mixing.donors_NLD[: config.statistics_variants]
        for index in range(len(batch)):
            image = batch.select([index])
            collector.add_variants(
                number, variant_features(sampler.generator, image, donors_NLD, mixing.provenance.crossover, layers)
            )
            number += 1
    return collector.statistics()


def agreement(readout: Readout, shots: Shots) -> float | None:
    """IoU of the label-free foreground with that of the annotations, the mean over foreground and background of their
    labeled pixels, in [0, 1]; None where these show no pixel of the one or the other."""
    size = shots.masks_NHW.shape[1:]
    found_NHW = np.concatenate(list(_found(readout, shots, size)))
    known_NHW, wanted_NHW = shots.masks_NHW != IGNORE, shots.masks_NHW != 0
    sides = [(found_NHW, wanted_NHW), (~found_NHW, ~wanted_NHW)]
    if not all((known_NHW & wanted).any() for _, wanted in sides):
        return None
    ious = [(known_NHW & found & wanted).sum() / (known_NHW & (found | wanted)).sum() for found, wanted in sides]
    return float(np.mean(ious))


def _found(readout: Readout, shots: Shots, size: tuple[int, ...]) -> Iterator[NDArray[np.bool_]]:
    for batch in shots.batches(readout.layers):
        with repeatable_kernels():
            yield (foreground_probability(readout, batch.features, size) > 0.5).cpu().numpy()
