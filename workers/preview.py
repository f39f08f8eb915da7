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
from labelmill.pipeline.instances.run_labeler import check_instances, fit_run_to_bytes, open_run_labeler
from labelmill.pipeline.labelers.base import FittedLabeler, Labeler
from labelmill.pipeline.labelers.methods import method_of
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
from labelmill.schemas.manifest import Manifest
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
    config = config.computing(sampler.numerics)
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
    config = dataset_config(store, manifest)
    try:
        sampler = open_dataset_generator(config, manifest)
    except (CheckpointError, ConfigError):  # the latter: it was made on a GPU, and there is none here
        yield None
        return
    if not store.exists(labeler_path(config)):
        yield None
        return
    with dataset_worker(store, config, manifest, sampler) as worker:
        yield lambda seeds: _draw(worker, seeds)


def dataset_config(store: Store, manifest: Manifest) -> RunConfig:
    """The run that made a dataset, as its manifest keeps it."""
    return validate({**manifest.config, "output": store.url}, "manifest.json", RunConfig)


def open_dataset_generator(config: RunConfig, manifest: Manifest, checkpoint: str | None = None) -> Sampler:
    """The generator that a dataset was drawn from.

    config: of `dataset_config`. checkpoint: where it is now; None for the place that the manifest names. Raises
    CheckpointError where it is not there, or another one, and ConfigError where it needs a device that is not here.
    """
    if checkpoint is not None:
        generator = config.generator.model_copy(update={"checkpoint": checkpoint})
        config = config.model_copy(update={"generator": generator})
    sampler, source = open_sampler(config)
    if source.sha256 != manifest.checkpoint.sha256:
        raise CheckpointError(
            f"{source.reference}: is not the generator that the dataset was made with (sha256 {source.sha256[:12]} "
            f"instead of {manifest.checkpoint.sha256[:12]}); name a file of that content"
        )
    return sampler


def dataset_worker(store: Store, config: RunConfig, manifest: Manifest, sampler: Sampler) -> ShardWorker:
    """A worker whose samples are those of a dataset, to the byte. Raises OutputError where its labeler is missing or
    another one."""
    path = labeler_path(config)
    try:
        fitted = store.read(path)
    except FileNotFoundError:
        raise OutputError(f"{store.url}/{path}: is missing; restore it") from None
    if hashlib.sha256(fitted).hexdigest() != manifest.labeler_sha256:
        raise OutputError(f"{store.url}/{path}: is not the labeler that the dataset was made with; restore it")
    sha256 = manifest.checkpoint.sha256
    labeler = open_output_labeler(config, sampler, fitted, sha256).labeler
    return ShardWorker(
        config.keeping(manifest.promise),
        sampler,
        checkpoint_sha256=sha256,
        labeler=labeler,
        fingerprint=manifest.fingerprint,
    )


def labeler_for(config: RunConfig, sampler: Sampler, checkpoint_sha256: str) -> FittedLabeler:
    """The output's fitted labeler if it is of this very run, else one that is fitted now and kept nowhere."""
    config = config.computing(sampler.numerics)
    method = method_of(config.labeler)
    method.check(config.labeler, sampler)
    check_instances(config, sampler)
    published = _published_labeler(config, sampler, checkpoint_sha256)
    if published is not None:
        return published
    method.check_inputs(config.labeler, sampler, checkpoint_sha256)
    check_promise(config, checkpoint_sha256)
    fitted = fit_run_to_bytes(config, sampler, checkpoint_sha256)
    return open_run_labeler(config, sampler, fitted, checkpoint_sha256)


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
