"""The shards that an output holds already, held against the run that they are to be part of.

Every record is read, and every tar and parquet file hashed, once a run: a dataset is never called complete for what its
files say about each other. That takes about a second per gigabyte from a local disk, and no image is decoded. In a
bucket a file that was not written after its record is as it was then, and is not fetched.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from labelmill.pipeline.dataset.manifest import indexed_sha256
from labelmill.pipeline.dataset.plan import check_extension
from labelmill.pipeline.process.log import log
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.shards.publisher import (
    TAR_PATH,
    adopt_shard,
    parquet_path,
    read_stored_record,
    record_path,
    tar_path,
)
from labelmill.pipeline.store.store import Store, StoredFile
from labelmill.schemas.config import DatasetConfig, RunConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.shard import ShardRecord, ShardTask, shard_name

# Files that are read from a bucket at once.
_BUCKET_READERS = 32
# So many shards are one thread's work: a thread for each would cost more than small shards do.
_CHUNK = 64
# Of a file of this size, hashing takes longer than all that Python does about it.
_SMALL_BYTES = 10**6
_NUMBERED = re.compile(r"[a-z]+/(?:[^/]+-)?(?P<index>\d{6,})\.[a-z]+")
_LISTED = 10
_TOLD_BYTES = 10**9


def existing_records(store: Store, config: RunConfig, origin: ShardOrigin, *, repair: bool) -> list[ShardRecord]:
    """The records of all shards that are there, by index. What follows from a tar and is missing or damaged is rebuilt.

    repair: whether files may be written; without it nothing is. Raises OutputError where a shard is not what this run
    would make, or the run's count of samples does not fit those that exist, and for strangers among the shards, which
    are left alone.
    """
    listing = _Listing(store, config)
    listing.check_strangers()
    check = _Check(store, listing.files, origin, indexed_sha256(store), repair)
    num_bytes = sum(listing.files[tar_path(task.name)].num_bytes for task in listing.tasks)
    if num_bytes > _TOLD_BYTES and store.folder is not None:
        log(f"checking the {len(listing.tasks)} existing shards, {num_bytes / 1e9:.1f} GB")
    records = check.records(listing.tasks)
    check_extension(config.dataset, records)
    return records


def check_listing(store: Store, config: RunConfig, records: Sequence[ShardRecord]) -> None:
    """Whether the shards of a finished run are there, and none else: a look at names and sizes.

    Raises OutputError where one is gone or has another size, where strangers lie among them, or where another driver
    has made the dataset larger meanwhile.
    """
    listing = _Listing(store, config)
    if listing.tasks and listing.tasks[-1].index >= len(records):
        last = listing.tasks[-1]
        raise OutputError(
            f"dataset.samples: {config.dataset.samples} is less than the output holds: another driver has made "
            f"{store.url}/{tar_path(last.name)} meanwhile. That dataset stays unchanged; "
            f"{last.index * config.dataset.samples_per_shard + 1} or more works, or a new output"
        )
    listing.check_strangers()
    for record in records:
        found = listing.files.get(tar_path(record.name))
        if found is None or found.num_bytes != record.num_bytes:
            raise OutputError(
                f"{store.url}/{tar_path(record.name)}: was deleted or changed while the run went on; "
                f"run `labelmill generate` again"
            )


def check_strangers(store: Store, config: RunConfig) -> None:
    """Raises OutputError for files among shards and records that no shard of this run has. Reads none."""
    _Listing(store, config).check_strangers()


class _Listing:
    """What lies under shards/ and records/."""

    def __init__(self, store: Store, config: RunConfig) -> None:
        self._store, self._config = store, config
        self.files = {file.path: file for file in (*store.list("shards"), *store.list("records"))}
        tasks = [_task(config.dataset, match["name"], int(match["index"])) for match in self._tars()]
        self.tasks = sorted(tasks, key=lambda task: task.index)
        """Shards that are there, each as if it were full: those beyond a run's own are of a longer one."""

    def _tars(self) -> list[re.Match[str]]:
        """Those whose names are this run's."""
        found = [TAR_PATH.fullmatch(path) for path in self.files]
        return [
            match
            for match in found
            if match is not None and match["name"] == shard_name(self._config.name, int(match["index"]))
        ]

    def check_strangers(self) -> None:
        """Raises OutputError for files that are no part of a shard of this run, or of a longer one."""
        last = self.tasks[-1].index if self.tasks else 0
        num_shards = max(self._config.dataset.num_shards, last + 1)
        strangers = [path for path in self.files if not self._is_own(path, num_shards)]
        if strangers:
            heading = f"{self._store.url}: holds files that are not this dataset's; move them elsewhere:"
            raise OutputError("\n  ".join([heading, *_some(strangers)]))

    def _is_own(self, path: str, num_shards: int) -> bool:
        match = _NUMBERED.fullmatch(path)
        index = int(match["index"]) if match is not None else num_shards
        name = shard_name(self._config.name, index)
        return index < num_shards and path in (tar_path(name), parquet_path(name), record_path(index))


def _task(dataset: DatasetConfig, name: str, index: int) -> ShardTask:
    return ShardTask(
        index=index,
        name=name,
        num_samples=dataset.samples_per_shard,
        first_seed=dataset.first_seed + index * dataset.seeds_per_shard,
        num_seeds=dataset.seeds_per_shard,
    )


@dataclass(frozen=True)
class _Check:
    """One look at all shards."""

    store: Store
    files: Mapping[str, StoredFile]
    origin: ShardOrigin
    indexed_sha256: Mapping[str, str]
    repair: bool

    def records(self, tasks: Sequence[ShardTask]) -> list[ShardRecord]:
        num_bytes = sum(self.files[tar_path(task.name)].num_bytes for task in tasks)
        is_small = num_bytes < _SMALL_BYTES * len(tasks)
        size = _CHUNK if is_small else 1  # so that an interruption waits for little
        chunks = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        # A disk has small files at once; a bucket answers each read after milliseconds, whatever its size.
        num_readers = _BUCKET_READERS if self.store.folder is None else 1 if is_small else os.cpu_count()
        with ThreadPoolExecutor(num_readers) as readers:
            found = [result for results in readers.map(self._results, chunks) for result in results]
        problems = [str(result) for result in found if isinstance(result, OutputError)]
        if problems:
            count = f"{len(problems)} shards cannot be used:" if len(problems) > 1 else "a shard cannot be used:"
            raise OutputError("\n  ".join([f"{self.store.url}: {count}", *_some(problems)]))
        return [result for result in found if isinstance(result, ShardRecord)]

    def _results(self, tasks: Sequence[ShardTask]) -> list[ShardRecord | OutputError]:
        return [self._result(task) for task in tasks]

    def _result(self, task: ShardTask) -> ShardRecord | OutputError:
        try:
            return self._sound_record(task) or adopt_shard(
                self.store,
                task,
                self.origin,
                indexed_sha256=self.indexed_sha256.get(tar_path(task.name)),
                repair=self.repair,
            )
        except OutputError as error:
            return error

    def _sound_record(self, task: ShardTask) -> ShardRecord | None:
        """The record where nothing is to be said against it, tar and parquet file."""
        path = tar_path(task.name)
        stored = read_stored_record(self.store, task.index) if record_path(task.index) in self.files else None
        if stored is None or not stored.is_sealed:
            return None
        record = stored.content
        if (record.index, record.name, record.num_bytes) != (task.index, task.name, self.files[path].num_bytes):
            return None
        if (record.fingerprint, record.optional_files) != (self.origin.fingerprint, self.origin.optional_files):
            return None  # the tar itself tells why
        if not self._is_as_recorded(path, record, record.sha256):
            return None
        is_whole = self._is_as_recorded(parquet_path(task.name), record, record.parquet_sha256)
        return record if is_whole else None

    def _is_as_recorded(self, path: str, record: ShardRecord, sha256: str | None) -> bool:
        file = self.files.get(path)
        if file is None or sha256 is None:
            return False
        recorded = self.files[record_path(record.index)].modified
        if file.modified is not None and recorded is not None and file.modified <= recorded:
            return True
        return self.store.sha256(path) == sha256


def _some(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:_LISTED]
    if len(lines) > _LISTED:
        yield f"and {len(lines) - _LISTED} more"
