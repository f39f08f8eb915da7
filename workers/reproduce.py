"""One sample made again from its seed, and held against the bytes that its dataset holds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from labelmill.pipeline.dataset.manifest import read_manifest, read_run_file
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.make_shard import candidates
from labelmill.pipeline.process.machine_kind import machine_kind
from labelmill.pipeline.process.stopwatch import Stopwatch
from labelmill.pipeline.shards.publisher import read_record, tar_path
from labelmill.pipeline.shards.reader import (
    DamagedTarError,
    Member,
    candidates_of,
    is_metadata,
    members_in,
    metadata_in,
    parse_metadata,
)
from labelmill.pipeline.shards.sample_files import METADATA
from labelmill.pipeline.shards.writer import ShardWriter
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.fingerprint import FORMAT_VERSION, flattened
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.sample import Sample, SampleMetadata, sample_key
from labelmill.schemas.shard import Kind, ShardTask
from labelmill.workers.preview import dataset_config, dataset_worker, open_dataset_generator
from labelmill.workers.shard_worker import ShardWorker


@dataclass(frozen=True)
class RemadeFile:
    """A file of the sample, made again."""

    name: str
    content: bytes
    difference: str | None
    """How it differs from the dataset's, in words; None where both have the same bytes."""


@dataclass(frozen=True)
class Reproduction:
    """A sample made again."""

    key: str
    path: str
    """The tar that holds the sample, relative to the dataset's root."""
    files: tuple[RemadeFile, ...]
    """In the tar's order."""
    doubts: tuple[str, ...]
    """Why the bytes may differ: what is not as it was when the shard was made. Empty on the same kind of machine."""

    @property
    def is_same(self) -> bool:
        return all(file.difference is None for file in self.files)


def reproduce(store: Store, key: str, checkpoint: str | None = None) -> Reproduction:
    """Make a sample, or a dropped candidate that was kept aside, again as the dataset's run did: in its own batch.

    checkpoint: where the generator is now; None for the place that the manifest names. Raises ConfigError for what is
    no key, OutputError where the dataset has no such sample or its labeler is not there, CheckpointError where the
    generator is not there or another one.
    """
    manifest = read_manifest(store)
    config = dataset_config(store, manifest)
    task = _task_of(config, _seed_of(key))
    stored = _stored_sample(store, config, task, _seed_of(key))
    record = read_record(store, task.index)
    kind = None if record is None else record.kind
    if kind is not None and kind.device == "cpu":  # a GPU would give other bits
        execution = config.execution.model_copy(update={"device": "cpu"})
        config = config.model_copy(update={"execution": execution})
    sampler = open_dataset_generator(config, manifest, checkpoint)
    with dataset_worker(store, config, manifest, sampler) as worker:
        made = _encoded(worker, _made_again(worker, task, stored))
    files = tuple(
        RemadeFile(name, content, _difference(name, stored.files.get(name), content)) for name, content in made.items()
    )
    lost = tuple(
        RemadeFile(name, b"", "is in the tar, but is not made now") for name in stored.files if name not in made
    )
    doubts = (*_version_doubts(store, manifest), *_kind_doubts(kind, machine_kind(sampler.device)))
    return Reproduction(stored.metadata.key, stored.path, files + lost, doubts)


def _seed_of(key: str) -> int:
    if not (key.isascii() and key.isdigit()):
        raise ConfigError(f"KEY: {key!r} is not a sample's key; keys are seeds, such as {sample_key(3)} or 3")
    return int(key)


def _task_of(config: RunConfig, seed: int) -> ShardTask:
    """The shard that owns a seed."""
    tasks = shard_tasks(config)
    first, last = tasks[0].first_seed, tasks[-1].first_seed + tasks[-1].num_seeds - 1
    if not first <= seed <= last:
        raise OutputError(f"{config.output}: has no sample {sample_key(seed)}; its shards own seeds {first} to {last}")
    return tasks[(seed - first) // config.dataset.seeds_per_shard]


@dataclass(frozen=True)
class _StoredSample:
    path: str
    """The tar."""
    files: dict[str, bytes]
    """By name, in order."""
    metadata: SampleMetadata


def _stored_sample(store: Store, config: RunConfig, task: ShardTask, seed: int) -> _StoredSample:
    """The sample as the dataset holds it. Raises OutputError where it holds none of this seed, saying why."""
    path = tar_path(task.name)
    try:
        members = list(members_in(store.read(path)))
        kept = _members_of(members, path, seed)
        outcome = None if kept else _outcome(members, seed)
    except FileNotFoundError:
        raise OutputError(f"{store.url}/{path}: is missing; run `labelmill generate` again") from None
    except DamagedTarError as error:
        raise OutputError(f"{store.url}/{path}: {error}; run `labelmill verify {store.url}`") from None
    if kept is not None:
        return kept
    rejects = f"rejects/{task.name}.tar"
    try:
        dropped = _members_of(list(members_in(store.read(rejects))), rejects, seed)
    except FileNotFoundError:
        dropped = None
    except DamagedTarError as error:
        raise OutputError(f"{store.url}/{rejects}: {error}; delete it") from None
    if dropped is None:
        raise OutputError(f"{store.url}: has no sample {sample_key(seed)}: {outcome}")
    return dropped


def _members_of(members: list[Member], path: str, seed: int) -> _StoredSample | None:
    own = [member for member in members if member.key == sample_key(seed)]
    metadata = next((parse_metadata(member) for member in own if is_metadata(member.name)), None)
    if metadata is None:
        return None
    return _StoredSample(path, {member.name: bytes(member.data) for member in own}, metadata)


def _outcome(members: list[Member], seed: int) -> str:
    """What became of a seed that is no sample."""
    tried = candidates_of(metadata_in(members))
    candidate = next((candidate for candidate in tried if candidate.seed == seed), None)
    if candidate is not None:
        return f"its seed was dropped as {candidate.drop_reason}; `labelmill generate --keep-rejects` keeps such"
    return f"its seed was not tried, as its shard was full after seed {tried[-1].seed}"


def _made_again(worker: ShardWorker, task: ShardTask, stored: _StoredSample) -> Sample:
    """The sample from the very batch that it came from: the same place among the same seeds."""
    size, seed = worker.loaded.config.numerics.batch_size, stored.metadata.candidate.seed
    start = task.first_seed + (seed - task.first_seed) // size * size
    batch = range(start, min(start + size, task.first_seed + task.num_seeds))
    samples = candidates(batch, worker.loaded, Stopwatch())
    sample = next(sample for sample in samples if sample.metadata.candidate.seed == seed)
    accounted = {"dropped_before": stored.metadata.dropped_before}
    return replace(sample, metadata=sample.metadata.model_copy(update=accounted))


def _encoded(worker: ShardWorker, sample: Sample) -> dict[str, bytes]:
    """The sample's files by name, as a shard holds them."""
    loaded = worker.loaded
    dataset = loaded.config.dataset
    writer = ShardWriter(dataset.image_format, dataset.image_quality, loaded.encoders, loaded.labeler.optional_files)
    writer.add(sample)
    return {member.name: bytes(member.data) for member in members_in(writer.finish())}


def _difference(name: str, stored: bytes | None, made: bytes) -> str | None:
    if stored == made:
        return None
    if stored is None:
        return "is made now, but is not in the tar"
    if name.endswith(f".{METADATA.ending}"):
        return "; ".join(_value_differences(stored, made)) or "the same values, written otherwise"
    return _pixel_difference(stored, made)


def _value_differences(stored: bytes, made: bytes) -> Iterator[str]:
    """`candidate.confidence is 0.91 in the dataset, 0.9 now`, one for each value of a sample's JSON that differs."""
    texts = (SampleMetadata.model_validate_json(text).model_dump(mode="json") for text in (stored, made))
    before, now = (dict(flattened(values)) for values in texts)
    for key in (*before, *(key for key in now if key not in before)):
        if before.get(key) != now.get(key):
            yield f"{key} is {before.get(key)} in the dataset, {now.get(key)} now"


def _pixel_difference(stored: bytes, made: bytes) -> str:
    before, now = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) for data in (stored, made))
    if before is None or now is None or before.shape != now.shape:
        return "another size or kind of picture"
    levels = np.abs(before.astype(np.int32) - now.astype(np.int32)).reshape(*before.shape[:2], -1).max(axis=2)
    if not levels.any():
        return "the same pixels, encoded otherwise"
    return f"{(levels > 0).sum()} of {levels.size} pixels differ, by at most {levels.max()}"


def _version_doubts(store: Store, manifest: Manifest) -> Iterator[str]:
    version = read_run_file(store).identity.get("format_version")
    if version != FORMAT_VERSION:
        yield f"the dataset has format version {version}, this labelmill writes {FORMAT_VERSION}"


def _kind_doubts(stored: Kind | None, here: Kind) -> Iterator[str]:
    if stored is None:
        yield "the shard's record does not say on what kind of machine it was made"
        return
    for name in ("device", "processor"):
        before, now = getattr(stored, name), getattr(here, name)
        if before != now:
            yield f"{name}: the shard was made on {before}, this is {now}"
    for before_of, now_of in ((stored.libraries, here.libraries), (stored.settings, here.settings)):
        for name in sorted({*before_of, *now_of}):
            before, now = before_of.get(name, "absent"), now_of.get(name, "absent")
            if before != now:
                yield f"{name}: {before} when the shard was made, {now} here"
