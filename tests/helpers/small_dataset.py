"""A small dataset of painted samples, written by the real store, writer, publisher and manifest."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from labelmill.pipeline.dataset.claim import claim_fingerprint, claim_output
from labelmill.pipeline.dataset.existing_shards import existing_records
from labelmill.pipeline.dataset.finish import DatasetContext, finish_dataset
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.shards.publisher import publish_shard
from labelmill.pipeline.shards.writer import ShardWriter
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import DatasetConfig, GeneratorConfig, RunConfig
from labelmill.schemas.fingerprint import fingerprint, identity
from labelmill.schemas.manifest import CheckpointSource, Manifest
from labelmill.schemas.sample import IGNORE, Candidate, ImageShape, OptionalFile, Sample, SampleMetadata, sample_key
from labelmill.schemas.shard import Kind, ShardRecord, ShardTask

CLASSES = ("background", "skin", "hair")
RESOLUTION = 16
IMAGE_SHAPE = ImageShape(height=RESOLUTION, width=RESOLUTION, channels=3)
FITTED = b"a fitted labeler"
CHECKPOINT = CheckpointSource(
    reference="bundled:painted", sha256="c" * 64, format="painted 1", licence="Apache-2.0", attribution="A. Painter"
)
DROP_REASON = "low_confidence"
KIND = Kind(device="cpu", processor="brush", libraries={"paint": "1.0"}, settings={})
LABELER_PATH = "labeler/style_mixing.safetensors"


def dropped(seed: int) -> bool:
    """Two of every five candidates."""
    return seed % 5 in (1, 2)


def paint(seed: int, resolution: int = RESOLUTION) -> tuple[np.ndarray, np.ndarray]:
    """Image (HWC uint8, smooth) and mask (HW uint8, the classes and ignore) of a seed."""
    random = np.random.default_rng(seed)
    row, column = np.mgrid[:resolution, :resolution] / resolution
    image_HWC = np.stack([np.cos(3 * (a * row + b * column)) * 100 + 128 for a, b in random.random((3, 2))], axis=-1)
    mask_HW = random.integers(0, len(CLASSES), (resolution, resolution), dtype=np.uint8)
    mask_HW[0, 0] = IGNORE
    return image_HWC.astype(np.uint8), mask_HW


def candidate_of(seed: int, mask_HW: np.ndarray) -> Candidate:
    pixels = {name: int((mask_HW == value).sum()) for value, name in enumerate(CLASSES)}
    return Candidate(
        seed=seed,
        class_id=None,
        drop_reason=DROP_REASON if dropped(seed) else None,
        confidence=round(0.25 + (seed % 7) / 10, 6),
        largest_component=0.75,
        class_pixels={**pixels, "ignore": int((mask_HW == IGNORE).sum())},
    )


def sample_of(
    seed: int, image_HWC: np.ndarray, mask_HW: np.ndarray, before: Sequence[Candidate] = (), run: str = "f" * 64
) -> Sample:
    unit_HWC = image_HWC / 255
    red, green, blue = unit_HWC.mean((0, 1)).tolist()
    red_square, green_square, blue_square = np.square(unit_HWC).mean((0, 1)).tolist()
    metadata = SampleMetadata(
        key=sample_key(seed),
        candidate=candidate_of(seed, mask_HW),
        dropped_before=tuple(before),
        channel_means=(red, green, blue),
        channel_square_means=(red_square, green_square, blue_square),
        truncation_psi=0.7,
        truncation_cutoff=None,
        noise="const",
        method="style_mixing",
        checkpoint_sha256=CHECKPOINT.sha256,
        fingerprint=run,
    )
    return Sample(metadata.key, image_HWC, mask_HW, metadata)


def samples_of(task: ShardTask, run: str = "f" * 64, dimmed: int = 1) -> Iterator[Sample]:
    """A task's kept samples, each with the candidates dropped before it; images are so many times darker."""
    waiting: list[Candidate] = []
    kept = 0
    for seed in range(task.first_seed, task.first_seed + task.num_seeds):
        image_HWC, mask_HW = paint(seed)
        if dropped(seed):
            waiting.append(candidate_of(seed, mask_HW))
        elif kept < task.num_samples:
            yield sample_of(seed, image_HWC // dimmed, mask_HW, waiting, run)
            waiting, kept = [], kept + 1


def tar_of(
    samples: Iterator[Sample],
    threads: Executor,
    image_format: str = "png",
    optional_files: tuple[OptionalFile, ...] = (),
) -> bytes:
    writer = ShardWriter(image_format, 95, threads, optional_files)
    for sample in samples:
        writer.add(sample)
    return writer.finish()


def origin_of(
    run: str = "f" * 64, image_format: str = "png", optional_files: tuple[OptionalFile, ...] = ()
) -> ShardOrigin:
    return ShardOrigin(run, CHECKPOINT.sha256, CLASSES, IMAGE_SHAPE, image_format, optional_files)


def publish(
    store: Store,
    task: ShardTask,
    tar: bytes,
    run: str = "f" * 64,
    host: str = "here",
    image_format: str = "png",
    optional_files: tuple[OptionalFile, ...] = (),
) -> ShardRecord:
    return publish_shard(
        store,
        task,
        tar,
        origin=origin_of(run, image_format, optional_files),
        seconds_by_stage={"synthesise": 1.5},
        attempts=1,
        host=host,
        kind=KIND,
    )


def records_of(
    store: Store, config: RunConfig, run: str | None = None, optional_files: tuple[OptionalFile, ...] = ()
) -> list[ShardRecord]:
    """Of the shards that are there, as a run finds them."""
    origin = origin_of(run or context_of(config).fingerprint, config.dataset.image_format, optional_files)
    return existing_records(store, config, origin, repair=True)


def config_of(output: Path | str, image_format: str = "png", samples: int = 11) -> RunConfig:
    """Shards of four samples; the last one holds the remainder."""
    dataset = DatasetConfig(samples=samples, samples_per_shard=4, image_format=image_format, first_seed=100)  # type: ignore[arg-type]
    return RunConfig(
        name="painted", output=str(output), generator=GeneratorConfig(checkpoint="bundled:painted"), dataset=dataset
    )


def context_of(config: RunConfig, optional_files: tuple[OptionalFile, ...] = ()) -> DatasetContext:
    labeler_sha256 = hashlib.sha256(FITTED).hexdigest()
    run = fingerprint(identity(config, CHECKPOINT.sha256, {}), labeler_sha256)
    return DatasetContext(config, CHECKPOINT, labeler_sha256, run, CLASSES, IMAGE_SHAPE, optional_files)


def claim(store: Store, config: RunConfig) -> None:
    """run.json, labeler and fingerprint.json."""
    ours = identity(config, CHECKPOINT.sha256, {})
    claim_output(store, ours)
    store.create(LABELER_PATH, FITTED)
    claim_fingerprint(store, ours, LABELER_PATH, hashlib.sha256(FITTED).hexdigest(), KIND)


def write_dataset(output: Path | str, image_format: str = "png", samples: int = 11) -> tuple[Store, Manifest]:
    """The whole way from run.json to manifest.json."""
    config = config_of(output, image_format, samples)
    context, store = context_of(config), Store.open(config.output)
    claim(store, config)
    with ThreadPoolExecutor(2) as threads:
        for task in shard_tasks(config):
            tar = tar_of(samples_of(task, context.fingerprint), threads, image_format)
            publish(store, task, tar, context.fingerprint, image_format=image_format)
    return store, finish_dataset(store, records_of(store, config), context)
