"""The end of a run: the files that describe the dataset are written, the manifest last.

Several drivers may finish at once, and one may have been frozen for days while others made the dataset larger. So a
driver reads the four files, then lists the shards, and then compares and swaps each file: it is written only over what
was read. A driver that finds more shards than its own leaves the dataset to whoever made them. None can write over a
larger one's file: either it read what that has replaced since, or the list that it made afterwards showed the larger
one's shards, which are all there before the first of its files. A run has finished when it reads all four back as its
own.
"""

import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

from labelmill.pipeline.dataset.claim import read_claim, shard_splits
from labelmill.pipeline.dataset.existing_shards import check_listing
from labelmill.pipeline.dataset.manifest import descriptions, totals
from labelmill.pipeline.store.store import Store, VersionedFile
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.fingerprint import FORMAT_VERSION, canonical_json
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.manifest import CheckpointSource, Manifest
from labelmill.schemas.promise import Promise
from labelmill.schemas.sample import ImageShape, OptionalFile
from labelmill.schemas.shard import Kind, ShardRecord

# Libraries whose version can change a shard's bytes or the meaning of its files.
_RECORDED_LIBRARIES = ("labelmill", "torch", "numpy", "opencv-python-headless", "pyarrow", "webdataset")
_MOST_ROUNDS = 50
_LONGEST_PAUSE = 0.5


@dataclass(frozen=True)
class DatasetContext:
    """What a dataset's description needs beside its records."""

    config: RunConfig
    checkpoint: CheckpointSource
    labeler_sha256: str
    """Of the fitted labeler's file."""
    fingerprint: str
    classes: tuple[str, ...]
    image_shape: ImageShape
    optional_files: tuple[OptionalFile, ...] = ()
    """What samples have beside image, mask and metadata."""
    findings: LabelerFindings | None = None
    """What `fit` found; None where nobody looked."""
    promise: Promise | None = None
    """How the run's promise is kept; None where it makes none."""


def finish_dataset(store: Store, records: Sequence[ShardRecord], context: DatasetContext) -> Manifest:
    """Write index, card and croissant, then the manifest, last. Equal datasets get equal bytes.

    Raises OutputError where shards are not those of the records any more, or another driver has made more of them.
    """
    manifest = _manifest(store, records, context)
    splits = shard_splits(store, len(records), context.config.dataset.splits)
    wanted = descriptions(manifest, records, splits)
    for number in range(_MOST_ROUNDS):
        standing = {path: _read(store, path) for path in wanted}
        check_listing(store, context.config, records)
        if all(found is not None and found.data == wanted[path] for path, found in standing.items()):
            return manifest
        _swap(store, wanted, standing)
        if number:  # another driver finishes at this moment
            time.sleep(random.uniform(0, _LONGEST_PAUSE))
    raise OutputError(
        f"{store.url}: other drivers keep changing its index and manifest; run it again when they have ended"
    )


def _manifest(store: Store, records: Sequence[ShardRecord], context: DatasetContext) -> Manifest:
    config = context.config
    values = config.model_dump(mode="json", exclude={"output", "execution"})
    # As it was read: a relative path names nothing elsewhere.
    values["generator"]["checkpoint"] = context.checkpoint.reference
    splits = shard_splits(store, len(records), config.dataset.splits)
    return Manifest(
        format_version=FORMAT_VERSION,
        name=config.name,
        fingerprint=context.fingerprint,
        config=values,
        classes=list(context.classes),
        image_shape=context.image_shape,
        image_format=config.dataset.image_format,
        optional_files=context.optional_files,
        checkpoint=context.checkpoint,
        labeler_sha256=context.labeler_sha256,
        labeler=context.findings,
        promise=context.promise,
        versions={"python": platform.python_version(), **{name: version(name) for name in _RECORDED_LIBRARIES}},
        kinds=_kinds(store, records),
        **asdict(totals(records, config.dataset.splits, splits)),
    )


def _kinds(store: Store, records: Sequence[ShardRecord]) -> list[Kind]:
    """Each kind that the claim and the records name, once, in an order that does not depend on theirs."""
    claim = read_claim(store)
    named = [record.kind for record in records] + ([] if claim is None else [claim.claimed_on])
    by_content = {canonical_json(kind.model_dump()): kind for kind in named if kind is not None}
    return [by_content[content] for content in sorted(by_content)]


def _swap(store: Store, wanted: Mapping[str, bytes], standing: Mapping[str, VersionedFile | None]) -> None:
    """Write the files in order, up to the first that another driver has changed."""
    for path, content in wanted.items():
        found = standing[path]
        if found is not None and found.data == content:
            continue
        if not store.compare_and_swap(path, content, None if found is None else found.version):
            return


def _read(store: Store, path: str) -> VersionedFile | None:
    try:
        return store.read_versioned(path)
    except FileNotFoundError:
        return None
