"""A shard's three files: the tar, which is the commit, then parquet and record, which follow from it."""

import hashlib
import os
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

from labelmill.pipeline.shards.check import ShardOrigin, tar_problems
from labelmill.pipeline.shards.reader import DamagedTarError, candidates_of, members_in, metadata_in
from labelmill.pipeline.shards.sample_files import optional_endings
from labelmill.pipeline.shards.sealed import Unsealed, seal, unseal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.sample import Candidate
from labelmill.schemas.shard import Kind, ShardRecord, ShardTask

TAR_PATH = re.compile(r"shards/(?P<name>[^/]+-(?P<index>\d{6,}))\.tar")
# What a record says about its making, which the tar does not hold.
_CIRCUMSTANCES = {"seconds_by_stage", "attempts", "host", "device", "created", "kind", "parquet_sha256"}
_REDO = "Delete it and run `labelmill generate` again, which makes it again"
# A tar that is wrong is often wrong in every sample.
_LISTED_PROBLEMS = 3


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
    origin: ShardOrigin,
    seconds_by_stage: Mapping[str, float],
    attempts: int,
    host: str,
    kind: Kind,
) -> ShardRecord:
    """Write a shard, tar first. If another driver was faster its tar stands, and ours is discarded.

    Raises OutputError when the tar that stands is damaged or of another run, or the store refuses a file.
    """
    circumstances = {
        "seconds_by_stage": dict(seconds_by_stage),
        "attempts": attempts,
        "host": host,
        "device": kind.device,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
    }
    if not store.create(tar_path(task.name), tar):
        standing = store.read(tar_path(task.name))
        if standing != tar:  # of other bytes we know only what they say
            return adopt_shard(store, task, origin, standing)
    # Equal bytes are as much ours as the winner's.
    sidecars = _sidecars_of(store, tar, task.index, task.name)
    _check_fingerprint(store, sidecars.record, origin)
    return _write_sidecars(store, Sidecars(sidecars.candidates, sidecars.record.model_copy(update=circumstances)))


def adopt_shard(
    store: Store,
    task: ShardTask,
    origin: ShardOrigin,
    tar: bytes | None = None,
    *,
    indexed_sha256: str | None = None,
    repair: bool = True,
) -> ShardRecord:
    """Take a tar that is there for a shard of this run, if it is one, and make parquet and record say what it says.

    A record that does already keeps its host and timings. tar: its bytes where they have been read. indexed_sha256: the
    hash that index.json has. repair: whether parquet and record may be written.
    The tar must be what record or index know by its hash; where neither does, every image and mask of it is decoded.
    Raises OutputError naming the tar otherwise, with nothing written, and FileNotFoundError without a tar.
    """
    path = tar_path(task.name)
    tar = store.read(path) if tar is None else tar
    stored = read_stored_record(store, task.index)
    known = {indexed_sha256} - {None}
    if stored is not None and stored.content.name == task.name:
        known.add(stored.content.sha256)
    if known and hashlib.sha256(tar).hexdigest() not in known:
        names = record_path(task.index) if indexed_sha256 is None else f"{record_path(task.index)} and index.json"
        raise OutputError(f"{store.url}/{path}: is not what {names} say of it (another SHA-256). {_REDO}")
    sidecars = _sidecars_of(store, tar, task.index, task.name)
    # Whether the count is the run's is for `check_extension` to say: the run may have been longer or shorter.
    asked = task.model_copy(update={"num_samples": sidecars.record.num_samples})
    _check_fingerprint(store, sidecars.record, origin)
    with ThreadPoolExecutor(os.cpu_count()) as decoders:
        problems = tar_problems(tar, asked, origin, None if known else decoders)
    if problems:
        raise OutputError(f"{store.url}/{path}: is damaged: {'; '.join(problems[:_LISTED_PROBLEMS])}. {_REDO}")
    return _write_sidecars(store, sidecars) if repair else sidecars.record


def repair_shard(store: Store, index: int, name: str) -> ShardRecord:
    """Make parquet and record say what the tar says. A record that does keeps its host and timings.

    Raises FileNotFoundError without a tar, OutputError when it is damaged or the store refuses a file.
    """
    return _write_sidecars(store, _sidecars_of(store, store.read(tar_path(name)), index, name))


def read_stored_record(store: Store, index: int) -> Unsealed[ShardRecord] | None:
    """A shard's record, None where it is missing, damaged or not one."""
    try:
        return unseal(store.read(record_path(index)), ShardRecord)
    except FileNotFoundError:
        return None


def read_record(store: Store, index: int) -> ShardRecord | None:
    """A shard's record, None where it is missing, damaged or not one."""
    stored = read_stored_record(store, index)
    return None if stored is None else stored.content


def derive_sidecars(tar: bytes, index: int, name: str) -> Sidecars:
    """Candidates and record from a tar's JSON members. Raises DamagedTarError."""
    members = list(members_in(tar))
    samples = metadata_in(members)
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
        kind=None,
        parquet_sha256=None,
        optional_files=optional_endings({member.ending for member in members}),
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
        raise OutputError(f"{store.url}/{tar_path(name)}: is damaged: {error}. {_REDO}") from error


def _check_fingerprint(store: Store, record: ShardRecord, origin: ShardOrigin) -> None:
    if record.fingerprint != origin.fingerprint:
        raise OutputError(
            f"{store.url}/{tar_path(record.name)}: belongs to another run, of fingerprint {record.fingerprint[:12]} "
            f"instead of {origin.fingerprint[:12]}. Move it elsewhere and run `labelmill generate` again, which makes "
            f"this run's"
        )


def _write_sidecars(store: Store, sidecars: Sidecars) -> ShardRecord:
    parquet = _parquet_bytes(sidecars.candidates)
    record = sidecars.record.model_copy(update={"parquet_sha256": hashlib.sha256(parquet).hexdigest()})
    path = parquet_path(record.name)
    if not store.create(path, parquet) and store.read(path) != parquet:
        store.replace(path, parquet)
    path = record_path(record.index)
    if store.create(path, seal(record)):
        return record
    stored = read_stored_record(store, record.index)
    if stored is not None and same_content(stored.content, record):
        # It knows more of how the shard was made; but another pyarrow writes other bytes of the same table.
        record = stored.content.model_copy(update={"parquet_sha256": record.parquet_sha256})
    if stored is None or not stored.is_sealed or stored.content != record:
        store.replace(path, seal(record))  # left by a tar that was deleted since, or damaged, or of an earlier version
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
            f"{store.url}/{path}: missing or damaged ({error}); `labelmill verify --repair` rewrites it"
        ) from error
