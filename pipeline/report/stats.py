"""A dataset in numbers, from its records and parquet files, one shard at a time: no image is read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.dataset.manifest import read_index
from labelmill.pipeline.report.data import read_candidates, read_manifest_and_records
from labelmill.pipeline.shards.publisher import tar_path
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.statistics import ClassStatistics, DatasetStatistics

CONFIDENCE_BINS = 20
_BAR = 40
_IGNORE = "ignore"


def dataset_statistics(store: Store, split: str | None) -> DatasetStatistics:
    """Count a split of a dataset; all splits for None.

    Raises OutputError for a dataset that is not complete, for a split that it does not have or that holds no sample,
    and where a record or parquet file is missing or damaged.
    """
    manifest, records = read_manifest_and_records(store)
    splits = {shard.url: shard.split for shard in read_index(store).shardlist}
    chosen = [record for record in records if split in (None, splits.get(tar_path(record.name)))]
    if not chosen:
        held = ", ".join(f"{name} {count}" for name, count in manifest.samples_by_split.items())
        raise OutputError(f"{store.url}: no sample in split {split!r}; it has {held}")
    pixels, images, dropped = Counter[str](), Counter[str](), Counter[str]()
    kept, lost = (np.zeros(CONFIDENCE_BINS, np.int64) for _ in range(2))
    for record in chosen:
        shard = read_candidates(store, manifest, record)
        for name, fractions in shard.fractions.items():
            images[name] += int((fractions[shard.kept] > 0).sum())
        pixels.update(record.class_pixels)
        dropped.update(record.dropped_by_reason)
        kept += _histogram(shard.scores["confidence"][shard.kept])
        lost += _histogram(shard.scores["confidence"][~shard.kept])
    return DatasetStatistics(
        split=split,
        samples=sum(record.num_samples for record in chosen),
        candidates=sum(record.num_candidates for record in chosen),
        samples_by_split=manifest.samples_by_split,
        classes=_classes(manifest, pixels, images),
        ignore_share=pixels[_IGNORE] / pixels.total(),
        ignore_images=images[_IGNORE],
        confidence_bounds=[number / CONFIDENCE_BINS for number in range(CONFIDENCE_BINS + 1)],
        confidence_kept=kept.tolist(),
        confidence_dropped=lost.tolist(),
        dropped_by_reason=dict(sorted(dropped.items())),
    )


def _histogram(confidences: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts [CONFIDENCE_BINS] of confidences, which have 6 decimals, as decimals: 0.35 begins a bin."""
    bins = np.floor(confidences * CONFIDENCE_BINS + 1e-9).astype(np.int64)
    return np.bincount(np.clip(bins, 0, CONFIDENCE_BINS - 1), minlength=CONFIDENCE_BINS)


def _classes(manifest: Manifest, pixels: Mapping[str, int], images: Mapping[str, int]) -> list[ClassStatistics]:
    weights = class_weights(
        [pixels.get(name, 0) for name in manifest.classes],
        [images[name] * manifest.image_shape.num_pixels for name in manifest.classes],
    )
    total = sum(pixels.values())
    return [
        ClassStatistics(
            name=name, value=value, share=pixels.get(name, 0) / total, images=images[name], weight=weights[value]
        )
        for value, name in enumerate(manifest.classes)
    ]


def class_weights(pixels: Sequence[int], pixels_around: Sequence[int]) -> list[float]:
    """Weights of classes by median frequency balancing (labelmill.schemas.statistics), of 4 decimals; 0 for a class
    without a pixel.

    pixels: of each class. pixels_around: of all images that contain the class.
    """
    frequencies = [count / around if count else 0.0 for count, around in zip(pixels, pixels_around, strict=True)]
    present = [frequency for frequency in frequencies if frequency]
    return [round(median(present) / frequency, 4) if frequency else 0.0 for frequency in frequencies]


def statistics_lines(found: DatasetStatistics, output: str) -> list[str]:
    """The numbers for people."""
    of_split = "" if found.split is None else f" in split {found.split}"
    lost = found.candidates - found.samples
    lines = [
        f"{output}: {found.samples} samples{of_split} of {found.candidates} candidates, "
        f"{100 * lost / found.candidates:.1f} % dropped",
        "splits: " + ", ".join(f"{name} {count}" for name, count in found.samples_by_split.items()),
        "",
        *_class_lines(found),
        "weight: suggested for a loss, by median frequency balancing; 0 for a class that does not occur",
        "",
        *_confidence_lines(found),
    ]
    if found.dropped_by_reason:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found.dropped_by_reason.items())
        lines += ["", f"dropped: {reasons}"]
    return lines


def _class_lines(found: DatasetStatistics) -> list[str]:
    rows = [("value", "class", "pixels", "images", "weight")]
    for entry in found.classes:
        rows.append((str(entry.value), entry.name, _percent(entry.share), str(entry.images), f"{entry.weight:.3f}"))
    rows.append((str(IGNORE), _IGNORE, _percent(found.ignore_share), str(found.ignore_images), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join(
            text.ljust(width) if column == 1 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _confidence_lines(found: DatasetStatistics) -> list[str]:
    """A bar per bin between the lowest and the highest that hold anything: # kept, - dropped."""
    totals = np.array([found.confidence_kept, found.confidence_dropped]).sum(axis=0)
    filled = np.flatnonzero(totals)
    lines = ["confidence  kept  dropped"]
    for position in range(int(filled[0]), int(filled[-1]) + 1):
        low, high = found.confidence_bounds[position : position + 2]
        kept, lost = found.confidence_kept[position], found.confidence_dropped[position]
        bar = "#" * round(_BAR * kept / totals.max()) + "-" * round(_BAR * lost / totals.max())
        lines.append(f"{low:.2f}-{high:.2f}  {kept:>4}  {lost:>7}  {bar}".rstrip())
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
