"""Boxes of one image to a picture of instances, in which no pixel has two.

Shape suffixes: N variants, C channels, H height, W width, h w sides of a crop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labelmill.pipeline.instances.box_clusters import BoxClusterer, Crop, crop_around
from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.labelers.common.joint_upsampling import snap_to_edges
from labelmill.schemas.instances import Instance, InstanceSettings


@dataclass(frozen=True)
class ImageInstances:
    """The instances of an image."""

    numbers_HW: Tensor
    """int64: the number of each pixel's instance, 0 for none."""
    instances: tuple[Instance, ...]
    """By number, from 1."""
    without_pixels: tuple[Box, ...]
    """Boxes in which nothing was found, or all of whose pixels are others'."""


Probability = Callable[[Crop], Tensor]
"""How likely each pixel of a crop is of the thing in its box [h, w], float32."""


def by_clusters(clusterer: BoxClusterer, variants_NCHW: Tensor, image_CHW: Tensor) -> Probability:
    """From variants of the image, at its size; edges are snapped to the image's."""

    def probability(crop: Crop) -> Tensor:
        maps_11hw = clusterer(variants_NCHW, crop)[None, None]
        radius = max(2, min(image_CHW.shape[1:]) // 32)
        return snap_to_edges(maps_11hw, image_CHW[None, :, crop.rows, crop.columns].float(), radius)[0, 0]

    return probability


def by_foreground(is_foreground_HW: Tensor) -> Probability:
    """From what a labeler calls foreground."""
    return lambda crop: is_foreground_HW[crop.rows, crop.columns].float()


def image_instances(
    boxes: Sequence[Box],
    size: tuple[int, int],
    probability: Probability,
    settings: InstanceSettings,
    device: torch.device,
) -> ImageInstances:
    """One box at a time, so that memory does not grow with their number. size: the image's height and width."""
    best_HW = torch.full(size, -torch.inf, device=device)
    numbers_HW = torch.zeros(size, dtype=torch.int64, device=device)
    for number, box in enumerate(boxes, start=1):
        crop = crop_around(box, size, settings, device)
        probability_hw = probability(crop)
        claim_hw = _claim(box, crop, probability_hw, settings.overlap)
        claim_hw = torch.where((probability_hw > 0.5) & (crop.distance_hw <= settings.box_error), claim_hw, -torch.inf)
        best_hw, numbers_hw = best_HW[crop.rows, crop.columns], numbers_HW[crop.rows, crop.columns]
        is_stronger_hw = claim_hw > best_hw
        best_HW[crop.rows, crop.columns] = torch.where(is_stronger_hw, claim_hw, best_hw)
        numbers_HW[crop.rows, crop.columns] = torch.where(is_stronger_hw, number, numbers_hw)
    return _numbered(boxes, numbers_HW)


def _claim(box: Box, crop: Crop, probability_hw: Tensor, overlap: str) -> Tensor:
    """How strongly an instance claims pixels that are its own, for a comparison with others [h, w]."""
    if overlap == "evidence":
        return probability_hw
    if overlap == "score":
        return torch.full_like(probability_hw, box.score)
    device = probability_hw.device
    y_h = torch.arange(crop.rows.start, crop.rows.stop, device=device) + 0.5 - (box.top + box.bottom) / 2
    x_w = torch.arange(crop.columns.start, crop.columns.stop, device=device) + 0.5 - (box.left + box.right) / 2
    return -((y_h / box.height).square()[:, None] + (x_w / box.width).square()[None])


def _numbered(boxes: Sequence[Box], numbers_HW: Tensor) -> ImageInstances:
    """Instances that have pixels, numbered without gaps."""
    pixels = torch.bincount(numbers_HW.flatten().cpu(), minlength=len(boxes) + 1).tolist()[1:]
    renumbered = [0]
    instances: list[Instance] = []
    for box, count in zip(boxes, pixels, strict=True):
        if count:
            instances.append(Instance(id=len(instances) + 1, label=box.label, score=box.score, box=box.corner_and_size))
        renumbered.append(len(instances) if count else 0)
    numbers_HW = torch.tensor(renumbered, device=numbers_HW.device)[numbers_HW]
    without = tuple(box for box, count in zip(boxes, pixels, strict=True) if not count)
    return ImageInstances(numbers_HW, tuple(instances), without)
