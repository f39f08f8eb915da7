"""The promise that stands in an output: labeler/promise.json, held against what the output says elsewhere."""

from labelmill.pipeline.dataset.manifest import MANIFEST_PATH, read_manifest
from labelmill.pipeline.promise.calibrate import read_promised
from labelmill.pipeline.shards.sealed import seal, unseal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.promise import Promise

PROMISE_PATH = "labeler/promise.json"


def standing_promise(store: Store, config: RunConfig) -> Promise | None:
    """The promise that the output holds; None for a run without one, and where it has yet to be calibrated.

    Raises OutputError where it is damaged, of other settings or annotations, not the one that the manifest states, or
    gone while there are shards, whose limit nobody else knows.
    """
    wanted = config.quality.promise
    if wanted is None:
        return None
    try:
        found = unseal(store.read(PROMISE_PATH), Promise)
    except FileNotFoundError:
        if store.list("records") and not store.exists(MANIFEST_PATH):
            raise OutputError(
                f"{store.url}/{PROMISE_PATH}: is gone, and the shards that are there were made with its limit. Restore "
                f"it from a copy, or use a new output"
            ) from None
        return None
    if found is None or not found.is_sealed:
        raise OutputError(f"{store.url}/{PROMISE_PATH}: is damaged; restore it from a copy, or use a new output")
    promise = found.content
    ours = wanted.miou, wanted.risk, read_promised(wanted).sha256
    if (promise.miou, promise.risk, promise.annotations_sha256) != ours:
        raise OutputError(f"{store.url}/{PROMISE_PATH}: is the promise of another run; restore this one's from a copy")
    _check_stated(store, promise)
    return promise


def keep_promise(store: Store, config: RunConfig, promise: Promise) -> Promise:
    """Publish a promise that was calibrated now, and return the one that stands: another driver may have been faster.

    Raises what `standing_promise` raises.
    """
    _check_stated(store, promise)
    store.create(PROMISE_PATH, seal(promise))
    standing = standing_promise(store, config)
    assert standing is not None
    return standing


def _check_stated(store: Store, promise: Promise) -> None:
    if store.exists(MANIFEST_PATH) and read_manifest(store).promise != promise:
        raise OutputError(
            f"{store.url}/{PROMISE_PATH}: is not the promise that {MANIFEST_PATH} states, with whose limit the shards "
            f"were made; restore it from a copy"
        )
