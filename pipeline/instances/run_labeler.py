"""A run's labeler, with instances where the run file asks for them: what is fitted, opened and part of its identity."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.instances.box_file import content_sha256, read_boxes
from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.instances.crossover import choose_row, kept_by_detector, kept_by_edges
from labelmill.pipeline.instances.detection_model import DetectionModel, model_sha256
from labelmill.pipeline.instances.detectors import Detector, FromFile, FromFunction
from labelmill.pipeline.instances.fitted import FittedInstances, InstancesProvenance
from labelmill.pipeline.instances.labeler import InstanceLabeler
from labelmill.pipeline.labelers.base import FittedLabeler
from labelmill.pipeline.labelers.methods import method_of, open_fitted
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.log import warn
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.instances import BoxFileConfig, DetectionModelConfig, DetectorConfig, InstanceSettings
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.sample import sample_key
from labelmill.schemas.section import SEED_LIMIT


@dataclass(frozen=True)
class _WithInstances:
    """A fitted labeler with instances, opened."""

    labeler: InstanceLabeler
    findings: LabelerFindings
    inner: FittedLabeler

    def guide(self) -> dict[str, bytes]:
        return self.inner.guide()


def instance_inputs(config: RunConfig) -> dict[str, str]:
    """Content hashes of what instances read beside the generator, by name. Raises ConfigError."""
    if config.instances is None:
        return {}
    detector = config.instances.detector
    if isinstance(detector, BoxFileConfig):
        return {"boxes": content_sha256(detector)}
    return {"detector": model_sha256(detector)}


def check_instances(config: RunConfig, sampler: Sampler) -> None:
    """Raises ConfigError where instances do not go together with the generator, or boxes cannot be read; warns of each
    box that is left out."""
    if config.instances is None:
        return
    crossover, num_ws = config.instances.crossover, sampler.generator.spec.num_ws
    if crossover != "auto" and not 1 <= crossover < num_ws:
        raise ConfigError(
            f"instances.crossover: {crossover}, but this generator has {num_ws} rows of w; 1 to {num_ws - 1}, or `auto`"
        )
    detector = config.instances.detector
    if isinstance(detector, BoxFileConfig):
        _check_boxes(config, detector, sampler)
    else:
        _check_model(detector, sampler)


def _check_boxes(config: RunConfig, detector: BoxFileConfig, sampler: Sampler) -> None:
    boxes = read_boxes(detector, sampler.generator.spec.image_size)
    for problem in boxes.problems:
        warn(problem)
    first, dataset = config.dataset.first_seed, config.dataset
    keys = {sample_key(seed) for seed in range(first, first + dataset.num_shards * dataset.seeds_per_shard)}
    if keys.isdisjoint(boxes.boxes):
        warn(
            f"instances: none of the {len(boxes.boxes)} images of {detector.path} is of this run's seeds, which are "
            f"called {sample_key(first)} and so on: its samples will have no instances"
        )


def _check_model(detector: DetectionModelConfig, sampler: Sampler) -> None:
    """Looks at one image: what a model takes is seen no other way."""
    shape = sampler.generator.spec.image_shape
    DetectionModel(detector, sampler.device)(np.zeros((1, shape.height, shape.width, shape.channels), np.uint8))


def fit_run_labeler(config: RunConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
    """The fitted file of a run's labeler. Raises what `LabelingMethod.fit` raises."""
    fitted = method_of(config.labeler).fit(config.labeler, sampler, checkpoint_sha256, work)
    if config.instances is None:
        return fitted
    detector = open_detector(config.instances.detector, sampler)
    return fit_instances(config.instances.settings, sampler, detector, fitted).to_bytes()


def fit_run_to_bytes(config: RunConfig, sampler: Sampler, checkpoint_sha256: str | None) -> bytes:
    """The fitted file of a fit that nobody resumes, as a preview's."""
    with TemporaryDirectory(prefix="labelmill-fit-") as folder:
        return fit_run_labeler(config, sampler, checkpoint_sha256, Path(folder))


def open_run_labeler(
    config: RunConfig, sampler: Sampler, fitted: bytes, checkpoint_sha256: str | None
) -> FittedLabeler:
    """The labeler of a run's fitted file. Raises what `LabelingMethod.open` raises."""
    if config.instances is None:
        return open_fitted(config.labeler, sampler, fitted, checkpoint_sha256)
    settings, detector = config.instances.settings, open_detector(config.instances.detector, sampler)
    found = FittedInstances.from_bytes(fitted, settings, sampler.generator.spec, sampler.device)
    inner = open_fitted(config.labeler, sampler, found.labeler, checkpoint_sha256)
    labeler = InstanceLabeler(inner.labeler, detector, settings, sampler, found.donors_NLD, found.provenance.crossover)
    words = [*inner.findings.words, *_words(found.provenance)]
    return _WithInstances(labeler, inner.findings.model_copy(update={"words": words}), inner)


def open_detector(config: DetectorConfig, sampler: Sampler) -> Detector:
    """Who finds boxes. Raises ConfigError where it cannot be read."""
    if isinstance(config, BoxFileConfig):
        return FromFile(read_boxes(config, sampler.generator.spec.image_size).boxes)
    return FromFunction(DetectionModel(config, sampler.device))


def fit_instances(settings: InstanceSettings, sampler: Sampler, detector: Detector, labeler: bytes) -> FittedInstances:
    """Draw the donors and choose the row to mix from. labeler: the other labeler's fitted file."""
    donor_seeds = range(settings.donor_first_seed, settings.donor_first_seed + settings.variants)
    donors_NLD, _ = sampler.ws(donor_seeds, psi=settings.donor_truncation_psi)
    row, kept, num_boxes = settings.crossover, None, 0
    if row == "auto" and settings.masks_from == "labeler":
        row = 1  # no variant is ever made
    if row == "auto":
        with repeatable_kernels():
            kept, num_boxes, least = _kept(settings, sampler, detector, donors_NLD)
        row = choose_row(kept, least)
    provenance = InstancesProvenance(settings=settings, crossover=row, kept=kept, num_boxes=num_boxes)
    return FittedInstances(provenance, donors_NLD, labeler)


def _kept(
    settings: InstanceSettings, sampler: Sampler, detector: Detector, donors_NLD: Tensor
) -> tuple[dict[int, float], int, float]:
    """How much each row keeps, of how many boxes, and how much it must keep."""
    batches = sampler.batches(_seeds_to_look_at(settings, detector))
    looked = [(batch, detector(batch)) for batch in batches]
    num_boxes = sum(len(boxes) for _, boxes_B in looked for boxes in boxes_B)
    if num_boxes and isinstance(detector, FromFunction):
        kept = kept_by_detector(sampler, looked, donors_NLD, detector)
        return kept, num_boxes, settings.min_box_iou
    if not num_boxes:
        looked = [(batch, [_whole(batch)] * len(batch)) for batch, _ in looked]
    return kept_by_edges(sampler, looked, donors_NLD), num_boxes, settings.min_layout_agreement


def _seeds_to_look_at(settings: InstanceSettings, detector: Detector) -> Sequence[int]:
    """Those of the file's first images with boxes that are of seeds, or those that the settings name."""
    named = range(settings.fit_first_seed, settings.fit_first_seed + settings.fit_samples)
    if not isinstance(detector, FromFile):
        return named
    seeds = list(islice(_seeds_with_boxes(detector), settings.fit_samples))
    return seeds if len(seeds) > 1 else named


def _seeds_with_boxes(detector: FromFile) -> Iterator[int]:
    for key, boxes in detector.boxes.items():
        if boxes and key.isascii() and key.isdecimal() and len(key) == len(sample_key(0)) and int(key) < SEED_LIMIT:
            yield int(key)


def _whole(batch: Batch) -> tuple[Box, ...]:
    height, width = batch.images_BCHW.shape[2:]
    return (Box("image", 1.0, 0.0, 0.0, float(width), float(height)),)


def _words(provenance: InstancesProvenance) -> list[str]:
    if provenance.kept is None:
        return []
    share, row = provenance.kept[provenance.crossover], provenance.crossover
    of = f"{provenance.num_boxes} boxes" if provenance.num_boxes else "whole images, as no box was found"
    return [f"instances: variants from row {row} of w on keep {share:.0%} of what is seen in {of}"]
