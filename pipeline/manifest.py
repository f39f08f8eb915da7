"""The files that describe a dataset: run.json claims the output first, manifest.json completes it last."""

import hashlib
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import fsum, sqrt
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.croissant import croissant
from pipeline.dataset_card import dataset_card
from pipeline.shard_publisher import tar_path
from pipeline.store import Store
from schemas.config import RunConfig
from schemas.errors import OutputError
from schemas.fingerprint import FORMAT_VERSION, differing_keys
from schemas.manifest import CheckpointSource, Index, IndexedShard, Manifest, RunFile
from schemas.sample import ImageShape
from schemas.shard import ShardRecord, split_of

RUN_PATH = "run.json"
INDEX_PATH = "index.json"
MANIFEST_PATH = "manifest.json"

Model = TypeVar("Model", bound=BaseModel)

# Libraries whose version can change a shard's bytes or the meaning of its files.
_RECORDED_LIBRARIES = ("labelmill", "torch", "numpy", "opencv-python-headless", "pyarrow", "webdataset")


@dataclass(frozen=True)
class DatasetContext:
    """What a dataset's description needs beside its records."""

    config: RunConfig
    checkpoint: CheckpointSource
    fitted: bytes
    """The fitted labeler's file."""
    fingerprint: str
    classes: tuple[str, ...]
    image_shape: ImageShape


def claim_output(store: Store, run_identity: Mapping[str, Any]) -> None:
    """Make the output this run's, or find that it is already.

    Raises OutputError for an output that holds other things, or a run of another identity, or whose server lets
    drivers overwrite each other: then nothing is left written.
    """
    check_claim(store, run_identity)
    if store.claim(RUN_PATH, _json(RunFile(identity=dict(run_identity)))):
        return
    check_claim(store, run_identity)  # another driver may have claimed it meanwhile


def check_claim(store: Store, run_identity: Mapping[str, Any]) -> None:
    """Whether the output is this run's, or free; writes nothing. Raises OutputError where it is neither."""
    if not store.exists(RUN_PATH):
        stranger = store.first_file()
        if stranger is not None and not store.exists(RUN_PATH):  # another driver may have claimed it meanwhile
            raise OutputError(
                f"{store.url}: holds files that are not labelmill's, such as {stranger}; "
                f"choose an empty or a new folder"
            )
        if not store.exists(RUN_PATH):
            return
    differences = differing_keys(run_identity, read_run_file(store).identity)
    if differences:
        refusal = f"{store.url}: was made by another configuration; use a new output, or change back:"
        raise OutputError("\n  ".join([refusal, *differences]))


def read_run_file(store: Store) -> RunFile:
    """Raises OutputError where run.json is missing or is not one."""
    return _read(store, RUN_PATH, RunFile)


def read_index(store: Store) -> Index:
    """Raises OutputError where index.json is missing or is not one."""
    return _read(store, INDEX_PATH, Index)


def read_manifest(store: Store) -> Manifest:
    """Raises OutputError where the dataset has no manifest, hence is not complete."""
    return _read(store, MANIFEST_PATH, Manifest)


def finish_dataset(store: Store, records: Sequence[ShardRecord], context: DatasetContext) -> Manifest:
    """Write index, card and croissant, then the manifest, last. Equal datasets get equal bytes."""
    config = context.config
    values = config.model_dump(mode="json", exclude={"output", "execution"})
    # A URL's query may be a signature; the reference is without it.
    values["generator"]["checkpoint"] = context.checkpoint.reference
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=config.name,
        fingerprint=context.fingerprint,
        config=values,
        classes=list(context.classes),
        image_shape=context.image_shape,
        image_format=config.dataset.image_format,
        checkpoint=context.checkpoint,
        labeler_sha256=hashlib.sha256(context.fitted).hexdigest(),
        versions={"python": platform.python_version(), **{name: version(name) for name in _RECORDED_LIBRARIES}},
        **asdict(totals(records, config.dataset.splits)),
    )
    for path, content in descriptions(manifest, records).items():
        store.replace(path, content)
    return manifest


def recounted(manifest: Manifest, records: Sequence[ShardRecord]) -> Manifest:
    """The manifest with the counts and statistics that the records give."""
    return manifest.model_copy(update=asdict(totals(records, manifest.config["dataset"]["splits"])))


def descriptions(manifest: Manifest, records: Sequence[ShardRecord]) -> dict[str, bytes]:
    """Every file that describes the dataset, by path, in the order in which they must be written."""
    index = build_index(manifest.name, records, manifest.config["dataset"]["splits"])
    return {
        INDEX_PATH: _json(index),
        "README.md": dataset_card(manifest, index).encode(),
        "croissant.json": croissant(manifest, index),
        MANIFEST_PATH: _json(manifest),
    }


def build_index(name: str, records: Sequence[ShardRecord], splits: Mapping[str, float]) -> Index:
    """The shard list, in order."""
    shards = [
        IndexedShard(
            url=tar_path(record.name),
            nsamples=record.num_samples,
            filesize=record.num_bytes,
            sha256=record.sha256,
            split=split_of(record.index, splits),
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


def totals(records: Sequence[ShardRecord], splits: Mapping[str, float]) -> Totals:
    """Sums over a dataset's shards."""
    samples_by_split = dict.fromkeys(splits, 0)
    dropped: Counter[str] = Counter()
    pixels: Counter[str] = Counter()
    for record in records:
        samples_by_split[split_of(record.index, splits)] += record.num_samples
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


def _json(model: BaseModel) -> bytes:
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
