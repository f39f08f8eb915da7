"""One shard, start to finish: seeds -> Batch -> Labels -> quality -> Sample -> tar."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler, to_uint8
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.pictures.class_maps import to_levels
from labelmill.pipeline.process.stopwatch import Stopwatch
from labelmill.pipeline.quality import judge_sample
from labelmill.pipeline.shards.sample_files import OPTIONAL_FILES, SampleFile
from labelmill.pipeline.shards.writer import ShardWriter
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ShardError
from labelmill.schemas.sample import Candidate, Sample, SampleMetadata, sample_key
from labelmill.schemas.shard import ShardTask


@dataclass(frozen=True)
class LoadedRun:
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


def make_shard(task: ShardTask, run: LoadedRun) -> MadeShard:
    """Try the shard's seeds in order until it holds what it should.

    Raises ShardError when its block of seeds runs out, saying which rule dropped what.
    """
    stopwatch = Stopwatch()
    kept, rejects = _writer(run), _writer(run)
    dropped: list[Candidate] = []
    reasons: Counter[str] = Counter()
    block = range(task.first_seed, task.first_seed + task.num_seeds)
    for sample in candidates(block, run, stopwatch):
        candidate = sample.metadata.candidate
        if candidate.drop_reason is not None:
            dropped.append(candidate)
            reasons[candidate.drop_reason] += 1
            if run.config.execution.keep_rejects:
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
        f"dataset.max_candidates_per_sample ({run.config.dataset.max_candidates_per_sample}) in a new output"
    )


def candidates(seeds: Sequence[int], run: LoadedRun, stopwatch: Stopwatch) -> Iterator[Sample]:
    """A labeled and judged sample of every seed, in order; those to be dropped say so in their metadata."""
    batch_size = run.config.numerics.batch_size
    for start in range(0, len(seeds), batch_size):
        with stopwatch.stage("synthesise"):
            batch = run.sampler.sample(seeds[start : start + batch_size], run.labeler.layers)
        with stopwatch.stage("label"):
            labels = run.labeler.label(batch)
        with stopwatch.stage("copy"):
            _check_finite(batch)
            images_BHWC = to_uint8(batch.images_BCHW).cpu().numpy()
            masks_BHW = labels.masks_BHW.cpu().numpy()
            optional = _optional_pixels(labels)
            confidences = labels.confidence_B.tolist()
            uncertain = [False] * len(batch) if labels.uncertain_B is None else labels.uncertain_B.tolist()
        for row, seed in enumerate(batch.seeds):
            with stopwatch.stage("quality"):
                candidate = judge_sample(
                    masks_BHW[row],
                    confidences[row],
                    batch.class_ids[row],
                    seed,
                    run.labeler.classes,
                    run.config.quality,
                    uncertain=uncertain[row],
                )
            of_row = {field: pixels[row] for field, pixels in optional.items()}
            yield _sample(run, candidate, images_BHWC[row], masks_BHW[row], of_row)


def _check_finite(batch: Batch) -> None:
    """What is no number would be written as black. Raises ShardError."""
    is_finite_B = batch.images_BCHW.isfinite().flatten(1).all(dim=1).tolist()
    failed = [seed for seed, is_finite in zip(batch.seeds, is_finite_B, strict=True) if not is_finite]
    if failed:
        raise ShardError(
            f"seed {failed[0]}: the generator gives an image with pixels that are no finite numbers. Half precision "
            "overflows in generators that were trained without it: set numerics.precision to float32 (bfloat16 has its "
            "range, too) in a new output; where it is float32 already, look at the checkpoint with `labelmill inspect`"
        )


def _sample(
    run: LoadedRun,
    candidate: Candidate,
    image_HWC: NDArray[np.uint8],
    mask_HW: NDArray[np.uint8],
    optional: Mapping[str, NDArray[Any]],
) -> Sample:
    generator = run.config.generator
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
        method=run.config.labeler.method,
        checkpoint_sha256=run.checkpoint_sha256,
        fingerprint=run.fingerprint,
    )
    return Sample(metadata.key, image_HWC, mask_HW, metadata, **optional)


def _optional_pixels(labels: Labels) -> dict[str, NDArray[Any]]:
    """What a batch's optional files hold, by field of Sample; without those that the labeler does not give."""
    given = ((file, getattr(labels, file.labels_field)) for file in OPTIONAL_FILES)
    return {file.field: _pixels(file, values) for file, values in given if values is not None}


def _pixels(file: SampleFile, values: Tensor) -> NDArray[Any]:
    if file.is_per_class:
        return np.stack([to_levels(probabilities_KHW) for probabilities_KHW in values])
    return _numbers(values) if file.holds_indices else _shades(values)


def _shades(alpha_BHW: Tensor) -> NDArray[np.uint8]:
    """[0, 1] as 0 to 255, rounded."""
    assert bool(((alpha_BHW >= 0) & (alpha_BHW <= 1)).all()), "alpha is from 0 to 1"
    return (alpha_BHW * 255).round().byte().cpu().numpy()


def _numbers(instances_BHW: Tensor) -> NDArray[np.uint16]:
    numbers_BHW = instances_BHW.cpu().numpy()
    least, most = numbers_BHW.min(), numbers_BHW.max()
    assert least >= 0 and most < 2**16, f"instances are from 0 to 65535, not {least} to {most}"
    return numbers_BHW.astype(np.uint16)


def _accounting_for(sample: Sample, dropped: list[Candidate]) -> Sample:
    """The sample, carrying the candidates dropped since the one before it."""
    metadata = sample.metadata.model_copy(update={"dropped_before": tuple(dropped)})
    return replace(sample, metadata=metadata)


def _writer(run: LoadedRun) -> ShardWriter:
    dataset = run.config.dataset
    optional_files = run.labeler.optional_files
    return ShardWriter(dataset.image_format, dataset.image_quality, run.encoders, optional_files)


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)
