"""A shard's three files: the tar, which is the commit, then parquet and record, which follow from it."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from math import fsum
from pathlib import PurePosixPath

import pyarrow
import pyarrow.parquet
from pydantic import ValidationError

from pipeline.shard_reader import DamagedTarError, candidates_of, metadata_in
from pipeline.store import Store
from schemas.errors import OutputError
from schemas.sample import Candidate
from schemas.shard import ShardRecord, ShardTask

# Records that are read from a bucket at once.
_READERS = 32

TAR_PATH = re.compile(r"shards/(?P<name>[^/]+-(?P<index>\d{6,}))\.tar")
# What a record says about its making, which the tar does not hold.
_CIRCUMSTANCES = {"seconds_by_stage", "attempts", "host", "device", "created"}


@dataclass(frozen=True)
class Sidecars:
    """What follows from a tar alone; the record's circumstances are null."""

    candidates: pyarrow.Table
    record: ShardRecord


def tar_path(name: str) -> str:
    return f"shards/{name}.tar"


def parquet_path(name: str) -> str:
    return f"shards/{name}.parquet"


def record_path(index: int) -> str:
    return f"records/{index:06d}.json"


def publish_shard(
    store: Store,
    task: ShardTask,
    tar: bytes,
    *,
    fingerprint: str,
    seconds_by_stage: Mapping[str, float],
    attempts: int,
    host: str,
    device: str,
) -> ShardRecord:
    """Write a shard, tar first. If another driver was faster its tar stands, and ours is discarded.

    Raises OutputError when the tar that stands is damaged or of another run, or the store refuses a file.
    """
    made_sha256 = hashlib.sha256(tar).hexdigest()
    if not store.create(tar_path(task.name), tar):
        tar = store.read(tar_path(task.name))
    sidecars = _sidecars_of(store, tar, task.index, task.name)
    if sidecars.record.fingerprint != fingerprint:
        raise OutputError(
            f"{store.url}/{tar_path(task.name)}: belongs to another run, of fingerprint "
            f"{sidecars.record.fingerprint[:12]} instead of {fingerprint[:12]}; choose another output"
        )
    # Equal bytes are as much ours as the winner's. Of other bytes we know only what they say.
    if sidecars.record.sha256 == made_sha256:
        circumstances = {
            "seconds_by_stage": dict(seconds_by_stage),
            "attempts": attempts,
            "host": host,
            "device": device,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        sidecars = Sidecars(sidecars.candidates, sidecars.record.model_copy(update=circumstances))
    return _write_sidecars(store, sidecars)


def repair_shard(store: Store, index: int, name: str) -> ShardRecord:
    """Make parquet and record say what the tar says. A record that does keeps its host and timings.

    Raises FileNotFoundError without a tar, OutputError when it is damaged or the store refuses a file.
    """
    return _write_sidecars(store, _sidecars_of(store, store.read(tar_path(name)), index, name))


def load_records(store: Store) -> list[ShardRecord]:
    """The records of all shards that exist, by index. A shard that lacks its record or parquet gets them.

    Raises OutputError when a tar is damaged or is no shard of a dataset.
    """
    sizes = {file.path: file.num_bytes for file in (*store.list("shards"), *store.list("records"))}
    shards = []
    for path in sizes:
        if not path.endswith(".tar"):
            continue
        match = TAR_PATH.fullmatch(path)
        if match is None:
            raise OutputError(f"{store.url}/{path}: is no shard of this dataset; move it elsewhere")
        shards.append((int(match["index"]), match["name"]))

    shards.sort()
    records = _read_records(store, [index for index, _ in shards if record_path(index) in sizes])
    found = []
    for index, name in shards:
        record = records.get(index)
        complete = record is not None and parquet_path(name) in sizes
        if record is None or not complete or (record.name, record.num_bytes) != (name, sizes[tar_path(name)]):
            record = repair_shard(store, index, name)
        found.append(record)
    return found


def _read_records(store: Store, indices: Sequence[int]) -> dict[int, ShardRecord | None]:
    if store.folder is not None:
        return {index: read_record(store, index) for index in indices}
    # A bucket answers each read after milliseconds, whatever its size: a hundred thousand in turn would take minutes.
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(indices, readers.map(lambda index: read_record(store, index), indices), strict=True))


def read_record(store: Store, index: int) -> ShardRecord | None:
    """A shard's record, None where it is missing or is not one."""
    try:
        return ShardRecord.model_validate_json(store.read(record_path(index)))
    except (FileNotFoundError, ValidationError):
        return None


def derive_sidecars(tar: bytes, index: int, name: str) -> Sidecars:
    """Candidates and record from a tar's JSON members. Raises DamagedTarError."""
    samples = metadata_in(tar)
    fingerprints = {sample.fingerprint for sample in samples}
    if len(fingerprints) != 1:
        raise DamagedTarError(f"its samples name {len(fingerprints)} fingerprints instead of one")
    candidates = candidates_of(samples)
    reasons = Counter(candidate.drop_reason for candidate in candidates if candidate.drop_reason is not None)
    pixels: Counter[str] = Counter()
    for sample in samples:
        pixels.update(sample.candidate.class_pixels)
    record = ShardRecord(
        index=index,
        name=name,
        num_samples=len(samples),
        num_candidates=len(candidates),
        dropped_by_reason=dict(sorted(reasons.items())),
        sha256=hashlib.sha256(tar).hexdigest(),
        num_bytes=len(tar),
        class_pixels=dict(pixels),
        channel_means=_mean([sample.channel_means for sample in samples]),
        channel_square_means=_mean([sample.channel_square_means for sample in samples]),
        fingerprint=fingerprints.pop(),
        seconds_by_stage=None,
        attempts=None,
        host=None,
        device=None,
        created=None,
    )
    return Sidecars(_candidate_table(candidates), record)


def same_content(one: ShardRecord, other: ShardRecord) -> bool:
    """Whether two records agree on all that follows from a tar."""
    return one.model_dump(exclude=_CIRCUMSTANCES) == other.model_dump(exclude=_CIRCUMSTANCES)


def _candidate_table(candidates: Sequence[Candidate]) -> pyarrow.Table:
    """A row per candidate, in the order they were tried; a `fraction_` column per class."""
    classes = list(dict.fromkeys(name for candidate in candidates for name in candidate.class_pixels))
    totals = [sum(candidate.class_pixels.values()) for candidate in candidates]
    columns = {
        "seed": pyarrow.array([candidate.seed for candidate in candidates], pyarrow.int64()),
        "kept": pyarrow.array([candidate.kept for candidate in candidates], pyarrow.bool_()),
        "drop_reason": pyarrow.array([candidate.drop_reason for candidate in candidates], pyarrow.string()),
        "class_id": pyarrow.array([candidate.class_id for candidate in candidates], pyarrow.int32()),
        "confidence": pyarrow.array([candidate.confidence for candidate in candidates], pyarrow.float64()),
        "largest_component": pyarrow.array(
            [candidate.largest_component for candidate in candidates], pyarrow.float64()
        ),
    }
    for name in classes:
        fractions = [
            candidate.class_pixels.get(name, 0) / total if total else 0.0
            for candidate, total in zip(candidates, totals, strict=True)
        ]
        columns[f"fraction_{name}"] = pyarrow.array(fractions, pyarrow.float64())
    return pyarrow.table(columns)


def _mean(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Means of the channels. Raises DamagedTarError where some samples have more of them than others."""
    if len({len(row) for row in rows}) > 1:
        raise DamagedTarError("some of its samples are gray and some RGB")
    return tuple(fsum(channel) / len(rows) for channel in zip(*rows, strict=True))


def _sidecars_of(store: Store, tar: bytes, index: int, name: str) -> Sidecars:
    try:
        return derive_sidecars(tar, index, name)
    except DamagedTarError as error:
        raise OutputError(
            f"{store.url}/{tar_path(name)}: is damaged: {error}. Delete it and run `labelmill generate` again"
        ) from error


def _write_sidecars(store: Store, sidecars: Sidecars) -> ShardRecord:
    record = sidecars.record
    parquet = _parquet_bytes(sidecars.candidates)
    path = parquet_path(record.name)
    if not store.create(path, parquet) and store.read(path) != parquet:
        store.replace(path, parquet)
    data, path = record.model_dump_json(indent=2).encode() + b"\n", record_path(record.index)
    if not store.create(path, data):
        existing = read_record(store, record.index)
        if existing is not None and same_content(existing, record):
            return existing
        store.replace(path, data)  # left by a tar that was deleted since, or damaged
    return record


def _parquet_bytes(table: pyarrow.Table) -> bytes:
    stream = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    return bytes(stream.getvalue().to_pybytes())


def read_kept_seeds(store: Store, tar: str) -> set[int]:
    """The seeds of a shard's samples, by the tar's path. Raises OutputError when the parquet file beside it is missing
    or damaged."""
    path = parquet_path(PurePosixPath(tar).stem)
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(store.read(path)), columns=["seed", "kept"])
        return set(table["seed"].to_numpy()[table["kept"].to_numpy()].tolist())
    except (FileNotFoundError, pyarrow.ArrowInvalid, KeyError) as error:
        raise OutputError(
            f"{store.url}/{path}: missing or damaged ({error}); `labelmill verify --repair` writes it anew"
        ) from error
