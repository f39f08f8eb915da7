"""latest.json: which snapshot is live. Each change is a function of what the file holds, swapped in as a whole."""

from collections.abc import Callable

from pydantic import ValidationError

from labelmill.pipeline.store.store import Store, Version
from labelmill.schemas.errors import LockedError, OutputError
from labelmill.schemas.nightly_files import Latest

LATEST_PATH = "latest.json"
# Each one is lost to another change, and those are made by hand.
_ATTEMPTS = 20

Change = Callable[[Latest], Latest]


class LiveMovedError(Exception):
    """Another snapshot is live than the one that tonight's was compared with."""


def read_latest(store: Store) -> Latest:
    """As it is; empty where nothing was ever published. Raises OutputError for a file that is not labelmill's."""
    return _read(store)[0]


def change_latest(store: Store, change: Change, generation: int | None = None) -> Latest:
    """Apply a change to the newest state, and again to a newer one if there is one meanwhile. Returns the result.

    generation: that of the lock's owner. None for commands that need no lock: they carry on the file's own, and
    rightly change what a run is about to change, which then notices. Raises LockedError when a later owner has
    already written here, what `change` raises, and OutputError when the file cannot be written.
    """
    for _ in range(_ATTEMPTS):
        found, version = _read(store)
        if generation is not None and generation < found.generation:
            raise LockedError(
                f"{store.url}/{LATEST_PATH}: a later owner of the lock has written to it (number {found.generation}, "
                f"ours is {generation}); nothing was changed"
            )
        number = found.generation if generation is None else generation
        new = change(found).model_copy(update={"generation": number})
        if new == found or store.compare_and_swap(LATEST_PATH, _json(new), version):
            return new
    raise LockedError(f"{store.url}/{LATEST_PATH}: other processes changed it {_ATTEMPTS} times; try again")


def fence(store: Store, generation: int) -> Latest:
    """Shut out every earlier owner of the lock: what it may still write is refused from now on."""
    return change_latest(store, lambda latest: latest, generation)


def publish(snapshot: str, instead_of: str | None, time: str) -> Change:
    """Make a snapshot live that was compared with `instead_of`. Raises LiveMovedError unless that is live by then."""

    def change(latest: Latest) -> Latest:
        if latest.snapshot != instead_of:
            raise LiveMovedError
        if snapshot in latest.retiring:
            raise OutputError(f"{snapshot}: is being deleted; run the night again when it is gone")
        former = () if latest.snapshot is None else (latest.snapshot,)
        return latest.model_copy(
            update={
                "snapshot": snapshot,
                "published": time,
                "succeeded": time,
                "history": _without(snapshot, *former, *latest.history),
                "withdrawn": _without(snapshot, *latest.withdrawn),
            }
        )

    return change


def succeed(time: str) -> Change:
    """Note that a night ended well although it published nothing."""
    return lambda latest: latest.model_copy(update={"succeeded": time})


def roll_back(target: str, time: str) -> Change:
    """Make another snapshot live, and withdraw the one that is. Going back to a withdrawn one only undoes a rollback:
    then the one that is live becomes the one before."""

    def change(latest: Latest) -> Latest:
        left = () if latest.snapshot is None else (latest.snapshot,)
        is_undone = target in latest.withdrawn
        history = (*left, *latest.history) if is_undone else _before(target, latest.history)
        return latest.model_copy(
            update={
                "snapshot": target,
                "published": time,
                "history": _without(target, *history),
                "withdrawn": _without(target, *(() if is_undone else left), *latest.withdrawn),
            }
        )

    return change


def _before(snapshot: str, history: tuple[str, ...]) -> tuple[str, ...]:
    """What was live before a snapshot."""
    return history[history.index(snapshot) + 1 :] if snapshot in history else history


def pin(snapshot: str) -> Change:
    """Keep a snapshot for good."""
    return lambda latest: latest.model_copy(update={"pins": (*_without(snapshot, *latest.pins), snapshot)})


def unpin(snapshot: str) -> Change:
    """Leave a snapshot to retention."""
    return lambda latest: latest.model_copy(update={"pins": _without(snapshot, *latest.pins)})


def retire(choose: Callable[[Latest], tuple[str, ...]]) -> Change:
    """Say which snapshots are about to be deleted, so that nobody turns to them."""

    def change(latest: Latest) -> Latest:
        chosen = choose(latest)
        assert latest.snapshot not in chosen and not set(latest.pins) & set(chosen)
        return latest.model_copy(
            update={
                "retiring": tuple(dict.fromkeys((*latest.retiring, *chosen))),
                "history": _without_all(chosen, latest.history),
                "withdrawn": _without_all(chosen, latest.withdrawn),
            }
        )

    return change


def retired(latest: Latest) -> Latest:
    """Everything that was being deleted is gone."""
    return latest.model_copy(update={"retiring": ()})


def _without(snapshot: str, *others: str) -> tuple[str, ...]:
    return _without_all((snapshot,), others)


def _without_all(unwanted: tuple[str, ...], snapshots: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(snapshot for snapshot in snapshots if snapshot not in unwanted))


def _read(store: Store) -> tuple[Latest, Version | None]:
    try:
        file = store.read_versioned(LATEST_PATH)
        return Latest.model_validate_json(file.data), file.version
    except FileNotFoundError:
        return Latest(), None
    except ValidationError as error:
        raise OutputError(
            f"{store.url}/{LATEST_PATH}: is not what labelmill writes: {error.errors()[0]['msg']}. Restore it: at "
            f'least {{"snapshot": "NAME"}} with the name of a folder under snapshots/'
        ) from None


def _json(latest: Latest) -> bytes:
    return latest.model_dump_json(indent=1).encode() + b"\n"
