"""A look at samples without a shard: labeled again from their seeds."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipeline.check_run import labeler_path
from pipeline.generator.sampling import Sampler
from pipeline.labelers import fit_labeler
from pipeline.make_shard import candidates
from pipeline.manifest import RUN_PATH, read_manifest, read_run_file
from pipeline.output_claim import check_labeler_claim
from pipeline.overlay import contact_sheet
from pipeline.pictures.png import encode_picture
from pipeline.stopwatch import Stopwatch
from pipeline.store import Store
from schemas.config import RunConfig
from schemas.errors import CheckpointError
from schemas.fingerprint import differing_keys, identity
from schemas.run_file import validate
from schemas.sample import Sample
from workers.shard_worker import ShardWorker, open_sampler

Redraw = Callable[[Sequence[int]], list[Sample]]
PREVIEW_COLUMNS = 8


def preview_sheet(config: RunConfig, num_samples: int) -> bytes:
    """The first `num_samples` seeds of the run as a PNG sheet, image and overlay, dropped ones included.

    Writes nothing: fits the labeler, or takes the output's if it is of this very run.
    """
    sampler, checkpoint = open_sampler(config)
    fitted = labeler_for(config, sampler, checkpoint.sha256)
    dataset = config.dataset
    num_seeds = min(num_samples, dataset.num_shards * dataset.seeds_per_shard)
    with unpublished_worker(config, sampler, checkpoint.sha256, fitted) as worker:
        samples = _draw(worker, range(dataset.first_seed, dataset.first_seed + num_seeds))
    sheet_HWC = contact_sheet(samples, columns=PREVIEW_COLUMNS)
    return encode_picture(sheet_HWC)


@contextmanager
def redrawing(store: Store) -> Iterator[Redraw | None]:
    """A function that draws a dataset's seeds again; None when its checkpoint is no longer where it was."""
    config = validate({**read_manifest(store).config, "output": store.url}, "manifest.json", RunConfig)
    try:
        sampler, checkpoint = open_sampler(config)
    except CheckpointError:
        yield None
        return
    fitted = _published_labeler(config, checkpoint.sha256)
    if fitted is None:  # another file lies at the checkpoint's path now
        yield None
        return
    with unpublished_worker(config, sampler, checkpoint.sha256, fitted) as worker:
        yield lambda seeds: _draw(worker, seeds)


def labeler_for(config: RunConfig, sampler: Sampler, checkpoint_sha256: str) -> bytes:
    """The output's fitted labeler if it is of this very run, else one that is fitted now and kept nowhere."""
    published = _published_labeler(config, checkpoint_sha256)
    return published or fit_labeler(config.labeler, sampler, checkpoint_sha256)


def _published_labeler(config: RunConfig, checkpoint_sha256: str) -> bytes | None:
    """The fitted labeler in the run's output, if the output was made by this very configuration.

    Raises OutputError where it is not the labeler that the output was claimed for.
    """
    store = Store.open(config.output)
    path = labeler_path(config)
    if not store.exists(RUN_PATH) or not store.exists(path):
        return None
    run_identity = identity(config, checkpoint_sha256)
    if differing_keys(run_identity, read_run_file(store).identity):
        return None
    fitted = store.read(path)
    check_labeler_claim(store, run_identity, path, hashlib.sha256(fitted).hexdigest())
    return fitted


def unpublished_worker(config: RunConfig, sampler: Sampler, checkpoint_sha256: str, fitted: bytes) -> ShardWorker:
    """A worker whose samples go into no shard, so they carry no fingerprint."""
    return ShardWorker(config, sampler, checkpoint_sha256=checkpoint_sha256, fitted=fitted, fingerprint="")


def _draw(worker: ShardWorker, seeds: Sequence[int]) -> list[Sample]:
    return list(candidates(seeds, worker.mill, Stopwatch()))
