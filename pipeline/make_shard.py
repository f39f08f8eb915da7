"""One shard, start to finish: seeds -> Batch -> Labels -> quality -> Sample -> tar."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.generator.sampling import Batch, Sampler, to_uint8
from pipeline.labelers.base import Labeler
from pipeline.quality import judge
from pipeline.shard_writer import ShardWriter
from pipeline.stopwatch import Stopwatch
from schemas.config import RunConfig
from schemas.errors import ShardError
from schemas.sample import Candidate, Sample, SampleMetadata, sample_key
from schemas.shard import ShardTask


@dataclass(frozen=True)
class Mill:
    """All that making a shard needs, loaded once a worker."""

    config: RunConfig
    sampler: Sampler
    labeler: Labeler
    checkpoint_sha256: str
    fingerprint: str
    encoders: Executor
    """Threads that encode while the device works."""


@dataclass(frozen=True)
class MadeShard:
    """A shard as bytes, not yet published."""

    tar: bytes
    rejects_tar: bytes | None
    """The dropped candidates, when they are kept and there were any."""
    num_candidates: int
    seconds_by_stage: dict[str, float]


def make_shard(task: ShardTask, mill: Mill) -> MadeShard:
    """Try the shard's seeds in order until it holds what it should.

    Raises ShardError when its block of seeds runs out, saying which rule dropped what.
    """
    stopwatch = Stopwatch()
    kept, rejects = _writer(mill), _writer(mill)
    dropped: list[Candidate] = []
    reasons: Counter[str] = Counter()
    block = range(task.first_seed, task.first_seed + task.num_seeds)
    for sample in candidates(block, mill, stopwatch):
        candidate = sample.metadata.candidate
        if candidate.drop_reason is not None:
            dropped.append(candidate)
            reasons[candidate.drop_reason] += 1
            if mill.config.execution.keep_rejects:
                rejects.add(sample)
            continue
        kept.add(_accounting_for(sample, dropped))
        dropped = []
        if kept.num_samples == task.num_samples:
            with stopwatch.stage("encode"):
                tar = kept.finish()
                rejects_tar = rejects.finish() if rejects.num_samples else None
            num_candidates = kept.num_samples + reasons.total()
            return MadeShard(tar, rejects_tar, num_candidates, stopwatch.seconds_by_stage)
    counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    raise ShardError(
        f"shard {task.name}: its {task.num_seeds} seeds gave {kept.num_samples} samples of the "
        f"{task.num_samples} wanted; dropped: {counts}. Loosen `quality`, or raise "
        f"dataset.max_candidates_per_sample ({mill.config.dataset.max_candidates_per_sample}) in a new output"
    )


def candidates(seeds: Sequence[int], mill: Mill, stopwatch: Stopwatch) -> Iterator[Sample]:
    """A labeled and judged sample of every seed, in order; those to be dropped say so in their metadata."""
    batch_size = mill.config.numerics.batch_size
    for start in range(0, len(seeds), batch_size):
        with stopwatch.stage("synthesise"):
            batch = mill.sampler.sample(seeds[start : start + batch_size], mill.labeler.layers)
        with stopwatch.stage("label"):
            labels = mill.labeler.label(batch)
        with stopwatch.stage("copy"):
            images_BHWC = to_uint8(batch.images_BCHW).cpu().numpy()
            masks_BHW = labels.masks_BHW.cpu().numpy()
            confidences = labels.confidence_B.tolist()
        for row, seed in enumerate(batch.seeds):
            with stopwatch.stage("quality"):
                candidate = judge(
                    masks_BHW[row],
                    confidences[row],
                    batch.class_ids[row],
                    seed,
                    mill.labeler.classes,
                    mill.config.quality,
                )
            yield _sample(mill, batch, candidate, images_BHWC[row], masks_BHW[row])


def _sample(
    mill: Mill, batch: Batch, candidate: Candidate, image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8]
) -> Sample:
    generator = mill.config.generator
    means, deviations = (values[:, 0] / 255 for values in cv2.meanStdDev(image_HWC))
    metadata = SampleMetadata(
        key=sample_key(candidate.seed),
        candidate=candidate,
        dropped_before=(),
        channel_means=_rounded(means),
        channel_square_means=_rounded(np.square(means) + np.square(deviations)),
        truncation_psi=generator.truncation_psi,
        truncation_cutoff=generator.truncation_cutoff,
        noise=generator.noise,
        method=mill.config.labeler.method,
        checkpoint_sha256=mill.checkpoint_sha256,
        fingerprint=mill.fingerprint,
    )
    return Sample(metadata.key, image_HWC, mask_HW, metadata)


def _accounting_for(sample: Sample, dropped: list[Candidate]) -> Sample:
    """The sample, carrying the candidates dropped since the one before it."""
    metadata = sample.metadata.model_copy(update={"dropped_before": tuple(dropped)})
    return Sample(sample.key, sample.image_HWC, sample.mask_HW, metadata)


def _writer(mill: Mill) -> ShardWriter:
    dataset = mill.config.dataset
    return ShardWriter(dataset.image_format, dataset.image_quality, mill.encoders)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
