"""A run's promise, from its annotated images and its fitted labeler.

Shape suffixes: N images, H height, W width.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.annotations.read import Annotations, read_annotations
from labelmill.pipeline.annotations.regenerate import check_checkpoint, regenerate
from labelmill.pipeline.generator.checkpoints.source import located_reference
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.labelers.methods import method_of
from labelmill.pipeline.promise.limit import JudgedMasks, choose_limit, masks_needed
from labelmill.pipeline.quality import judge_sample
from labelmill.pipeline.segmentation.metrics import ClassCounts, confusion_matrix, mean
from labelmill.schemas.annotations import GeneratorDraw
from labelmill.schemas.config import QualityConfig, RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.promise import Promise, PromiseConfig
from labelmill.schemas.sample import IGNORE

KEY = "quality.promise"
LEAST_LABELED = 0.5
"""Share of an image's pixels that must be labeled for the image to tell how good its mask is."""


def read_promised(config: PromiseConfig) -> Annotations:
    """The annotated images of a promise. Raises ConfigError."""
    return read_annotations(located_reference(config.annotations, config.folder))


def promise_inputs(config: RunConfig) -> dict[str, str]:
    """Content hashes (SHA-256, hex), by name, of what calibration reads: part of a run's identity. Raises
    ConfigError."""
    promise = config.quality.promise
    return {} if promise is None else {"promise_annotations": read_promised(promise).sha256}


def check_promise(config: RunConfig, checkpoint_sha256: str) -> None:
    """Raises ConfigError where the annotated images are no random sample of what the run labels, or its labeler learns
    from them."""
    promise = config.quality.promise
    if promise is None:
        return
    if not config.quality.enabled:
        raise ConfigError(f"{KEY}: quality.enabled is false, so no sample is dropped; set it to true")
    annotations = read_promised(promise)
    about = annotations.about
    check_checkpoint(annotations, checkpoint_sha256)
    ours = GeneratorDraw.of(config.generator)
    if about.draw != ours:
        pairs = zip(about.draw.model_dump().items(), ours.model_dump().values(), strict=True)
        differing = "; ".join(f"{key} {theirs} there, {mine} here" for (key, theirs), mine in pairs if theirs != mine)
        raise ConfigError(
            f"{KEY}.annotations: {promise.annotations}: made with other settings than the run's ({differing}), so its "
            f"masks say nothing of the run's. Pick and annotate images with this run file"
        )
    if about.picked is not None and about.picked.choose != "random":
        raise ConfigError(
            f"{KEY}.annotations: {promise.annotations}: chosen by {about.picked.choose}; a promise needs a random "
            f"sample: `labelmill annotate pick RUN.YAML --choose random`"
        )
    if any(image.photo for image in about.images):
        raise ConfigError(
            f"{KEY}.annotations: {promise.annotations}: holds photos; a promise is about generated images and needs a "
            f"random sample of these: `labelmill annotate pick RUN.YAML --choose random`"
        )
    without = len(about.images) - len(annotations)
    if without:
        raise ConfigError(
            f"{KEY}.annotations: {promise.annotations}: {without} of its {len(about.images)} images have no labels. "
            f"Whoever leaves out what is hard to label leaves no random sample: label all of them"
        )
    open_shares = (annotations.masks_NHW == IGNORE).mean(axis=(1, 2))
    unfinished = [key for key, share in zip(annotations.keys, open_shares, strict=True) if share > 1 - LEAST_LABELED]
    if unfinished:
        shown = ", ".join(unfinished[:3]) + (", ..." if len(unfinished) > 3 else "")
        raise ConfigError(
            f"{KEY}.annotations: {promise.annotations}: {len(unfinished)} images have labels on less than "
            f"{LEAST_LABELED:.0%} of their pixels ({shown}). What is easy to label says little of the rest: label "
            f"whole images"
        )
    _check_unseen(config, promise, annotations)


def _check_unseen(config: RunConfig, promise: PromiseConfig, annotations: Annotations) -> None:
    shared = sorted(method_of(config.labeler).taught_keys(config.labeler) & {*annotations.keys})
    if shared:
        raise ConfigError(
            f"{KEY}.annotations: {promise.annotations}: the labeler learns from {len(shared)} of these images "
            f"({', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}); annotate others for the promise"
        )


def calibrate(config: RunConfig, sampler: Sampler, labeler: Labeler, checkpoint_sha256: str | None) -> Promise | None:
    """Choose the confidence limit that keeps a run's promise; None for a run without one.

    Raises ConfigError where the annotated images cannot carry it: then the message says how many would.
    """
    promise = config.quality.promise
    if promise is None:
        return None
    annotations = read_promised(promise)
    truths_NHW = as_classes(annotations.masks_NHW, annotations.about.classes, labeler.classes, promise.annotations)
    below: list[bool] = []
    annotated = MaskJudge(labeler.classes, config.quality)
    for batch in regenerate(annotations, sampler, labeler.layers, checkpoint_sha256):
        truths_BHW = truths_NHW[len(below) : len(below) + len(batch)]
        for mask_HW, truth_HW in zip(annotated.add(batch, labeler), truths_BHW, strict=True):
            below.append(image_miou(mask_HW, truth_HW, labeler.classes) < promise.miou)
    others = MaskJudge(labeler.classes, config.quality)
    first = promise.share_first_seed
    for batch in sampler.batches(range(first, first + promise.share_samples), labeler.layers):
        others.add(batch, labeler)
    below_N, lowest = np.array(below), config.quality.confidence_min
    return _promise(promise, lowest, annotations, below_N, annotated.judged(), others.judged())


def _promise(
    promise: PromiseConfig,
    lowest: float,
    annotations: Annotations,
    below_N: NDArray[np.bool_],
    annotated: JudgedMasks,
    others: JudgedMasks,
) -> Promise:
    limit = choose_limit(annotated, below_N, others, lowest, promise.risk)
    if limit is None:
        needed = masks_needed(annotated, below_N, others, lowest, promise.risk)
        advice = (
            f"about {needed} annotated images would do. A second try on more images of the same set keeps somewhat "
            f"less than it promises: lower the risk for it. Either needs a new output"
            if needed is not None
            else "more annotated images would not help: even the masks of highest confidence are too often below. "
            "Lower miou, raise risk, or use a better labeler, in a new output"
        )
        raise ConfigError(
            f"{KEY}: {len(below_N)} annotated images, of which {int(below_N.sum())} have masks below "
            f"{promise.miou:g}, do not carry a risk of {promise.risk:g}; {advice}"
        )
    return Promise(
        miou=promise.miou,
        risk=promise.risk,
        annotations_sha256=annotations.sha256,
        num_masks=len(below_N),
        labeled_share=round(float((annotations.masks_NHW != IGNORE).mean()), 6),
        num_below=int(below_N.sum()),
        confidence_min=limit.confidence_min,
        num_kept=limit.num_kept,
        num_kept_below=limit.num_kept_below,
        estimated_risk=round(limit.estimated_risk, 6),
        kept_share=round(limit.kept_share, 6),
        kept_share_before=round(float(others.kept(lowest).mean()), 6),
    )


class MaskJudge:
    """Labels batches, and collects what the quality rules say of their masks."""

    def __init__(self, classes: Sequence[str], quality: QualityConfig) -> None:
        self._classes, self._quality = classes, quality.model_copy(update={"confidence_min": 0.0})
        self._confidences: list[float] = []
        self._passes: list[bool] = []

    def add(self, batch: Batch, labeler: Labeler) -> Iterable[NDArray[np.uint8]]:
        """The masks [H, W] of a batch."""
        labels = labeler.label(batch)
        masks_BHW, confidences = labels.masks_BHW.cpu().numpy(), labels.confidence_B.tolist()
        uncertain = [False] * len(batch) if labels.uncertain_B is None else labels.uncertain_B.tolist()
        for row, seed in enumerate(batch.seeds):
            candidate = judge_sample(
                masks_BHW[row],
                confidences[row],
                batch.class_ids[row],
                seed,
                self._classes,
                self._quality,
                uncertain=uncertain[row],
                num_instances=0 if labels.instances_B is None else len(labels.instances_B[row]),
            )
            self._confidences.append(candidate.confidence)
            self._passes.append(candidate.kept)
        return list(masks_BHW)

    def judged(self) -> JudgedMasks:
        return JudgedMasks(np.array(self._confidences), np.array(self._passes))


def image_miou(mask_HW: NDArray[np.uint8], truth_HW: NDArray[np.uint8], classes: Sequence[str]) -> float:
    """The mean IoU over the classes that mask or truth show; 1 where nothing is known of the image."""
    miou = mean(ClassCounts(confusion_matrix(mask_HW, truth_HW), len(classes)).iou())
    return 1.0 if miou is None else miou


def as_classes(
    masks_NHW: NDArray[np.uint8], theirs: Sequence[str], ours: Sequence[str], source: str
) -> NDArray[np.uint8]:
    """Annotated masks as values of the labeler's classes, matched by name.

    Of a labeler of two classes the second stands for all annotated classes but the first, unless it is one of them.
    Raises ConfigError for classes that the labeler does not know.
    """
    values = np.full(IGNORE + 1, IGNORE, np.uint8)
    strange = [name for name in theirs if name not in ours]
    if not strange:
        values[: len(theirs)] = [ours.index(name) for name in theirs]
    elif len(ours) == 2 and ours[0] == theirs[0] and ours[1] not in theirs:
        values[: len(theirs)] = [0] + [1] * (len(theirs) - 1)
    else:
        raise ConfigError(
            f"{KEY}.annotations: {source}: names {', '.join(strange)}, which the labeler does not know; its classes "
            f"are {', '.join(ours)}"
        )
    return values[masks_NHW]
