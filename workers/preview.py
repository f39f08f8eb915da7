"""A look at samples without a shard: labeled again from their seeds."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from labelmill.pipeline.check_run import check_settings, labeler_path, open_output_labeler, read_inputs
from labelmill.pipeline.dataset.claim import check_labeler_claim, claimed_identity
from labelmill.pipeline.dataset.manifest import RUN_PATH, read_manifest, read_run_file
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import FittedLabeler, Labeler
from labelmill.pipeline.labelers.methods import fit_to_bytes, method_of, open_fitted
from labelmill.pipeline.make_shard import candidates
from labelmill.pipeline.pictures.overlay import contact_sheet
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.pipeline.process.stopwatch import Stopwatch
from labelmill.pipeline.promise.calibrate import calibrate, check_promise
from labelmill.pipeline.promise.standing import standing_promise
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import CheckpointError, ConfigError, OutputError
from labelmill.schemas.fingerprint import differing_keys, identity
from labelmill.schemas.sample import Sample
from labelmill.schemas.yaml_file import validate
from labelmill.workers.shard_worker import ShardWorker

Redraw = Callable[[Sequence[int]], list[Sample]]
PREVIEW_COLUMNS = 8


def preview_sheet(config: RunConfig, num_samples: int) -> bytes:
    """The first `num_samples` seeds of the run as a PNG sheet, image and overlay, dropped ones included.

    Writes nothing: fits the labeler, or takes the output's if it is of this very run. Raises what `generate` would
    raise for this configuration, whatever its output holds.
    """
    check_settings(config)
    sampler, checkpoint = open_sampler(config)
    fitted = labeler_for(config, sampler, checkpoint.sha256)
    dataset = config.dataset
    num_seeds = min(num_samples, dataset.num_shards * dataset.seeds_per_shard)
    is_published = _is_this_run(config, checkpoint.sha256)
    standing = standing_promise(Store.open(config.output), config) if is_published else None
    promise = standing or calibrate(config, sampler, fitted.labeler, checkpoint.sha256)
    with unpublished_worker(config.keeping(promise), sampler, checkpoint.sha256, fitted.labeler) as worker:
        samples = _draw(worker, range(dataset.first_seed, dataset.first_seed + num_seeds))
    sheet_HWC = contact_sheet(samples, columns=PREVIEW_COLUMNS)
    return encode_picture(sheet_HWC)


@contextmanager
def redrawing(store: Store) -> Iterator[Redraw | None]:
    """A function that draws a dataset's seeds again; None when its checkpoint is no longer where it was, or
    needs a device that this machine lacks.

    Raises OutputError where the output's labeler is not the one that the dataset was made with.
    """
    manifest = read_manifest(store)
    config = validate({**manifest.config, "output": store.url}, "manifest.json", RunConfig)
    try:
        sampler, checkpoint = open_sampler(config)
    except (CheckpointError, ConfigError):  # the latter: it was made on a GPU, and there is none here
        yield None
        return
    path = labeler_path(config)
    if checkpoint.sha256 != manifest.checkpoint.sha256 or not store.exists(path):
        yield None
        return
    fitted = store.read(path)
    if hashlib.sha256(fitted).hexdigest() != manifest.labeler_sha256:
        raise OutputError(f"{store.url}/{path}: is not the labeler that the dataset was made with; restore it")
    opened = open_output_labeler(config, sampler, fitted, checkpoint.sha256)
    config = config.keeping(manifest.promise)
    with unpublished_worker(config, sampler, checkpoint.sha256, opened.labeler) as worker:
        yield lambda seeds: _draw(worker, seeds)


def labeler_for(config: RunConfig, sampler: Sampler, checkpoint_sha256: str) -> FittedLabeler:
    """The output's fitted labeler if it is of this very run, else one that is fitted now and kept nowhere."""
    method = method_of(config.labeler)
    method.check(config.labeler, sampler)
    published = _published_labeler(config, sampler, checkpoint_sha256)
    if published is not None:
        return published
    method.check_inputs(config.labeler, sampler, checkpoint_sha256)
    check_promise(config, checkpoint_sha256)
    fitted = fit_to_bytes(config.labeler, sampler, checkpoint_sha256)
    return open_fitted(config.labeler, sampler, fitted, checkpoint_sha256)


def _published_labeler(config: RunConfig, sampler: Sampler, checkpoint_sha256: str) -> FittedLabeler | None:
    """The fitted labeler in the run's output, if the output was made by this very configuration.

    Raises OutputError where it is not the labeler that the output was claimed for.
    """
    store, path = Store.open(config.output), labeler_path(config)
    run_identity = _identity(config, store, checkpoint_sha256)
    if not store.exists(path) or not _is_this_run(config, checkpoint_sha256):
        return None
    fitted = store.read(path)
    check_labeler_claim(store, run_identity, path, hashlib.sha256(fitted).hexdigest())
    return open_output_labeler(config, sampler, fitted, checkpoint_sha256)


def _is_this_run(config: RunConfig, checkpoint_sha256: str) -> bool:
    """Whether the run's output was made by this very configuration."""
    store = Store.open(config.output)
    run_identity = _identity(config, store, checkpoint_sha256)
    return store.exists(RUN_PATH) and not differing_keys(run_identity, read_run_file(store).identity)


def _identity(config: RunConfig, store: Store, checkpoint_sha256: str) -> dict[str, Any]:
    return claimed_identity(store, identity(config, checkpoint_sha256, read_inputs(config)))


def unpublished_worker(config: RunConfig, sampler: Sampler, checkpoint_sha256: str, labeler: Labeler) -> ShardWorker:
    """A worker whose samples go into no shard, so they carry no fingerprint."""
    return ShardWorker(config, sampler, checkpoint_sha256=checkpoint_sha256, labeler=labeler, fingerprint="")


def _draw(worker: ShardWorker, seeds: Sequence[int]) -> list[Sample]:
    return list(candidates(seeds, worker.loaded, Stopwatch()))
