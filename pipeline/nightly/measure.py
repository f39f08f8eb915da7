"""A snapshot in figures: from its manifest, its records, its parquet files, and a bounded sample of its images.

Shape suffixes: H, W height and width; N images; B the bits of a hash.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import fsum, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.nightly.perceptual_hash import HASH_BITS, near_duplicate_share, perceptual_hash
from labelmill.pipeline.report.data import read_candidates, read_manifest_and_records, spread
from labelmill.pipeline.shards.publisher import tar_path
from labelmill.pipeline.shards.reader import DamagedTarError, members_in
from labelmill.pipeline.shards.sample_files import image_file
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.nightly import SamplingConfig
from labelmill.schemas.nightly_files import Measures
from labelmill.schemas.sample import sample_key
from labelmill.schemas.shard import ShardRecord

NUM_BINS = 10
"""Of the foreground's share."""
_READERS = 16


@dataclass(frozen=True)
class _ShardScores:
    """What a parquet file says of its kept samples, summed up."""

    histogram: NDArray[np.int64]
    num_empty: int
    confidence: float


def measure_snapshot(store: Store, sampling: SamplingConfig) -> Measures:
    """Measure a complete dataset. Raises OutputError when it is not complete, or damaged.

    In memory are one tar, one image and 64 bytes for each sampled image, whatever the dataset's size.
    """
    manifest, records = read_manifest_and_records(store)
    scores = _scores(store, manifest, records)
    hashes_NB = np.array(list(_hashes(store, manifest, records, sampling))).reshape(-1, HASH_BITS)
    return Measures(
        num_samples=manifest.num_samples,
        optional_files=manifest.optional_files,
        class_pixels=manifest.class_pixels,
        foreground_histogram=tuple(np.sum([score.histogram for score in scores], axis=0).tolist()),
        empty_masks=sum(score.num_empty for score in scores) / manifest.num_samples,
        confidence=fsum(score.confidence for score in scores) / manifest.num_samples,
        brightness=fsum(manifest.mean) / len(manifest.mean),
        contrast=sqrt(fsum(deviation**2 for deviation in manifest.std) / len(manifest.std)),
        near_duplicates=near_duplicate_share(hashes_NB, sampling.duplicate_bits),
        num_sampled=len(hashes_NB),
        image_bytes=manifest.num_bytes / manifest.num_samples,
        throughput=throughput(records),
    )


def throughput(records: Sequence[ShardRecord]) -> float | None:
    """Samples a second of work, over the shards that tell their times; None where none does."""
    timed = [record for record in records if record.seconds_by_stage]
    seconds = fsum(spent for record in timed for spent in (record.seconds_by_stage or {}).values())
    return sum(record.num_samples for record in timed) / seconds if seconds > 0 else None


def _scores(store: Store, manifest: Manifest, records: Sequence[ShardRecord]) -> list[_ShardScores]:
    def score(record: ShardRecord) -> _ShardScores:
        shard = read_candidates(store, manifest, record)
        foreground = shard.scores["foreground"][shard.kept]
        return _ShardScores(
            histogram=np.histogram(foreground, bins=NUM_BINS, range=(0, 1))[0],
            # Shares are quotients of whole pixels: less than half a one is none.
            num_empty=int((foreground * manifest.image_shape.num_pixels < 0.5).sum()),
            confidence=float(shard.scores["confidence"][shard.kept].sum()),
        )

    # A bucket answers each read after milliseconds, whatever its size.
    with ThreadPoolExecutor(_READERS if store.folder is None else os.cpu_count()) as readers:
        return list(readers.map(score, records))


def _hashes(
    store: Store, manifest: Manifest, records: Sequence[ShardRecord], sampling: SamplingConfig
) -> Iterator[NDArray[np.bool_]]:
    """Perceptual hashes of evenly spread samples of evenly spread shards, of which one at a time is read."""
    chosen = [records[index] for index in spread(len(records), sampling.shards)]
    positions = np.array(spread(sum(record.num_samples for record in chosen), sampling.images))
    start = 0
    for record in chosen:
        inside = positions[(positions >= start) & (positions < start + record.num_samples)] - start
        start += record.num_samples
        path = tar_path(record.name)
        try:
            yield from _hashes_in(store.read(path), _keys(store, manifest, record, inside), manifest.image_format)
        except (FileNotFoundError, DamagedTarError) as error:
            raise OutputError(f"{store.url}/{path}: cannot be measured: {error}") from error


def _keys(store: Store, manifest: Manifest, record: ShardRecord, positions: NDArray[np.int64]) -> list[str]:
    shard = read_candidates(store, manifest, record)
    return [sample_key(int(seed)) for seed in shard.seeds[shard.kept][positions]]


def _hashes_in(tar: bytes, keys: Sequence[str], image_format: str) -> Iterator[NDArray[np.bool_]]:
    wanted = {image_file(image_format).member(key) for key in keys}
    for member in members_in(tar):
        if member.name not in wanted:
            continue
        gray_HW = cv2.imdecode(np.frombuffer(member.data, np.uint8), cv2.IMREAD_GRAYSCALE)
        if gray_HW is None:
            raise DamagedTarError(f"{member.name} is not a readable picture")
        wanted.remove(member.name)
        yield perceptual_hash(np.asarray(gray_HW, dtype=np.uint8))
    if wanted:
        raise DamagedTarError(f"{min(wanted)} is missing")
