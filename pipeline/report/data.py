"""What the report shows, read from a finished dataset: scores from every parquet file, a few samples from tars.

Shape suffixes: H, W height and width; C the channels red, green, blue; K classes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.pictures.class_maps import unstacked
from labelmill.pipeline.pictures.overlay import PALETTE, Pixels, blend, class_colours, resize, resize_mask, rgb
from labelmill.pipeline.shards.publisher import parquet_path, read_record, tar_path
from labelmill.pipeline.shards.reader import DamagedTarError, Member, members_in
from labelmill.pipeline.shards.sample_files import (
    IMAGE,
    INSTANCES,
    MASK,
    METADATA,
    OPTIONAL_FILES,
    SampleFile,
    sample_files,
)
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.sample import Sample, sample_key
from labelmill.schemas.shard import ShardRecord

SCORES = ("confidence", "foreground", "largest_component")
NUM_BINS = 200
"""Bins of the score counts, over [0, 1]."""
MAX_EDGE = 256
"""Pictures are kept no larger, in pixels of the shorter side."""
# Each shard that samples are picked from is read whole, so few are.
_SHARDS_TO_PICK_FROM = 8


@dataclass(frozen=True)
class Row:
    """A candidate, as the parquet files have it. Scores are in [0, 1]."""

    seed: int
    shard: str
    drop_reason: str | None
    confidence: float
    foreground: float
    """Share of the image that is neither background nor ignored."""
    largest_component: float


@dataclass(frozen=True)
class Picture:
    """A candidate to be shown, of at most MAX_EDGE pixels on the shorter side."""

    row: Row
    image_HWC: Pixels
    """RGB."""
    mask_HW: Pixels
    others: tuple[tuple[SampleFile, Pixels], ...] = ()
    """The optional files, [H, W]. Instances are numbered by the colours of PALETTE, over and over; probabilities are
    a picture [H, W, C] of the classes' colours, each as strong as its class is likely."""


@dataclass(frozen=True)
class ShardCandidates:
    """The parquet file of a shard, a row per candidate in the order they were tried."""

    record: ShardRecord
    seeds: NDArray[np.int64]
    kept: NDArray[np.bool_]
    drop_reasons: NDArray[np.object_]
    fractions: dict[str, NDArray[np.float64]]
    """Share of the image, by class and for `ignore`."""
    scores: dict[str, NDArray[np.float64]]
    """By name, one of SCORES."""

    def rows(self, positions: NDArray[np.int64]) -> list[Row]:
        return [
            Row(
                seed=int(self.seeds[position]),
                shard=self.record.name,
                drop_reason=self.drop_reasons[position],
                **{score: float(self.scores[score][position]) for score in SCORES},
            )
            for position in positions
        ]


class Tally:
    """Sums over all candidates, and the few candidates that the report picks."""

    def __init__(self, classes: Sequence[str], num_least_confident: int, num_dropped: int) -> None:
        self.num_kept = 0
        self.containing = dict.fromkeys(classes, 0)
        """Kept samples in which a class, or `ignore`, has a pixel."""
        self.histograms = {
            (score, kept): np.zeros(NUM_BINS, dtype=np.int64) for score in SCORES for kept in (True, False)
        }
        """Candidates a bin, by score and whether they were kept."""
        self.least_confident: list[Row] = []
        """Kept samples, the least confident first."""
        self.dropped: dict[str, list[Row]] = {}
        """The first dropped candidates of each reason."""
        self._num_least_confident = num_least_confident
        self._num_dropped = num_dropped

    def add(self, shard: ShardCandidates) -> None:
        """Count a shard's candidates in."""
        self.num_kept += int(shard.kept.sum())
        for name in self.containing:
            self.containing[name] += int((shard.fractions[name][shard.kept] > 0).sum())
        for (score, kept), counts in self.histograms.items():
            counts += np.histogram(shard.scores[score][shard.kept == kept], bins=NUM_BINS, range=(0, 1))[0]
        self._pick_least_confident(shard)
        for reason in shard.record.dropped_by_reason:
            picked = self.dropped.setdefault(reason, [])
            positions = np.flatnonzero(shard.drop_reasons == reason)
            picked += shard.rows(positions[: self._num_dropped - len(picked)])

    def _pick_least_confident(self, shard: ShardCandidates) -> None:
        kept = np.flatnonzero(shard.kept)
        order = np.argsort(shard.scores["confidence"][kept], kind="stable")
        rows = self.least_confident + shard.rows(kept[order[: self._num_least_confident]])
        self.least_confident = sorted(rows, key=lambda row: (row.confidence, row.seed))[: self._num_least_confident]


def read_manifest_and_records(store: Store) -> tuple[Manifest, list[ShardRecord]]:
    """The manifest and the records it counts, by index. Raises OutputError when the dataset is not complete."""
    manifest = read_manifest(store)
    records = [read_record(store, index) for index in range(manifest.num_shards)]
    found = [record for record in records if record is not None]
    if len(found) < len(records):
        raise OutputError(
            f"{store.url}: {len(records) - len(found)} of {len(records)} records are missing or damaged, the first "
            f"records/{records.index(None):06d}.json; `labelmill verify --repair` rewrites them"
        )
    return manifest, found


def read_candidates(store: Store, manifest: Manifest, record: ShardRecord) -> ShardCandidates:
    """A shard's candidates. Raises OutputError when the parquet file is missing or damaged."""
    path = parquet_path(record.name)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(store.read(path)))
        fractions = {name: table[f"fraction_{name}"].to_numpy() for name in (*manifest.classes, "ignore")}
        foreground = 1 - fractions[manifest.classes[0]] - fractions["ignore"]
        return ShardCandidates(
            record=record,
            seeds=table["seed"].to_numpy(),
            kept=table["kept"].to_numpy(),
            drop_reasons=np.array(table["drop_reason"].to_pylist(), dtype=object),
            fractions=fractions,
            scores={
                "confidence": table["confidence"].to_numpy(),
                "foreground": np.clip(foreground, 0, 1),
                "largest_component": table["largest_component"].to_numpy(),
            },
        )
    except (FileNotFoundError, pyarrow.ArrowInvalid, KeyError) as error:
        raise OutputError(
            f"{store.url}/{path}: missing or damaged ({error}); `labelmill verify --repair` rewrites it"
        ) from error


def spread_rows(store: Store, manifest: Manifest, records: Sequence[ShardRecord], count: int) -> list[Row]:
    """Up to `count` kept samples, evenly spaced over some evenly spaced shards."""
    chosen = [records[index] for index in spread(len(records), _SHARDS_TO_PICK_FROM)]
    positions = np.array(spread(sum(record.num_samples for record in chosen), count))
    rows: list[Row] = []
    start = 0
    for record in chosen:
        shard = read_candidates(store, manifest, record)
        kept = np.flatnonzero(shard.kept)
        inside = (positions >= start) & (positions < start + len(kept))
        rows += shard.rows(kept[positions[inside] - start])
        start += len(kept)
    return rows


def spread(total: int, count: int) -> list[int]:
    """Up to `count` of the indices below `total`, evenly spaced."""
    count = min(total, count)
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def interleaved(groups: Iterable[Sequence[Row]], count: int) -> list[Row]:
    """The first of every group, then the second of every group, and so on, up to `count`; then group by group."""
    groups = list(groups)
    ranks = sorted((rank, number) for number, group in enumerate(groups) for rank in range(len(group)))[:count]
    return [groups[number][rank] for rank, number in sorted(ranks, key=lambda place: (place[1], place[0]))]


def read_pictures(store: Store, rows: Iterable[Row], manifest: Manifest) -> dict[int, Picture]:
    """Kept samples by seed, from their tars, of which one at a time is in memory.

    Raises OutputError when a shard is missing or damaged, or lacks a sample.
    """
    files = sample_files(manifest.image_format, manifest.optional_files)
    by_shard: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        by_shard[row.shard][row.seed] = row
    pictures: dict[int, Picture] = {}
    for shard, wanted in by_shard.items():
        try:
            pictures.update(_pictures_in(store.read(tar_path(shard)), wanted, files, len(manifest.classes)))
        except (FileNotFoundError, DamagedTarError) as error:
            raise OutputError(
                f"{store.url}/{tar_path(shard)}: cannot be shown: {error}. `labelmill verify` shows what is wrong"
            ) from error
    return pictures


def picture(row: Row, sample: Sample) -> Picture:
    """A sample, made no larger than is shown."""
    values = {file: getattr(sample, file.field) for file in (MASK, *OPTIONAL_FILES)}
    small = {file.field: _shown(pixels, file) for file, pixels in values.items() if pixels is not None}
    return _picture(row, {**small, IMAGE.field: _shown(rgb(sample.image_HWC), IMAGE)})


def _pictures_in(
    tar: bytes, wanted: dict[int, Row], files: Sequence[SampleFile], num_classes: int
) -> Iterator[tuple[int, Picture]]:
    pictured = [file for file in files if file.field != METADATA.field]
    names = {file.member(sample_key(seed)): (seed, file) for seed in wanted for file in pictured}
    found: dict[int, dict[str, Pixels]] = defaultdict(dict)
    for member in members_in(tar):
        if member.name in names:
            seed, file = names[member.name]
            found[seed][file.field] = _shown(_decoded(member, file, num_classes), file)
    for seed, row in wanted.items():
        missing = [file.member(sample_key(seed)) for file in pictured if file.field not in found[seed]]
        if missing:
            raise DamagedTarError(f"{missing[0]} is missing")
        yield seed, _picture(row, found[seed])


def _decoded(member: Member, file: SampleFile, num_classes: int) -> NDArray[Any]:
    """A picture's pixels, or a map per class [K, H, W]."""
    flag = cv2.IMREAD_UNCHANGED if file.bit_depths else cv2.IMREAD_COLOR_RGB
    pixels = cv2.imdecode(np.frombuffer(member.data, np.uint8), flag)
    if pixels is None or pixels.ndim != (2 if file.bit_depths else 3):
        raise DamagedTarError(f"{member.name} is not a readable picture")
    if file.is_per_class and len(pixels) % num_classes:
        raise DamagedTarError(f"{member.name} does not hold a map per class")
    return unstacked(np.asarray(pixels, np.uint8), num_classes) if file.is_per_class else np.asarray(pixels)


def _shown(pixels: NDArray[Any], file: SampleFile) -> Pixels:
    """At most MAX_EDGE pixels on the shorter side."""
    if file == INSTANCES:
        pixels = np.where(pixels > 0, 1 + (pixels.astype(np.int32) - 1) % (len(PALETTE) - 1), 0)
    if file.is_per_class:
        pixels = blend(pixels, class_colours(len(pixels)))
    edge = min(*pixels.shape[:2], MAX_EDGE)
    shown = pixels.astype(np.uint8, copy=False)
    return resize_mask(shown, edge) if file.holds_indices else resize(shown, edge)


def _picture(row: Row, pixels: Mapping[str, Pixels]) -> Picture:
    """pixels: by field of Sample."""
    others = tuple((file, pixels[file.field]) for file in OPTIONAL_FILES if file.field in pixels)
    return Picture(row, pixels[IMAGE.field], pixels[MASK.field], others)
