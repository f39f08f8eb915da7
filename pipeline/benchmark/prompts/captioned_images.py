"""What the avatars prompt model learns from: renders as whole images and as regions of one part, with captions.

A region is one part of a render, or a piece of it, by the exact mask; its caption names the part. Images come as 32 px
generators show them, enlarged, or as finer renders, with the oracles' augmentation either way.

Shape suffixes: B images, R regions, V views (the images, then the regions), K captions, C channels, H, W height and
width, L literals, N renders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.augmentation import degrade, training_batch
from labelmill.pipeline.avatars.avatars import draw_figure, draw_palette
from labelmill.pipeline.avatars.captions import (
    ACCESSORIES,
    UNKNOWN,
    Caption,
    facts,
    part_caption,
    person_caption,
    traits_of,
    truths,
)
from labelmill.pipeline.avatars.figure import CLASSES, HATS
from labelmill.pipeline.avatars.renders import Renders, load_renders
from labelmill.pipeline.benchmark.oracle.images import as_images
from labelmill.pipeline.prompt_models.avatars_networks import IMAGE_SIZE, fit_images

TRAINING_SEEDS = range(10_000_000, 10_012_000)
"""Apart from all seeds of pipeline/benchmark's oracle_data and downstream_data: what generators, oracles and networks
learn from, and all that judges."""

_FINE = 0.3  # share of images drawn at 64 px; the others are 32 px enlarged
_RARE = 0.55  # share of images picked for a hat, glasses or a beard, which are rare
_REGIONS_PER_IMAGE = 4
_SEEN_PIXELS = 3  # of 32 x 32, from which on a part counts as seen
_PART_CAPTIONS, _PERSON_CAPTIONS = 4, 48  # a part, and a batch


@dataclass(frozen=True)
class CaptionedRenders:
    """Renders and what else is known of them."""

    renders: Renders
    traits: tuple[frozenset[str], ...]
    """Kinds and colours of parts, by render."""
    accessories_N3: NDArray[np.bool_]
    """Whether each render has each of ACCESSORIES."""

    def __len__(self) -> int:
        return len(self.traits)


@dataclass(frozen=True)
class PromptBatch:
    """Views and captions, and which fit together."""

    images_BCHW: Tensor
    """float32 [B, 3, 64, 64] in [-1, 1]."""
    region_images_R: Tensor
    """int64: the image that each region lies in."""
    regions_RHW: Tensor
    """bool [R, 32, 32], at least one pixel each."""
    captions: tuple[Caption, ...]
    truths_VK: Tensor
    """float32: 1 true, 0 false, 0.5 unknown."""


def load_captioned(seeds: range, cache: Path, num_processes: int = 1) -> CaptionedRenders:
    """The renders of a range of seeds, drawn into `cache` first when they are missing."""
    figures = [draw_figure(seed) for seed in seeds]
    colours = [draw_palette(seed, variant=0)[0] for seed in seeds]
    accessories = [(f.top in HATS, f.accessories is not None, f.facial_hair is not None) for f in figures]
    return CaptionedRenders(
        load_renders(seeds, cache, num_processes),
        tuple(traits_of(*pair) for pair in zip(figures, colours, strict=True)),
        np.asarray(accessories),
    )


def prompt_batch(data: CaptionedRenders, num_images: int, random: np.random.Generator) -> PromptBatch:
    """A batch that depends on its random source alone."""
    indices = _pick(data, num_images, random)
    images_BCHW, masks_BHW = _images(data.renders, indices, random)
    parts_BN = np.stack([_seen(mask_HW) for mask_HW in masks_BHW])
    parts_BN[:, [CLASSES.index(part) for part in ACCESSORIES]] = data.accessories_N3[indices]
    image_facts = [facts(parts_BN[i], data.traits[index], person=1.0) for i, index in enumerate(indices)]
    owners, regions, region_facts = [], [], []
    for image, mask_HW in enumerate(masks_BHW):
        for part in _region_parts(mask_HW, random):
            owners.append(image)
            regions.append(piece_of(mask_HW == part, random))
            only_N = np.eye(len(CLASSES))[part]
            region_facts.append(facts(only_N, data.traits[indices[image]], person=UNKNOWN))
    captions = _captions(parts_BN, [data.traits[index] for index in indices], random)
    truths_VK = truths(np.stack([*image_facts, *region_facts]), captions)
    return PromptBatch(
        images_BCHW,
        torch.tensor(owners),
        torch.from_numpy(np.stack(regions)),
        captions,
        torch.from_numpy(truths_VK),
    )


def _pick(data: CaptionedRenders, num: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Indices of renders, more than half of them with a rare accessory."""
    indices = random.integers(len(data), size=num)
    for position in np.flatnonzero(random.random(num) < _RARE):
        owners = np.flatnonzero(data.accessories_N3[:, int(random.integers(len(ACCESSORIES)))])
        if len(owners):
            indices[position] = owners[int(random.integers(len(owners)))]
    return indices


def _images(
    renders: Renders, indices: NDArray[np.int64], random: np.random.Generator
) -> tuple[Tensor, NDArray[np.uint8]]:
    """images_BCHW at 64 px and masks_BHW at 32 px of these renders, as good and as bad as generators draw them."""
    coarse_BCHW, coarse_masks_BHW = training_batch(renders, indices, random)
    images_BCHW, masks_BHW = fit_images(coarse_BCHW), coarse_masks_BHW.numpy().astype(np.uint8)
    fine = np.flatnonzero(random.random(len(indices)) < _FINE)
    if len(fine):
        fine_BCHW = as_images(renders.fine_images_NHWC[indices[fine]])
        small_BCHW = functional.avg_pool2d(fine_BCHW, 2)
        flaws_BCHW = degrade(small_BCHW, random) - small_BCHW  # as at 32 px
        images_BCHW[fine] = (fine_BCHW + fit_images(flaws_BCHW)).clamp(-1, 1)
        masks_BHW[fine] = renders.masks_NHW[indices[fine]]
    assert images_BCHW.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE)
    return images_BCHW, masks_BHW


def _seen(mask_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The truth of each class's presence: none of its pixels 0, a few UNKNOWN."""
    counts_N = np.bincount(mask_HW.ravel(), minlength=len(CLASSES))
    return np.where(counts_N >= _SEEN_PIXELS, 1.0, np.where(counts_N > 0, UNKNOWN, 0.0))


def _region_parts(mask_HW: NDArray[np.uint8], random: np.random.Generator) -> list[int]:
    """Some of the classes that are seen, accessories first."""
    seen = np.flatnonzero(_seen(mask_HW) == 1.0)
    rare = [part for part in seen if CLASSES[part] in ACCESSORIES]
    common = [int(part) for part in random.permutation(seen) if CLASSES[part] not in ACCESSORIES]
    return [*map(int, rare), *common][:_REGIONS_PER_IMAGE]


def piece_of(region_HW: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    """The region or, half of the time, what of it lies on one side of a line through one of its pixels."""
    if random.random() < 0.5:
        return region_HW
    rows, columns = np.nonzero(region_HW)
    chosen, angle = int(random.integers(len(rows))), random.uniform(0, 2 * np.pi)
    down, right = np.indices(region_HW.shape)
    side_HW = (down - rows[chosen]) * np.sin(angle) + (right - columns[chosen]) * np.cos(angle) >= 0
    return np.asarray(region_HW & side_HW)


def _captions(
    parts_BN: NDArray[np.float64], traits: list[frozenset[str]], random: np.random.Generator
) -> tuple[Caption, ...]:
    """Texts about every part, and about the persons in some of the images."""
    captions = []
    for part in CLASSES:
        for _ in range(_PART_CAPTIONS):
            captions.append(part_caption(part, traits[int(random.integers(len(traits)))], random))
    for image in random.permutation(len(traits))[:_PERSON_CAPTIONS]:
        present = frozenset(part for part, seen in zip(CLASSES, parts_BN[image], strict=True) if seen == 1.0)
        captions.append(person_caption(present, traits[image], random))
    return tuple(captions)
