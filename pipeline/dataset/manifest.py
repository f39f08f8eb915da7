"""The files that describe a dataset, as its shards give them: index, card, croissant and manifest."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import fsum, sqrt
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from labelmill.pipeline.dataset.card import dataset_card
from labelmill.pipeline.dataset.croissant import croissant
from labelmill.pipeline.shards.publisher import tar_path
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import Index, IndexedShard, Manifest, RunFile
from labelmill.schemas.shard import ShardRecord

RUN_PATH = "run.json"
INDEX_PATH = "index.json"
MANIFEST_PATH = "manifest.json"

Model = TypeVar("Model", bound=BaseModel)


def read_run_file(store: Store) -> RunFile:
    """Raises OutputError where run.json is missing or is not one."""
    return _read(store, RUN_PATH, RunFile)


def read_index(store: Store) -> Index:
    """Raises OutputError where index.json is missing or is not one."""
    return _read(store, INDEX_PATH, Index)


def indexed_sha256(store: Store) -> dict[str, str]:
    """SHA-256 of each tar as index.json has it; empty where it cannot be read, which `verify` reports."""
    try:
        return {shard.url: shard.sha256 for shard in read_index(store).shardlist}
    except OutputError:
        return {}


def read_manifest(store: Store) -> Manifest:
    """Raises OutputError where the dataset has no manifest, hence is not complete."""
    return _read(store, MANIFEST_PATH, Manifest)


def recounted(manifest: Manifest, records: Sequence[ShardRecord], assigned: Sequence[str]) -> Manifest:
    """The manifest with the counts and statistics that the records give. assigned: each shard's split, by index."""
    return manifest.model_copy(update=asdict(totals(records, manifest.config["dataset"]["splits"], assigned)))


def descriptions(manifest: Manifest, records: Sequence[ShardRecord], assigned: Sequence[str]) -> dict[str, bytes]:
    """Every file that describes the dataset, by path, in the order in which they must be written."""
    index = build_index(manifest.name, records, manifest.config["dataset"]["splits"], assigned)
    return {
        INDEX_PATH: json_bytes(index),
        "README.md": dataset_card(manifest, index).encode(),
        "croissant.json": croissant(manifest, index),
        MANIFEST_PATH: json_bytes(manifest),
    }


def build_index(name: str, records: Sequence[ShardRecord], splits: Iterable[str], assigned: Sequence[str]) -> Index:
    """The shard list, in order."""
    shards = [
        IndexedShard(
            url=tar_path(record.name),
            nsamples=record.num_samples,
            filesize=record.num_bytes,
            sha256=record.sha256,
            split=assigned[record.index],
        )
        for record in sorted(records, key=lambda record: record.index)
    ]
    urls = {split: [shard.url for shard in shards if shard.split == split] for split in splits}
    return Index(name=name, shardlist=shards, splits=urls)


@dataclass(frozen=True)
class Totals:
    """Sums over a dataset's shards; mean and standard deviation of each channel in [0, 1]."""

    num_samples: int
    num_candidates: int
    num_shards: int
    num_bytes: int
    samples_by_split: dict[str, int]
    dropped_by_reason: dict[str, int]
    class_pixels: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def totals(records: Sequence[ShardRecord], splits: Iterable[str], assigned: Sequence[str]) -> Totals:
    """Sums over a dataset's shards. assigned: the split of each shard, by index."""
    samples_by_split = dict.fromkeys(splits, 0)
    dropped: Counter[str] = Counter()
    pixels: Counter[str] = Counter()
    for record in records:
        samples_by_split[assigned[record.index]] += record.num_samples
        dropped.update(record.dropped_by_reason)
        pixels.update(record.class_pixels)
    num_samples = sum(record.num_samples for record in records)
    mean = _weighted(records, [record.channel_means for record in records], num_samples)
    square = _weighted(records, [record.channel_square_means for record in records], num_samples)
    deviation = tuple(sqrt(max(0.0, s - m * m)) for m, s in zip(mean, square, strict=True))
    return Totals(
        num_samples=num_samples,
        num_candidates=sum(record.num_candidates for record in records),
        num_shards=len(records),
        num_bytes=sum(record.num_bytes for record in records),
        samples_by_split=samples_by_split,
        dropped_by_reason=dict(sorted(dropped.items())),
        class_pixels=dict(pixels),
        mean=_rounded(mean),
        std=_rounded(deviation),
    )


def _weighted(
    records: Sequence[ShardRecord], values: Sequence[tuple[float, ...]], num_samples: int
) -> tuple[float, ...]:
    """The mean over samples of what records give as means over their own."""
    return tuple(
        fsum(v * record.num_samples for v, record in zip(channel, records, strict=True)) / num_samples
        for channel in zip(*values, strict=True)
    )


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in values)


def json_bytes(model: BaseModel) -> bytes:
    """A file's content. Equal values give equal bytes."""
    return model.model_dump_json(indent=1).encode() + b"\n"


def _read(store: Store, path: str, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(store.read(path))
    except FileNotFoundError as error:
        raise OutputError(
            f"{store.url}: has no {path}: not a labelmill dataset, or not complete; run `labelmill generate` on it"
        ) from error
    except ValidationError as error:
        raise OutputError(f"{store.url}/{path}: is not what labelmill writes: {error.errors()[0]['msg']}") from error
