"""What the oracles learn from: exact renders of avatars, drawn once, and what generated images may look like.

Every range of seeds here is disjoint from the others, from what networks of the benchmarks learn from and are tested on
(downstream_data), and from what the bundled prompts learned from (pipeline/benchmark/prompts/captioned_images).

Shape suffixes: N images, B batch, H, W height and width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.avatars.avatars import draw_figure, render
from labelmill.pipeline.avatars.figure import rasterise_classes
from labelmill.pipeline.process.files import made_whole

RESOLUTION = 32
"""Of the first judges' images, in pixels, and of structure by `domain_distance`."""
FINE_IMAGE, FINE_MASK = 2, 4
"""Sizes, in those of the images, of the renders that are moved, scaled and bent before they are reduced to images."""

GENERATOR_SEEDS = range(570_000)
"""Among these are all that the bundled generators learned from: drawings with rare parts were picked out of them."""
TRAINING_SEEDS = {"a": range(1_000_000, 1_024_000), "b": range(2_000_000, 2_024_000)}
VALIDATION_SEEDS = range(3_000_000, 3_000_500)
"""Figures beside the training's curves."""
HELD_OUT_SEEDS = range(4_000_000, 4_001_000)
"""Figures on the cards."""
DISTANCE_SEEDS = (range(5_000_000, 5_010_000), range(6_000_000, 6_010_000))
"""Renders to compare generated images with, and others to compare those renders with."""


@dataclass(frozen=True)
class Renders:
    """Portraits of consecutive seeds, each drawn at a resolution and finer, all uint8; images are RGB."""

    images_NHWC: NDArray[np.uint8]
    """At the resolution."""
    masks_NHW: NDArray[np.uint8]
    """At the resolution."""
    fine_images_NHWC: NDArray[np.uint8]
    """At FINE_IMAGE times the resolution."""
    fine_masks_NHW: NDArray[np.uint8]
    """At FINE_MASK times the resolution."""

    @property
    def resolution(self) -> int:
        """Height and width of images and masks."""
        return int(self.masks_NHW.shape[-1])

    def __len__(self) -> int:
        return len(self.masks_NHW)


def _shapes(resolution: int) -> dict[str, tuple[int, ...]]:
    return {
        "images_NHWC": (resolution, resolution, 3),
        "masks_NHW": (resolution, resolution),
        "fine_images_NHWC": (FINE_IMAGE * resolution, FINE_IMAGE * resolution, 3),
        "fine_masks_NHW": (FINE_MASK * resolution, FINE_MASK * resolution),
    }


def load_renders(seeds: range, cache: Path, num_processes: int = 1, *, resolution: int = RESOLUTION) -> Renders:
    """The renders of a range of seeds, memory-mapped from `cache`, drawn there first when they are missing."""
    folder = cache / f"avatars-{resolution}-{seeds.start}-{len(seeds)}"
    if not folder.is_dir():
        with made_whole(folder) as unfinished:
            unfinished.mkdir()
            _draw(seeds, unfinished, num_processes, resolution)
    return Renders(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _shapes(resolution)})


def _draw(seeds: range, folder: Path, num_processes: int, resolution: int) -> None:
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (len(seeds), *shape))
        for name, shape in _shapes(resolution).items()
    }
    with get_context("spawn").Pool(num_processes) as pool:
        for index, drawn in enumerate(pool.imap(partial(_draw_one, resolution), seeds, chunksize=16)):
            for name, array in arrays.items():
                array[index] = drawn[name]
    for array in arrays.values():
        array.flush()


def _draw_one(resolution: int, seed: int) -> dict[str, NDArray[np.uint8]]:
    cv2.setNumThreads(1)
    avatar = render(seed, resolution)
    return {
        "images_NHWC": avatar.image_HWC,
        "masks_NHW": avatar.mask_HW,
        "fine_images_NHWC": render(seed, FINE_IMAGE * resolution).image_HWC,
        "fine_masks_NHW": rasterise_classes(draw_figure(seed), FINE_MASK * resolution),
    }
