"""The lock of a nightly root: at most one run at a time, and a number that tells later owners from earlier ones.

A process cannot know whether it was stopped for an hour between asking the time and writing a file. So the lock only
keeps runs out of each other's way. What protects latest.json is the lock's number: whoever gets the lock first writes
its number there (labelmill.pipeline.nightly.latest.fence), and from then on everything with a lower number is refused.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from labelmill.pipeline.store.store import Store, Version
from labelmill.schemas.errors import LockedError, OutputError
from labelmill.schemas.nightly_files import LockFile

LOCK_PATH = "lock.json"
# Each one is lost to a run that has just got the lock, or let it go.
_ATTEMPTS = 5


@dataclass(frozen=True)
class Held:
    """A lock that this process got."""

    owner: str
    generation: int
    expires: float
    """In seconds since 1970. From then on it counts for nothing."""


def taken(lock: LockFile, owner: str, now: float, ttl: float, past: int = 0) -> LockFile:
    """The lock after `owner` took it, with a number above `past`. Raises LockedError while another run has it, and
    OutputError when that run was last heard of so far ahead of the clock that one of the two clocks must be wrong."""
    if lock.owner is not None and lock.heartbeat - now > ttl:
        raise OutputError(
            f"{lock.owner} has the lock, last heard of at {iso_time(lock.heartbeat)}, which is ahead of this machine's "
            f"clock, by which it is {iso_time(now)}. If this clock is wrong, set it. If that of the other run was, "
            f"and it does not work any more, delete {LOCK_PATH}"
        )
    if lock.owner is not None and now < lock.expires:
        raise LockedError(
            f"{lock.owner} has the lock; last heard of {max(0.0, now - lock.heartbeat):.0f} s ago. It is free in "
            f"{lock.expires - now:.0f} s, at {iso_time(lock.expires)}, unless that run renews it"
        )
    return LockFile(generation=max(lock.generation, past) + 1, owner=owner, heartbeat=now, expires=now + ttl)


def renewed(lock: LockFile, held: Held, now: float, ttl: float) -> LockFile | None:
    """The lock after its owner said that it lives; None when it is too late, or another run has it."""
    if not owns(lock, held) or now >= lock.expires:
        return None
    return lock.model_copy(update={"heartbeat": now, "expires": now + ttl})


def released(lock: LockFile, held: Held) -> LockFile | None:
    """The lock after its owner let it go; None when it was not its own any more."""
    return LockFile(generation=lock.generation) if owns(lock, held) else None


def owns(lock: LockFile, held: Held) -> bool:
    """Whether the lock is the very one that was got, be it expired or not."""
    return (lock.owner, lock.generation) == (held.owner, held.generation)


def acquire(store: Store, owner: str, now: float, ttl: float, past: int) -> Held:
    """Get the lock. `owner` names this run alone, so it holds something random.

    past: the number that latest.json carries, which is above the lock's own where that was deleted.

    Raises LockedError while another run has it, OutputError where files cannot be swapped safely and where clocks
    contradict each other.
    """
    if not store.exists(LOCK_PATH):
        store.create(LOCK_PATH, _json(LockFile()))
    for _ in range(_ATTEMPTS):
        found, version = read_lock(store)
        try:
            lock = taken(found, owner, now, ttl, past)
        except (LockedError, OutputError) as error:
            raise type(error)(f"{store.url}: {error}") from None
        if store.compare_and_swap(LOCK_PATH, _json(lock), version):
            _check_swaps(store, lock, version)
            return Held(owner, lock.generation, lock.expires)
    raise LockedError(
        f"{store.url}: other runs took the lock first, {_ATTEMPTS} times; look at `labelmill nightly status`"
    )


def renew(store: Store, held: Held, now: float, ttl: float) -> Held | None:
    """Put the lock's end off. None when it is lost."""
    found, version = read_lock(store)
    lock = renewed(found, held, now, ttl)
    if lock is None or not store.compare_and_swap(LOCK_PATH, _json(lock), version):
        return None
    return Held(held.owner, held.generation, lock.expires)


def release(store: Store, held: Held) -> None:
    """Let the lock go, if it is still held."""
    found, version = read_lock(store)
    lock = released(found, held)
    if lock is not None:
        store.compare_and_swap(LOCK_PATH, _json(lock), version)


def read_lock(store: Store) -> tuple[LockFile, Version]:
    """The lock as it is. Raises OutputError where there is none."""
    try:
        file = store.read_versioned(LOCK_PATH)
        return LockFile.model_validate_json(file.data), file.version
    except FileNotFoundError:
        raise OutputError(f"{store.url}/{LOCK_PATH}: is gone; it must not be deleted while a run works here") from None
    except ValidationError:
        raise OutputError(
            f"{store.url}/{LOCK_PATH}: is not what labelmill writes; delete it when no run is in progress"
        ) from None


def _check_swaps(store: Store, lock: LockFile, stale: Version) -> None:
    """Some servers, and proxies before them, ignore the header that makes a swap one. Then nothing here is safe."""
    if store.compare_and_swap(LOCK_PATH, _json(lock), stale):
        release(store, Held(lock.owner or "", lock.generation, lock.expires))
        raise OutputError(
            f"{store.url}: overwrites a file that has changed although asked not to, so two nightly runs would "
            f"undo each other's work. Its server, or a proxy before it, ignores `If-Match` on PUT: update it, or use "
            f"another root"
        )


def iso_time(seconds: float) -> str:
    """Seconds since 1970 as UTC, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _json(lock: LockFile) -> bytes:
    return lock.model_dump_json(indent=1).encode() + b"\n"
