"""Fitting the few-shot labeler: features scaled without annotations, a head taught by them, its doubt calibrated.

Shape suffixes: B batch, K classes, N images, M members.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.few_shot.features import layers_of
from labelmill.pipeline.labelers.few_shot.fitted import FewShotProvenance, FittedFewShot
from labelmill.pipeline.labelers.few_shot.heads import Head, linear_head
from labelmill.pipeline.labelers.few_shot.label_free import LabelFree, agreement, fit_label_free
from labelmill.pipeline.labelers.few_shot.labeler import (
    FewShotLabeler,
    check_few_shot,
    check_fit_memory,
    check_memory,
    weighted_iou,
)
from labelmill.pipeline.labelers.few_shot.linear import coefficients_of_features, fit_linear_head
from labelmill.pipeline.labelers.few_shot.pixels import LabeledPixels, read_labeled_pixels
from labelmill.pipeline.labelers.few_shot.shots import Mask, Shots
from labelmill.pipeline.labelers.few_shot.statistics import Projection, project
from labelmill.pipeline.labelers.few_shot.taught_networks import network_of_images, networks_of_pixels
from labelmill.pipeline.labelers.few_shot.uncertainty import limit
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.labelers.few_shot import FewShotConfig, LinearHeadConfig
from labelmill.schemas.sample import IGNORE

# Annotated images are left out one by one, or in this many groups, to learn how far a head's word is to be trusted; of
# fewer images than the second number too little would be left to learn from.
_MOST_FOLDS, _LEAST_IMAGES = 5, 3


def fit_few_shot(
    config: FewShotConfig,
    sampler: Sampler,
    shots: Shots,
    checkpoint_sha256: str | None = None,
    label_free: LabelFree | None = None,
    work: Path | None = None,
) -> FittedFewShot:
    """Learn from annotated images. label_free: what `fit_label_free` gave for these settings, which fits of other
    annotations share; None to learn it now. work: where networks keep what an interrupted fit resumes from; None for a
    fit that nobody resumes.

    Raises ConfigError, before any work, where configuration, generator and memory do not go together, and what the
    shots' images raise.
    """
    check_few_shot(config, sampler)
    check_memory(config, sampler, len(shots.classes))
    check_fit_memory(config, sampler, len(shots))
    with repeatable_kernels(), _folder(work) as folder:
        label_free = label_free or fit_label_free(config, sampler, checkpoint_sha256)
        return _Fit(config, sampler, shots, label_free, folder).run(checkpoint_sha256)


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    with TemporaryDirectory(prefix="labelmill-fit-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class _Doubt:
    """What annotated images that were left out say of a head."""

    iou: float | None
    scale: float


_NO_DOUBT = _Doubt(None, 1.0)
"""Of heads that take too long to be taught several times: their own word stands."""


class _Fit:
    """The steps of `fit`, in their order; each takes what the ones before it found."""

    def __init__(
        self, config: FewShotConfig, sampler: Sampler, shots: Shots, label_free: LabelFree, work: Path
    ) -> None:
        self.config, self.sampler, self.shots, self.label_free, self.work = config, sampler, shots, label_free, work
        self.spec = sampler.generator.spec
        self.layers = layers_of(config, self.spec)

    def run(self, checkpoint_sha256: str | None) -> FittedFewShot:
        config, spec, shots = self.config, self.spec, self.shots
        agreed, mixing = self._foreground()
        head, doubt = self._taught(mixing)
        provenance = FewShotProvenance(
            config=config,
            checkpoint_sha256=checkpoint_sha256,
            resolution=spec.resolution,
            num_ws=spec.num_ws,
            w_dim=spec.w_dim,
            annotations_sha256=shots.sha256,
            classes=list(shots.classes),
            num_images=len(shots),
            class_pixels=[int((shots.masks_NHW == value).sum()) for value in range(len(shots.classes))],
            class_images=[
                int((shots.masks_NHW == value).any(axis=(1, 2)).sum()) for value in range(len(shots.classes))
            ],
            mixing=None if mixing is None else mixing.provenance,
            foreground_agreement=agreed,
            held_out_iou=doubt.iou,
            doubt_scale=doubt.scale,
            limit=self._limit(head, mixing),
        )
        return FittedFewShot(provenance, head, mixing)

    def _foreground(self) -> tuple[float | None, FittedStyleMixing | None]:
        """How far the label-free foreground agrees with the annotations, and the foreground where it is to be used."""
        mixing = self.label_free.mixing
        if self.config.foreground == "learned" or mixing is None:
            return None, None
        agreed = agreement(mixing.readout, self.shots)
        trusted = self.config.foreground == "label_free" or (agreed or 0) >= self.config.least_agreement
        return None if agreed is None else round(agreed, 4), mixing if trusted else None

    def _taught(self, mixing: FittedStyleMixing | None) -> tuple[Head, _Doubt]:
        head = self.config.head
        if head.type in ("cnn", "decoder"):
            return network_of_images(self.config, self.spec, self.shots, self.work).to(self.sampler.device), _NO_DOUBT
        projection = self._projection()
        pixels = read_labeled_pixels(self.shots, self.layers, projection)
        if head.type == "mlp":
            networks = networks_of_pixels(self.config, self.spec, pixels, projection, self.work)
            return networks.to(self.sampler.device), _NO_DOUBT
        assert isinstance(head, LinearHeadConfig) and projection is not None
        return self._linear(pixels, projection), self._doubt(pixels, projection, mixing)

    def _projection(self) -> Projection | None:
        if self.label_free.statistics is None:
            return None
        components = self.config.head.components if isinstance(self.config.head, LinearHeadConfig) else None
        return project(self.label_free.statistics, self.config.normalisation, components)

    def _linear(self, pixels: LabeledPixels, projection: Projection) -> Head:
        assert isinstance(self.config.head, LinearHeadConfig)
        coefficients_MPK = fit_linear_head(self.config.head, pixels)
        weights_DQ, bias_Q = coefficients_of_features(coefficients_MPK, projection)
        device = self.sampler.device
        return linear_head(self.config, self.spec, weights_DQ.to(device), bias_Q.to(device))

    def _labeler(
        self, head: Head, mixing: FittedStyleMixing | None, limit: float | None = None, doubt_scale: float = 1.0
    ) -> FewShotLabeler:
        readout = None if mixing is None else mixing.readout
        return FewShotLabeler(self.config, self.sampler, self.shots.classes, head, readout, limit, doubt_scale)

    def _doubt(self, pixels: LabeledPixels, projection: Projection, mixing: FittedStyleMixing | None) -> _Doubt:
        """How wrong masks of annotated images are when these are left out, beside how wrong the head says they are."""
        count = len(self.shots)
        if count < _LEAST_IMAGES:
            return _NO_DOUBT
        num_folds, numbers = min(count, _MOST_FOLDS), range(count)
        taught = [pixels.of_images([n for n in numbers if n % num_folds != fold]) for fold in range(num_folds)]
        labelers = [self._labeler(self._linear(some, projection), mixing) for some in taught]
        ious, surenesses = [], []
        for number, image in enumerate(self._images(labelers[0].layers)):
            judged = labelers[number % num_folds].judge(image)
            ious.append(_iou(judged.masks_BHW[0].cpu(), self.shots.masks_NHW[number], len(self.shots.classes)))
            surenesses.append(float(judged.sureness_B[0]))
        wrong_N, said_N = 1 - np.array(ious), 1 - np.array(surenesses)
        scale = float((wrong_N * said_N).sum() / max(float(np.square(said_N).sum()), 1e-12))
        return _Doubt(round(float(np.mean(ious)), 4), round(scale, 6))

    def _images(self, layers: Sequence[str]) -> Iterator[Batch]:
        """The annotated images, one by one."""
        for batch in self.shots.batches(layers):
            yield from (batch.select([index]) for index in range(len(batch)))

    def _limit(self, head: Head, mixing: FittedStyleMixing | None) -> float | None:
        """The uncertainty that the wanted share of images without annotations lies beyond."""
        config = self.config
        if config.drop_portion == 0:
            return None
        labeler, first = self._labeler(head, mixing), config.calibration_first_seed
        seeds = range(first, first + config.calibration_samples)
        found = [
            labeler.judge(batch).uncertainty_B[: len(batch)] for batch in self.sampler.batches(seeds, labeler.layers)
        ]
        return float(limit(torch.cat(found).cpu(), config.drop_portion))


def _iou(mask_HW: Tensor, truth_HW: Mask, num_classes: int) -> float:
    """Of a mask with an annotation, classes weighted by their annotated pixels; ignored pixels do not count."""
    truth = torch.from_numpy(truth_HW.astype(np.int64))
    known = (truth != IGNORE).float()
    first, second = (
        torch.stack([(values == value).float() * known for value in range(num_classes)])[None]
        for values in (mask_HW.long(), truth)
    )
    return float(weighted_iou(first, second)[0])
