"""One shard, start to finish: seeds -> Batch -> Labels -> quality -> Sample -> tar.

One thread feeds the device and does little else: other threads judge and encode what comes back, in any order, and the
results are taken in the order of seeds, so that a shard's bytes do not depend on who was faster.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler, to_uint8
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.pictures.class_maps import are_shares, batch_levels, sum_to_one
from labelmill.pipeline.process.host_copy import HostCopy
from labelmill.pipeline.process.stopwatch import Stopwatch
from labelmill.pipeline.quality import judge_sample
from labelmill.pipeline.shards.writer import ShardWriter
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ShardError
from labelmill.schemas.instances import Instance
from labelmill.schemas.sample import Candidate, Sample, SampleMetadata, sample_key
from labelmill.schemas.shard import ShardTask

# Batches that the device has been asked for: one that it works on, and one that waits for it or is read.
_SLOTS = 2


@dataclass(frozen=True)
class LoadedRun:
    """All that making a shard needs, loaded once a worker."""

    config: RunConfig
    sampler: Sampler
    labeler: Labeler
    checkpoint_sha256: str
    fingerprint: str
    encoders: Executor
    """Threads that judge and encode while the device works."""


@dataclass(frozen=True)
class MadeShard:
    """A shard as bytes, not yet published."""

    tar: bytes
    rejects_tar: bytes | None
    """The dropped candidates, when they are kept and there were any."""
    num_candidates: int
    seconds_by_stage: dict[str, float]
    """Of the thread that feeds the device. It launches in `synthesise` and `label`, waits for the device in `copy`, for
    judgements in `quality` and for encoders in `encode`."""


@dataclass(frozen=True)
class DrawnShard:
    """A shard that has all of its samples, some of which are still being encoded."""

    kept: ShardWriter
    rejects: ShardWriter
    num_candidates: int
    seconds_by_stage: dict[str, float]

    def finish(self) -> MadeShard:
        """The shard as bytes, once: for any thread but the one that feeds the device. Raises what encoding raised."""
        rejects_tar = self.rejects.finish() if self.rejects.num_samples else None
        return MadeShard(self.kept.finish(), rejects_tar, self.num_candidates, self.seconds_by_stage)


def make_shard(task: ShardTask, run: LoadedRun) -> DrawnShard:
    """Try the shard's seeds in order until it holds what it should.

    Raises ShardError when its block of seeds runs out, saying which rule dropped what.
    """
    stopwatch = Stopwatch()
    kept, rejects = _writer(run), _writer(run)
    dropped: list[Candidate] = []
    reasons: Counter[str] = Counter()
    block = range(task.first_seed, task.first_seed + task.num_seeds)
    for sample in candidates(block, run, stopwatch, lambda: task.num_samples - kept.num_samples):
        candidate = sample.metadata.candidate
        if candidate.drop_reason is not None:
            dropped.append(candidate)
            reasons[candidate.drop_reason] += 1
            if run.config.execution.keep_rejects:
                with stopwatch.stage("encode"):
                    rejects.add(sample)
            continue
        with stopwatch.stage("encode"):
            kept.add(_accounting_for(sample, dropped))
        dropped = []
        if kept.num_samples == task.num_samples:
            num_candidates = kept.num_samples + reasons.total()
            return DrawnShard(kept, rejects, num_candidates, stopwatch.seconds_by_stage)
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    raise ShardError(
        f"shard {task.name}: its {task.num_seeds} seeds gave {kept.num_samples} samples of the "
        f"{task.num_samples} wanted; dropped: {counts}. Loosen `quality`, or raise "
        f"dataset.max_candidates_per_sample ({run.config.dataset.max_candidates_per_sample}) in a new output"
    )


def candidates(
    seeds: Sequence[int], run: LoadedRun, stopwatch: Stopwatch, num_wanted: Callable[[], int] | None = None
) -> Iterator[Sample]:
    """A labeled and judged sample of every seed, in order; those to be dropped say so in their metadata.

    The device always has a batch to work on while the one before it is read and judged.
    num_wanted: how many more samples may be needed if all of them are kept; batches beyond are not synthesised. None:
    all.
    """
    size = run.config.numerics.batch_size
    batches = deque(seeds[start : start + size] for start in range(0, len(seeds), size))
    launched: deque[_Launched] = deque()
    judging: deque[Future[Sample]] = deque()
    try:
        while batches or launched or judging:
            num_hoped_for = len(judging) + sum(len(batch.seeds) for batch in launched)
            may_launch = num_wanted is None or num_hoped_for < num_wanted()
            if judging and judging[0].done():
                yield judging.popleft().result()
            elif batches and may_launch and len(launched) < _SLOTS:
                launched.append(_launch(batches.popleft(), run, stopwatch))
            elif launched and len(judging) <= size:
                rows = launched.popleft().rows(stopwatch)
                judging.extend(run.encoders.submit(_judged, run, row) for row in rows)
            else:
                with stopwatch.stage("quality"):
                    sample = judging.popleft().result()
                yield sample
    finally:
        for future in judging:
            future.cancel()


@dataclass(frozen=True)
class _Row:
    """A labeled image on the host, not yet judged."""

    seed: int
    class_id: int | None
    confidence: float
    is_uncertain: bool
    pixels: dict[str, NDArray[Any]]
    """By the field of Sample that they become."""
    instances: tuple[Instance, ...] | None


@dataclass(frozen=True)
class _Launched:
    """A batch that the device has been asked for."""

    seeds: tuple[int, ...]
    class_ids: tuple[int | None, ...]
    pixels: HostCopy
    """By the field of Sample that they become."""
    values: HostCopy
    instances: tuple[tuple[Instance, ...] | None, ...]

    def rows(self, stopwatch: Stopwatch) -> list[_Row]:
        """What the device gave, as soon as it is there. Raises ShardError for images that are none."""
        with stopwatch.stage("copy"):
            pixels, values = self.pixels.wait(), self.values.wait()
        _check_finite(self.seeds, values["is_finite"].tolist())
        assert values["has_sound_alpha"].all(), "alpha is from 0 to 1"
        assert values["has_sound_probabilities"].all(), "probabilities are from 0 to 1 and sum to 1"
        confidences, are_uncertain = values["confidence"].tolist(), values["is_uncertain"].tolist()
        return [
            _Row(*known, {field: arrays[row] for field, arrays in pixels.items()}, self.instances[row])
            for row, known in enumerate(zip(self.seeds, self.class_ids, confidences, are_uncertain, strict=True))
        ]


def _launch(seeds: Sequence[int], run: LoadedRun, stopwatch: Stopwatch) -> _Launched:
    """Ask the device for a batch, its labels, and copies of them, without waiting for any."""
    with stopwatch.stage("synthesise"):
        batch = run.sampler.sample(seeds, run.labeler.layers)
    with stopwatch.stage("label"):
        labels = run.labeler.label(batch)
    with stopwatch.stage("copy"):
        pixels, values = _pixels(batch, labels), _values(batch, labels)
        instances = labels.instances_B or (None,) * len(batch)
        return _Launched(batch.seeds, batch.class_ids, HostCopy(pixels), HostCopy(values), instances)


def _pixels(batch: Batch, labels: Labels) -> dict[str, Tensor]:
    """What a batch's files hold, by the field of Sample, on the device; what the labeler does not give is not there."""
    pixels = {
        "image_HWC": to_uint8(batch.images_BCHW),
        "mask_HW": labels.masks_BHW,
        "alpha_HW": None if labels.alpha_BHW is None else (labels.alpha_BHW * 255).round().byte(),
        "instances_HW": labels.instances_BHW,
        "probabilities_KHW": None if labels.probabilities_BKHW is None else batch_levels(labels.probabilities_BKHW),
    }
    return {field: tensor for field, tensor in pixels.items() if tensor is not None}


def _values(batch: Batch, labels: Labels) -> dict[str, Tensor]:
    """What is to be known of each image [B], on the device."""
    sure_B = torch.zeros_like(labels.confidence_B, dtype=torch.bool)
    sound_B = ~sure_B
    alpha_BHW, probabilities_BKHW = labels.alpha_BHW, labels.probabilities_BKHW
    return {
        "confidence": labels.confidence_B,
        "is_uncertain": sure_B if labels.uncertain_B is None else labels.uncertain_B,
        "is_finite": batch.images_BCHW.isfinite().flatten(1).all(dim=1),
        "has_sound_alpha": sound_B if alpha_BHW is None else are_shares(alpha_BHW),
        "has_sound_probabilities": sound_B if probabilities_BKHW is None else sum_to_one(probabilities_BKHW),
    }


def _check_finite(seeds: Sequence[int], are_finite: Sequence[bool]) -> None:
    """What is no number would be written as black. Raises ShardError."""
    failed = [seed for seed, is_finite in zip(seeds, are_finite, strict=True) if not is_finite]
    if failed:
        raise ShardError(
            f"seed {failed[0]}: the generator gives an image with pixels that are no finite numbers. Half precision "
            "overflows in generators that were trained without it: set numerics.precision to float32 (bfloat16 has its "
            "range, too) in a new output; where it is float32 already, look at the checkpoint with `labelmill inspect`"
        )


def _judged(run: LoadedRun, row: _Row) -> Sample:
    """The sample of a row, for a thread beside the one that feeds the device."""
    candidate = judge_sample(
        row.pixels["mask_HW"],
        row.confidence,
        row.class_id,
        row.seed,
        run.labeler.classes,
        run.config.quality,
        uncertain=row.is_uncertain,
        num_instances=len(row.instances or ()),
    )
    generator = run.config.generator
    means, deviations = (values[:, 0] / 255 for values in cv2.meanStdDev(row.pixels["image_HWC"]))
    metadata = SampleMetadata(
        key=sample_key(candidate.seed),
        candidate=candidate,
        dropped_before=(),
        channel_means=_rounded(means),
        channel_square_means=_rounded(np.square(means) + np.square(deviations)),
        truncation_psi=generator.truncation_psi,
        truncation_cutoff=generator.truncation_cutoff,
        noise=generator.noise,
        method=run.config.labeler.method,
        checkpoint_sha256=run.checkpoint_sha256,
        fingerprint=run.fingerprint,
        instances=row.instances,
    )
    pixels = dict(row.pixels)
    if "instances_HW" in pixels:
        pixels["instances_HW"] = _numbers(pixels["instances_HW"])
    return Sample(metadata.key, metadata=metadata, **pixels)


def _numbers(instances_HW: NDArray[np.int64]) -> NDArray[np.uint16]:
    least, most = instances_HW.min(), instances_HW.max()
    assert least >= 0 and most < 2**16, f"instances are from 0 to 65535, not {least} to {most}"
    return instances_HW.astype(np.uint16)


def _accounting_for(sample: Sample, dropped: list[Candidate]) -> Sample:
    """The sample, carrying the candidates dropped since the one before it."""
    if not dropped:
        return sample
    metadata = sample.metadata.model_copy(update={"dropped_before": tuple(dropped)})
    return replace(sample, metadata=metadata)


def _writer(run: LoadedRun) -> ShardWriter:
    dataset = run.config.dataset
    optional_files = run.labeler.optional_files
    return ShardWriter(dataset.image_format, dataset.image_quality, run.encoders, optional_files)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
