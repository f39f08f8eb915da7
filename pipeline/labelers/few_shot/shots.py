"""What a head learns from: generated images and masks of them, from an annotation set or from anywhere.

Shape suffixes: B batch, N images, H height, W width.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.annotations.read import Annotations, read_annotations
from labelmill.pipeline.annotations.regenerate import regenerate
from labelmill.pipeline.generator.checkpoints.source import located_reference
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.schemas.labelers.few_shot import FewShotConfig

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Shots:
    """Annotated images, which a generator makes again whenever their features are wanted."""

    classes: tuple[str, ...]
    """Names of the mask values; the first is the background."""
    masks_NHW: Mask
    """uint8, at the images' resolution; 255 says nothing of a pixel. Each labels some pixel."""
    batches: Callable[[Collection[str]], Iterator[Batch]]
    """The images in the masks' order, with the features of these layers."""
    sha256: str | None
    """Of the annotation set; None where there is none."""

    def __len__(self) -> int:
        return len(self.masks_NHW)


def shots_of_seeds(sampler: Sampler, seeds: Sequence[int], masks_NHW: Mask, classes: Sequence[str]) -> Shots:
    """Images of a sampler's own seeds, with masks that somebody knows."""
    assert len(seeds) == len(masks_NHW) > 0
    return Shots(tuple(classes), masks_NHW, lambda layers: sampler.batches(list(seeds), layers), None)


def shots_of_annotations(config: FewShotConfig, sampler: Sampler, checkpoint_sha256: str | None) -> Shots:
    """The images of the configuration's annotation set. Raises ConfigError for a set that cannot be used; `batches`
    raises it where an image comes out differently than it was annotated."""
    annotations = read_set(config)
    return Shots(
        annotations.about.classes,
        annotations.masks_NHW,
        lambda layers: regenerate(annotations, sampler, layers, checkpoint_sha256),
        annotations.sha256,
    )


def read_set(config: FewShotConfig) -> Annotations:
    """The configuration's annotation set. Raises ConfigError."""
    return read_annotations(located_reference(config.annotations, config.folder))
