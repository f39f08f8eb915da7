"""What networks of the benchmarks learn from, and what they are tested on.

Shape suffixes: N images, B batch, H height, W width, C channels.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.benchmark.masks.methods import fitted_method
from labelmill.pipeline.benchmark.masks.rows import MaskRow
from labelmill.pipeline.benchmark.masks.subjects import Pictures, PicturesAlone, Truth
from labelmill.pipeline.generator.sampling import Batch, Sampler, to_uint8
from labelmill.pipeline.labelers.base import Labeler
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.sample import IGNORE

FOREGROUND = ("background", "foreground")

TRAINING_SEEDS = range(7_000_000, 7_001_000)
"""Figures that the supervised networks learn from."""
TEST_SEEDS = range(8_000_000, 8_001_000)
"""Figures that every network is tested on; neither generator, oracle, prompts nor network have seen them."""
FIRST_SYNTHETIC_SEED = 3_000_000_000


@dataclass(frozen=True)
class Pairs:
    """Images with masks."""

    images_NHWC: NDArray[np.uint8]
    """RGB."""
    masks_NHW: NDArray[np.uint8]
    """Numbers of classes; 255 is ignored."""
    classes: tuple[str, ...] = FOREGROUND
    """The first is the background."""

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def first(self, count: int) -> "Pairs":
        """The first pairs."""
        return Pairs(self.images_NHWC[:count], self.masks_NHW[:count], self.classes)

    def foreground(self) -> "Pairs":
        """The same with every class but the background as one."""
        masks_NHW = np.where(self.masks_NHW == IGNORE, IGNORE, self.masks_NHW != 0).astype(np.uint8)
        return Pairs(self.images_NHWC, masks_NHW)


def drawn_pairs(seeds: Sequence[int], resolution: int, num_processes: int = 2) -> Pairs:
    """Avatars with exact masks of all their classes. Raises ImportError without the benchmark extra."""
    from labelmill.pipeline.avatars.avatars import CLASSES  # needs the extra

    with ProcessPoolExecutor(min(num_processes, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        drawn = list(pool.map(_draw, seeds, [resolution] * len(seeds), chunksize=32))
    return Pairs(np.stack([image for image, _ in drawn]), np.stack([mask for _, mask in drawn]), CLASSES)


def _draw(seed: int, resolution: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    from labelmill.pipeline.avatars.avatars import render  # needs the extra

    cv2.setNumThreads(1)
    avatar = render(seed, resolution)
    return avatar.image_HWC, avatar.mask_HW


def labeled_pairs(sampler: Sampler, labeler: Labeler, count: int) -> Pairs:
    """Generated images with the masks of a labeler, as it makes them: no quality rule, no selection."""
    images, masks = [], []
    seeds = range(FIRST_SYNTHETIC_SEED, FIRST_SYNTHETIC_SEED + count)
    for batch in sampler.batches(seeds, labeler.layers):
        images.append(to_uint8(batch.images_BCHW).cpu().numpy())
        masks.append(labeler.label(batch).masks_BHW.cpu().numpy())
    return Pairs(np.concatenate(images), np.concatenate(masks).astype(np.uint8), tuple(labeler.classes))


def single_image_pairs(sampler: Sampler, config: StyleMixingConfig, count: int) -> Pairs:
    """The same images, each clustered by its own colours alone: what masks are worth without style mixing."""
    by_clusters = config.model_copy(update={"masks_from": "clusters"})
    row = MaskRow(name="single-image", title="one image's colours", kind="single_image", labeler=by_clusters)
    fit_seeds = range(config.fit_first_seed, config.fit_first_seed + config.fit_samples)
    fit = [_without_truth(batch) for batch in sampler.batches(fit_seeds)]
    method = fitted_method(row, PicturesAlone(sampler.device, {"fit": fit}))
    images, masks = [], []
    for batch in sampler.batches(range(FIRST_SYNTHETIC_SEED, FIRST_SYNTHETIC_SEED + count)):
        images.append(to_uint8(batch.images_BCHW).cpu().numpy())
        masks.append(method.label(_without_truth(batch)).masks_BHW.cpu().numpy())
    return Pairs(np.concatenate(images), np.concatenate(masks).astype(np.uint8))


def _without_truth(batch: Batch) -> Pictures:
    """This method never looks at it."""
    nothing = batch.images_BCHW.new_full(batch.images_BCHW[:, 0].shape, float("nan"))
    return Pictures(batch, Truth(nothing, nothing))
