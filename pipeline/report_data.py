"""What the report shows, read from a finished dataset: scores from every parquet file, a few samples from tars.

Shape suffixes: H, W height and width; C the channels red, green, blue.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from pipeline.manifest import read_manifest
from pipeline.overlay import Pixels, resize, resize_mask
from pipeline.shard_publisher import parquet_path, read_record, tar_path
from pipeline.shard_reader import DamagedTarError, members_in
from pipeline.shard_writer import member_names
from pipeline.store import Store
from schemas.errors import OutputError
from schemas.manifest import Manifest
from schemas.sample import Sample, sample_key
from schemas.shard import ShardRecord

SCORES = ("confidence", "foreground", "largest_component")
NUM_BINS = 200
"""Bins of the score counts, over [0, 1]."""
MAX_EDGE = 256
"""Pictures are kept no larger, in pixels a side."""
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
    """A candidate to be shown, at most MAX_EDGE pixels a side."""

    row: Row
    image_HWC: Pixels
    mask_HW: Pixels


@dataclass
class Tally:
    """Sums over all candidates, and the few candidates that the report picks."""

    num_kept: int = 0
    containing: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Kept samples in which a class has a pixel."""
    histograms: dict[tuple[str, bool], NDArray[np.int64]] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros(NUM_BINS, dtype=np.int64))
    )
    """Candidates a bin, by score and whether they were kept."""
    least_confident: list[Row] = field(default_factory=list)
    """Kept samples, the least confident first."""
    dropped: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    """The first dropped candidates of each reason."""


def read_dataset(store: Store) -> tuple[Manifest, list[ShardRecord]]:
    """The manifest and the records it counts, by index. Raises OutputError when the dataset is not complete."""
    manifest = read_manifest(store)
    records = [read_record(store, index) for index in range(manifest.num_shards)]
    found = [record for record in records if record is not None]
    if len(found) < len(records):
        raise OutputError(
            f"{store.url}: {len(records) - len(found)} of {len(records)} records are missing or damaged, the first "
            f"records/{records.index(None):06d}.json; `labelmill verify --repair` writes them anew"
        )
    return manifest, found


def tally_candidates(
    store: Store, manifest: Manifest, records: Sequence[ShardRecord], num_least_confident: int, num_dropped: int
) -> Tally:
    """Go through all parquet files, one at a time. Raises OutputError when one is missing or damaged."""
    tally = Tally()
    for record in records:
        table = _read_table(store, record)
        kept, scores = table["kept"].to_numpy(), _scores(table, manifest)
        for (score, values), keep in ((item, keep) for item in scores.items() for keep in (True, False)):
            counts, _ = np.histogram(values[kept == keep], bins=NUM_BINS, range=(0, 1))
            tally.histograms[score, keep] += counts
        for name in manifest.classes:
            tally.containing[name] += int((table[f"fraction_{name}"].to_numpy()[kept] > 0).sum())
        tally.num_kept += int(kept.sum())
        _pick_least_confident(tally, table, scores, record, num_least_confident)
        _pick_dropped(tally, table, scores, record, num_dropped)
    return tally


def spread_rows(store: Store, manifest: Manifest, records: Sequence[ShardRecord], count: int) -> list[Row]:
    """Up to `count` kept samples, evenly spaced over some evenly spaced shards."""
    chosen = [records[index] for index in spread(len(records), _SHARDS_TO_PICK_FROM)]
    positions = spread(sum(record.num_samples for record in chosen), count)
    rows, start = [], 0
    for record in chosen:
        table = _read_table(store, record)
        scores = _scores(table, manifest)
        kept = np.flatnonzero(table["kept"].to_numpy())
        inside = [position - start for position in positions if start <= position < start + len(kept)]
        rows += _rows(table, scores, record, kept[inside])
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


def read_pictures(store: Store, rows: Iterable[Row], image_format: str) -> dict[int, Picture]:
    """Kept samples by seed, from their tars, of which one at a time is in memory.

    Raises OutputError when a shard is missing or damaged, or lacks a sample.
    """
    by_shard: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        by_shard[row.shard][row.seed] = row
    pictures = {}
    for shard, wanted in by_shard.items():
        try:
            pictures.update(_pictures_in(store.read(tar_path(shard)), wanted, image_format))
        except (FileNotFoundError, DamagedTarError) as error:
            raise OutputError(
                f"{store.url}/{tar_path(shard)}: cannot be shown: {error}. `labelmill verify` tells what is wrong"
            ) from error
    return pictures


def picture(row: Row, sample: Sample) -> Picture:
    """A sample, made no larger than is shown."""
    edge = min(sample.image_HWC.shape[0], MAX_EDGE)
    return Picture(row, resize(sample.image_HWC, edge), resize_mask(sample.mask_HW, edge))


def _pictures_in(tar: bytes, wanted: dict[int, Row], image_format: str) -> Iterator[tuple[int, Picture]]:
    names = {name: seed for seed in wanted for name in member_names(sample_key(seed), image_format)[:2]}
    images: dict[int, Pixels] = {}
    masks: dict[int, Pixels] = {}
    for member in members_in(tar):
        if member.name not in names:
            continue
        is_mask = member.name.endswith(".mask.png")
        pixels = cv2.imdecode(
            np.frombuffer(member.data, np.uint8), cv2.IMREAD_UNCHANGED if is_mask else cv2.IMREAD_COLOR_RGB
        )
        if pixels is None or pixels.ndim != (2 if is_mask else 3):
            raise DamagedTarError(f"{member.name} is not a readable picture")
        edge = min(pixels.shape[0], MAX_EDGE)
        if is_mask:
            masks[names[member.name]] = resize_mask(np.asarray(pixels, dtype=np.uint8), edge)
        else:
            images[names[member.name]] = resize(np.asarray(pixels, dtype=np.uint8), edge)
    for seed, row in wanted.items():
        if seed not in images or seed not in masks:
            raise DamagedTarError(f"sample {sample_key(seed)} is missing")
        yield seed, Picture(row, images[seed], masks[seed])


def _read_table(store: Store, record: ShardRecord) -> pyarrow.Table:
    path = parquet_path(record.name)
    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(store.read(path)))
    except (FileNotFoundError, pyarrow.ArrowInvalid) as error:
        raise OutputError(
            f"{store.url}/{path}: missing or damaged; `labelmill verify --repair` writes it anew"
        ) from error


def _scores(table: pyarrow.Table, manifest: Manifest) -> dict[str, NDArray[np.float64]]:
    fraction = {name: table[f"fraction_{name}"].to_numpy() for name in (manifest.classes[0], "ignore")}
    foreground = 1 - fraction[manifest.classes[0]] - fraction["ignore"]
    return {
        "confidence": table["confidence"].to_numpy(),
        "foreground": np.clip(foreground, 0, 1),
        "largest_component": table["largest_component"].to_numpy(),
    }


def _rows(
    table: pyarrow.Table,
    scores: dict[str, NDArray[np.float64]],
    record: ShardRecord,
    positions: NDArray[np.int64],
) -> list[Row]:
    seeds, reasons = table["seed"], table["drop_reason"]
    return [
        Row(
            seed=seeds[int(position)].as_py(),
            shard=record.name,
            drop_reason=reasons[int(position)].as_py(),
            **{score: float(scores[score][position]) for score in SCORES},
        )
        for position in positions
    ]


def _pick_least_confident(
    tally: Tally, table: pyarrow.Table, scores: dict[str, NDArray[np.float64]], record: ShardRecord, count: int
) -> None:
    kept = np.flatnonzero(table["kept"].to_numpy())
    lowest = kept[np.argsort(scores["confidence"][kept], kind="stable")[:count]]
    rows = tally.least_confident + _rows(table, scores, record, lowest)
    tally.least_confident = sorted(rows, key=lambda row: (row.confidence, row.seed))[:count]


def _pick_dropped(
    tally: Tally, table: pyarrow.Table, scores: dict[str, NDArray[np.float64]], record: ShardRecord, count: int
) -> None:
    reasons = np.array(table["drop_reason"].to_pylist(), dtype=object)
    for reason in record.dropped_by_reason:
        missing = count - len(tally.dropped[reason])
        positions = np.flatnonzero(reasons == reason)[:missing]
        tally.dropped[reason] += _rows(table, scores, record, positions)
