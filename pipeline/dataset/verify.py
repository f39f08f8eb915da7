"""Reading a dataset back, every byte of it, against its manifest; and rebuilding what follows from the tars.

One shard is in memory at a time.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import pyarrow
import pyarrow.parquet

from labelmill.pipeline.dataset.claim import FINGERPRINT_PATH, read_claim, shard_splits
from labelmill.pipeline.dataset.manifest import (
    INDEX_PATH,
    MANIFEST_PATH,
    build_index,
    descriptions,
    indexed_sha256,
    read_index,
    read_manifest,
    read_run_file,
    recounted,
)
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.shards.check import ShardOrigin, tar_problems
from labelmill.pipeline.shards.publisher import (
    Sidecars,
    derive_sidecars,
    parquet_path,
    read_record,
    record_path,
    repair_shard,
    same_content,
    tar_path,
)
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import LabelmillError, OutputError
from labelmill.schemas.fingerprint import fingerprint
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.shard import ShardRecord, ShardTask
from labelmill.schemas.yaml_file import validate

_REDO = "delete it and run `labelmill generate` again"
_GENERATE = "run `labelmill generate` again"
_REPAIR = "`labelmill verify --repair` rebuilds it"
# A tar that is wrong is often wrong in every sample.
_MAX_PROBLEMS_PER_SHARD = 5


@dataclass(frozen=True)
class VerifyResult:
    """What was read, what is wrong with it, what was mended. Counts are of sound shards only."""

    num_shards: int
    num_samples: int
    problems: tuple[str, ...]
    repaired: tuple[str, ...]


def verify(store: Store, repair: bool = False, deep: bool = True) -> VerifyResult:
    """Check manifest, index, records, parquet files and every sample of every tar.

    repair: rebuild what follows from sound tars where it is missing or says otherwise. Tars are never touched.
    deep: decode every image and mask; otherwise all but their pixels is checked.
    Raises OutputError when the store cannot be read or, repairing, written.
    """
    try:
        manifest = read_manifest(store)
        config = validate({**manifest.config, "output": store.url}, f"{store.url}/{MANIFEST_PATH}: config", RunConfig)
    except LabelmillError as error:
        return VerifyResult(0, 0, (str(error),), ())
    # OpenCV's own threads would compete with those that decode. The setting holds for the process.
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        audit = _Audit(store, manifest, repair, threads if deep else None)
        records = audit.shards(shard_tasks(config))
        audit.strays(shard_tasks(config))
        audit.origin(config.labeler.method)
        if len(records) == config.dataset.num_shards:
            audit.descriptions(records)
    return VerifyResult(
        len(records), sum(record.num_samples for record in records), tuple(audit.problems), tuple(audit.repaired)
    )


class _Audit:
    """One verification: looks, mends if it may, and notes what it found."""

    def __init__(self, store: Store, manifest: Manifest, repair: bool, decoders: Executor | None) -> None:
        self.problems: list[str] = []
        self.repaired: list[str] = []
        self._store = store
        self._manifest = manifest
        self._repair = repair
        self._decoders = decoders
        self._origin = ShardOrigin(
            manifest.fingerprint,
            manifest.checkpoint.sha256,
            tuple(manifest.classes),
            manifest.image_shape,
            manifest.image_format,
            manifest.optional_files,
        )
        self._indexed_sha256 = indexed_sha256(store)

    def shards(self, tasks: Sequence[ShardTask]) -> list[ShardRecord]:
        """Check every shard. The records of sound ones, as their tars give them."""
        records = [self._shard(task) for task in tasks]
        return [record for record in records if record is not None]

    def _shard(self, task: ShardTask) -> ShardRecord | None:
        path = tar_path(task.name)
        try:
            tar = self._store.read(path)
        except FileNotFoundError:
            self.problems.append(f"{path}: is missing; {_GENERATE}")
            return None
        found = [*self._hash_problems(tar, task), *tar_problems(tar, task, self._origin, self._decoders)]
        if found:
            self.problems += [f"{path}: {problem}; {_REDO}" for problem in found[:_MAX_PROBLEMS_PER_SHARD]]
            if len(found) > _MAX_PROBLEMS_PER_SHARD:
                self.problems.append(f"{path}: and {len(found) - _MAX_PROBLEMS_PER_SHARD} more problems")
            return None
        sidecars = derive_sidecars(tar, task.index, task.name)
        self._compare(sidecars)
        return sidecars.record

    def _hash_problems(self, tar: bytes, task: ShardTask) -> list[str]:
        """A tar is as it was written if index or record know it; where both are lost nothing tells."""
        record = read_record(self._store, task.index)
        known = {self._indexed_sha256.get(tar_path(task.name)), record.sha256 if record else None} - {None}
        if not known or hashlib.sha256(tar).hexdigest() in known:
            return []
        return [f"its {len(tar)} bytes are not those that {INDEX_PATH} and its record name (another SHA-256)"]

    def _compare(self, expected: Sidecars) -> None:
        """Parquet and record say what the tar says."""
        name, index = expected.record.name, expected.record.index
        record = read_record(self._store, index)
        wrong = []
        if not _same_table(self._store, parquet_path(name), expected.candidates):
            wrong.append(parquet_path(name))
        if record is None or not same_content(record, expected.record):
            wrong.append(record_path(index))
        if wrong and self._repair:
            repair_shard(self._store, index, name)
            self.repaired += [f"{path}, from {tar_path(name)}" for path in wrong]
        else:
            self.problems += [f"{path}: is missing or not what its tar says; {_REPAIR}" for path in wrong]

    def strays(self, tasks: Sequence[ShardTask]) -> None:
        """Nothing else lies among shards and records, where loaders with wildcards would read it."""
        expected = {path for task in tasks for path in (tar_path(task.name), parquet_path(task.name))}
        expected |= {record_path(task.index) for task in tasks}
        for file in (*self._store.list("shards"), *self._store.list("records")):
            if file.path not in expected:
                self.problems.append(f"{file.path}: is not part of the dataset; {_GENERATE}, or move it elsewhere")

    def origin(self, method: str) -> None:
        """Run file and labeler are those that the fingerprint stands for."""
        path = f"labeler/{method}.safetensors"
        try:
            labeler_sha256 = hashlib.sha256(self._store.read(path)).hexdigest()
            claimed = fingerprint(read_run_file(self._store).identity, self._manifest.labeler_sha256)
        except FileNotFoundError:
            self.problems.append(f"{path}: is missing; without it the dataset cannot grow")
            return
        except OutputError as error:
            self.problems.append(str(error))
            return
        claim = read_claim(self._store)
        if self._store.exists(FINGERPRINT_PATH) and (claim is None or claim.fingerprint != self._manifest.fingerprint):
            self.problems.append(f"{FINGERPRINT_PATH}: is damaged or of another run; {_GENERATE}")
        if labeler_sha256 != self._manifest.labeler_sha256:
            self.problems.append(f"{path}: is not the labeler that {MANIFEST_PATH} names (another SHA-256)")
        if claimed != self._manifest.fingerprint:
            self.problems.append(f"run.json: is not the run that {MANIFEST_PATH} names (another fingerprint)")

    def descriptions(self, records: Sequence[ShardRecord]) -> None:
        """Manifest, index, card and croissant say what the shards say."""
        splits = shard_splits(self._store, len(records), self._manifest.config["dataset"]["splits"])
        manifest = recounted(self._manifest, records, splits)
        wrong = []
        if not _same_index(self._store, manifest, records, splits):
            wrong.append(INDEX_PATH)
        wrong += [path for path in ("README.md", "croissant.json") if not self._store.exists(path)]
        if manifest != self._manifest:
            wrong.append(MANIFEST_PATH)
        if wrong and self._repair:
            for path, content in descriptions(manifest, records, splits).items():
                self._store.replace(path, content)
            self.repaired += [f"{path}, from the tars" for path in wrong]
        else:
            self.problems += [f"{path}: is missing or not what the shards say; {_REPAIR}" for path in wrong]


def _same_index(store: Store, manifest: Manifest, records: Sequence[ShardRecord], splits: Sequence[str]) -> bool:
    try:
        return read_index(store) == build_index(manifest.name, records, manifest.config["dataset"]["splits"], splits)
    except OutputError:
        return False


def _same_table(store: Store, path: str, expected: pyarrow.Table) -> bool:
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(store.read(path)))
    except (FileNotFoundError, pyarrow.ArrowException, OSError):
        return False
    return bool(table.equals(expected))
