"""A labeler whose images have instances as well.

Shape suffixes: B batch, N variants, C channels, H height, W width, L rows of w, D style.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.instances.box_clusters import BoxClusterer
from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.instances.detectors import Detector
from labelmill.pipeline.instances.masks import ImageInstances, by_clusters, by_foreground, image_instances
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.labelers.style_mixing.mixing import mix_in_passes
from labelmill.pipeline.process.log import warn
from labelmill.schemas.instances import InstanceSettings
from labelmill.schemas.sample import IGNORE, OptionalFile


class InstanceLabeler:
    """What another labeler says, and instances of a detector's boxes beside it."""

    def __init__(
        self,
        labeler: Labeler,
        detector: Detector,
        settings: InstanceSettings,
        sampler: Sampler,
        donors_NLD: Tensor,
        crossover: int,
    ) -> None:
        self._labeler, self._detector, self._settings = labeler, detector, settings
        self._generator, self._device = sampler.generator, sampler.device
        self._batch_size = sampler.numerics.batch_size
        self._donors_NLD, self._crossover = donors_NLD, crossover
        self._clusterer = BoxClusterer(settings, sampler.device)
        self.classes, self.layers = labeler.classes, labeler.layers
        self.optional_files: tuple[OptionalFile, ...] = (*labeler.optional_files, "instances.png")

    def label(self, batch: Batch) -> Labels:
        """Labels of the batch's images. Raises TooManyInstancesError for more boxes than can be numbered."""
        labels, boxes_B = self._labeler.label(batch), self._detector(batch)
        found = self._by_foreground(labels, boxes_B) if self._settings.masks_from == "labeler" else None
        found = found or self._by_clusters(batch, boxes_B)
        for key, each in zip(batch.keys, found, strict=True):
            for box in each.without_pixels:
                warn(
                    f"instances: {key}: box of {box.label!r} {list(box.corner_and_size)} shows nothing that stands out "
                    f"from its surroundings and is not another's; it is left out"
                )
        return replace(
            labels,
            instances_BHW=torch.stack([each.numbers_HW for each in found]),
            instances_B=tuple(each.instances for each in found),
        )

    def _by_foreground(self, labels: Labels, boxes_B: Sequence[tuple[Box, ...]]) -> list[ImageInstances]:
        masks_BHW = labels.masks_BHW
        is_foreground_BHW = (masks_BHW != 0) & (masks_BHW != IGNORE)
        size = (masks_BHW.shape[1], masks_BHW.shape[2])
        return [
            image_instances(boxes, size, by_foreground(is_foreground_HW), self._settings, self._device)
            for boxes, is_foreground_HW in zip(boxes_B, is_foreground_BHW, strict=True)
        ]

    def _by_clusters(self, batch: Batch, boxes_B: Sequence[tuple[Box, ...]]) -> list[ImageInstances]:
        size = (batch.images_BCHW.shape[2], batch.images_BCHW.shape[3])
        nothing = torch.zeros(size, dtype=torch.int64, device=self._device)
        found = [ImageInstances(nothing, (), ())] * len(batch)
        positions = [position for position, boxes in enumerate(boxes_B) if boxes]
        if not positions:
            return found
        some = batch.select(positions)
        passes = mix_in_passes(
            self._generator, some, self._donors_NLD, self._crossover, None, batch_size=self._batch_size
        )
        for those, variants_BNCHW in passes:
            for each, variants_NCHW in zip(those, variants_BNCHW, strict=False):
                probability = by_clusters(self._clusterer, variants_NCHW, some.images_BCHW[each])
                boxes = boxes_B[positions[each]]
                found[positions[each]] = image_instances(boxes, size, probability, self._settings, self._device)
        return found
