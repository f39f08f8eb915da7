"""Reading a dataset back, every byte of it, against its manifest; and rebuilding what follows from the tars.

One shard is in memory at a time.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet

from pipeline.manifest import INDEX_PATH, build_index, read_index, read_manifest, totals
from pipeline.shard_publisher import (
    TAR_PATH,
    derive_sidecars,
    parquet_path,
    read_record,
    record_path,
    repair_shard,
    same_content,
    tar_path,
)
from pipeline.shard_reader import DamagedTarError, Member, members_in, parse_metadata
from pipeline.shard_writer import member_names
from pipeline.store import Store
from schemas.config import DatasetConfig
from schemas.errors import OutputError
from schemas.manifest import IndexedShard, Manifest
from schemas.sample import IGNORE
from schemas.shard import ShardRecord, shard_name

# Where a PNG's header says its bit depth (8) and its colour type (0: gray).
_PNG_DEPTH_AND_COLOUR = slice(24, 26)
REDO = "delete it and run `labelmill generate` again"


@dataclass(frozen=True)
class VerifyResult:
    """What was read and what is wrong with it."""

    num_shards: int
    num_samples: int
    problems: tuple[str, ...]
    repaired: tuple[str, ...]


def verify(store: Store, *, repair: bool = False) -> VerifyResult:
    """Check manifest, index, records, parquet files and every sample of every tar.

    repair: first rebuild records, parquet files and index where they are missing or do not say what the tars say.
    A damaged tar is never touched. Raises OutputError where there is no dataset to verify.
    """
    repaired = tuple(_repair(store)) if repair else ()
    try:
        manifest = read_manifest(store)
        index = read_index(store)
    except OutputError as error:
        return VerifyResult(0, 0, (str(error),), repaired)
    problems = list(_stray_files(store, index.shardlist))
    records = []
    for number, shard in enumerate(index.shardlist):
        found, record = _check_shard(store, manifest, number, shard)
        problems += found
        if record is not None:
            records.append(record)
    if len(records) == len(index.shardlist):
        problems += _check_totals(manifest, records)
        if index != build_index(manifest.name, records, _dataset(manifest).splits):
            problems.append(f"{INDEX_PATH}: does not list what the shards hold; --repair rebuilds it")
    return VerifyResult(len(records), sum(record.num_samples for record in records), tuple(problems), repaired)


def _repair(store: Store) -> Iterator[str]:
    """Rebuild what follows from the tars, naming each file that changed."""
    records = []
    for file in store.list("shards"):
        match = TAR_PATH.fullmatch(file.path)
        if match is None:
            continue
        index, name = int(match["index"]), match["name"]
        sidecars = (parquet_path(name), record_path(index))
        before = [_content(store, path) for path in sidecars]
        try:
            records.append(repair_shard(store, index, name))
        except OutputError:
            continue  # a damaged tar: the check that follows says so
        changed = zip(sidecars, before, strict=True)
        yield from (f"{path} from {file.path}" for path, content in changed if content != _content(store, path))
    if store.exists("manifest.json") and records:
        manifest = read_manifest(store)
        index_bytes = build_index(manifest.name, records, _dataset(manifest).splits).model_dump_json(indent=1)
        if _content(store, INDEX_PATH) != (data := index_bytes.encode() + b"\n"):
            store.replace(INDEX_PATH, data)
            yield f"{INDEX_PATH} from the tars"


def _content(store: Store, path: str) -> bytes | None:
    return store.read(path) if store.exists(path) else None


def _dataset(manifest: Manifest) -> DatasetConfig:
    return DatasetConfig.model_validate(manifest.config["dataset"])


def _stray_files(store: Store, shards: Sequence[IndexedShard]) -> Iterator[str]:
    """Files in shards/ and records/ that the index does not account for."""
    expected = {shard.url for shard in shards} | {shard.url.removesuffix(".tar") + ".parquet" for shard in shards}
    expected |= {record_path(number) for number in range(len(shards))}
    for file in (*store.list("shards"), *store.list("records")):
        if file.path not in expected:
            yield f"{file.path}: is not in {INDEX_PATH}; move it elsewhere, or run `labelmill generate` again"


def _check_totals(manifest: Manifest, records: Sequence[ShardRecord]) -> Iterator[str]:
    sums = asdict(totals(records, _dataset(manifest).splits))
    stated = manifest.model_dump()
    for key, value in {**sums, "num_shards": len(records)}.items():
        if stated[key] != value:
            yield f"manifest.json: {key} is {stated[key]}, the shards hold {value}; run `labelmill generate` again"


def _check_shard(
    store: Store, manifest: Manifest, number: int, shard: IndexedShard
) -> tuple[list[str], ShardRecord | None]:
    """Problems of one shard, and its record as its tar gives it (None where it cannot be read)."""
    name = shard_name(manifest.name, number)
    path = tar_path(name)
    if shard.url != path:
        return [f"{INDEX_PATH}: entry {number} is {shard.url}, expected {path}; --repair rebuilds it"], None
    try:
        tar = store.read(path)
    except FileNotFoundError:
        return [f"{path}: is missing; run `labelmill generate` again"], None
    problems = []
    if len(tar) != shard.filesize or hashlib.sha256(tar).hexdigest() != shard.sha256:
        problems.append(f"{path}: is not the file that {INDEX_PATH} lists (its SHA-256 differs); {REDO}")
    try:
        sidecars = derive_sidecars(tar, number, name)
        problems += [f"{path}: {problem}; {REDO}" for problem in _check_samples(tar, manifest)]
    except DamagedTarError as error:
        return [*problems, f"{path}: {error}; {REDO}"], None
    problems += [f"{path}: {problem}; {REDO}" for problem in _check_seeds(sidecars.candidates, manifest, number)]
    if sidecars.record.fingerprint != manifest.fingerprint:
        problems.append(f"{path}: belongs to another run (fingerprint {sidecars.record.fingerprint}); {REDO}")
    if sidecars.record.num_samples != shard.nsamples:
        problems.append(f"{path}: holds {sidecars.record.num_samples} samples, {INDEX_PATH} says {shard.nsamples}")
    stored = read_record(store, number)
    if stored is None or not same_content(stored, sidecars.record):
        problems.append(f"{record_path(number)}: is missing or does not say what the tar says; --repair rebuilds it")
    if not _same_table(_content(store, parquet_path(name)), sidecars.candidates):
        problems.append(f"{parquet_path(name)}: is missing or does not say what the tar says; --repair rebuilds it")
    return problems, sidecars.record


def _check_seeds(candidates: pyarrow.Table, manifest: Manifest, number: int) -> Iterator[str]:
    """Candidates are the first seeds of the shard's own block, without a gap: then no seed is in two shards."""
    dataset = _dataset(manifest)
    first = dataset.first_seed + number * dataset.seeds_per_shard
    seeds = candidates.column("seed").to_pylist()
    if seeds != list(range(first, first + len(seeds))) or len(seeds) > dataset.seeds_per_shard:
        yield f"its candidates are not the seeds from {first} on, one after the other"


def _same_table(content: bytes | None, expected: pyarrow.Table) -> bool:
    if content is None:
        return False
    try:
        return bool(pyarrow.parquet.read_table(pyarrow.BufferReader(content)).equals(expected))
    except pyarrow.ArrowException:
        return False


def _check_samples(tar: bytes, manifest: Manifest) -> Iterator[str]:
    """Members in order; images and masks that decode, of the right size and with the pixels that the JSON counts."""
    waiting: list[Member] = []
    for member in members_in(tar):
        waiting.append(member)
        if len(waiting) == 3:
            yield from _check_sample(waiting, manifest)
            waiting = []
    if waiting:
        yield f"{waiting[0].name}: its sample is incomplete"


def _check_sample(members: Sequence[Member], manifest: Manifest) -> Iterator[str]:
    image, mask, metadata = members
    key = image.name.split(".")[0]
    names = tuple(member.name for member in members)
    if names != member_names(key, manifest.image_format):
        yield f"members {', '.join(names)} are not one sample's"
        return
    size = (manifest.resolution, manifest.resolution)
    image_BGR = _decoded(image)
    if image_BGR is None or image_BGR.shape != (*size, 3):
        yield f"{image.name}: is no image of {size[0]} x {size[1]} pixels"
    mask_HW = _decoded(mask)
    is_gray = bytes(mask.data[_PNG_DEPTH_AND_COLOUR]) == b"\x08\x00"
    if mask_HW is None or not is_gray or mask_HW.shape != size:
        yield f"{mask.name}: is no 8-bit gray PNG of {size[0]} x {size[1]} pixels"
        return
    pixels = np.bincount(mask_HW.ravel(), minlength=IGNORE + 1)
    counted = {name: int(pixels[value]) for value, name in enumerate(manifest.classes)}
    counted["ignore"] = int(pixels[IGNORE])
    if counted != parse_metadata(metadata).candidate.class_pixels or sum(counted.values()) != mask_HW.size:
        yield f"{mask.name}: its pixels are not those that {metadata.name} counts"


def _decoded(member: Member) -> np.ndarray | None:
    """Pixels as they are stored, None where they cannot be read."""
    if not len(member.data):
        return None
    return cv2.imdecode(np.frombuffer(member.data, np.uint8), cv2.IMREAD_UNCHANGED)
