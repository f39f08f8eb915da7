"""Which snapshots go, and how: at every moment a folder with a manifest is a whole dataset.

A snapshot is deleted in three steps. latest.json says that it is retiring, in one swap with the rest of what it
decides, so that no rollback and no pin turns to it meanwhile. Its manifest goes first: from then on it is an
unfinished snapshot, whatever else is still there. Its run.json goes last, so that what a killed deletion leaves can
still be told from a stranger's files, and made whole again or deleted by the next run.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from labelmill.pipeline.dataset.manifest import INDEX_PATH, MANIFEST_PATH, RUN_PATH
from labelmill.pipeline.nightly.latest import change_latest, read_latest, retire, retired
from labelmill.pipeline.nightly.lease import Lease
from labelmill.pipeline.nightly.snapshots import GATES_PATH, SNAPSHOTS, Snapshot, list_snapshots, open_snapshot
from labelmill.pipeline.store.store import Store
from labelmill.schemas.nightly import RetentionConfig
from labelmill.schemas.nightly_files import Latest

# A bucket answers each request after milliseconds.
_DELETERS = 16


@dataclass(frozen=True)
class SnapshotDecision:
    """What becomes of a snapshot."""

    snapshot: Snapshot
    is_kept: bool
    reason: str


def fates(
    snapshots: Sequence[Snapshot], latest: Latest, tonight: str | None, config: RetentionConfig
) -> list[SnapshotDecision]:
    """What becomes of each snapshot, the oldest first. `tonight` is the one that may not be finished yet."""
    passed = _passed(snapshots, latest)[: config.keep_last]
    others = [snapshot.name for snapshot in snapshots if snapshot.state in ("rejected", "complete")]
    rejected = others[-config.keep_rejected :] if config.keep_rejected else []

    def fate(snapshot: Snapshot) -> SnapshotDecision:
        name = snapshot.name
        keeps = [
            (name == latest.snapshot, "live"),
            (name in latest.pins, "pinned"),
            (name == tonight, "tonight's"),
            (name in passed, f"among the last {config.keep_last} that passed"),
            (name in rejected, f"among the last {config.keep_rejected} that did not pass"),
        ]
        reasons = [reason for holds, reason in keeps if holds]
        goes = {"unfinished": "never finished", "passed": f"not among the last {config.keep_last} that passed"}
        return SnapshotDecision(snapshot, bool(reasons), ", ".join(reasons) or goes.get(snapshot.state, "did not pass"))

    return [fate(snapshot) for snapshot in snapshots]


def _passed(snapshots: Sequence[Snapshot], latest: Latest) -> list[str]:
    """Those that passed, in the order in which they are worth keeping.

    What is live and what was, the last one first: trainings may still read it, and rollbacks turn to it. Then what
    never was, then what a rollback left, the newest one first each.
    """
    passed = [snapshot.name for snapshot in reversed(snapshots) if snapshot.state == "passed"]
    live = [name for name in (latest.snapshot, *latest.history) if name in passed]
    others = [name for name in passed if name not in live]
    return [*live, *sorted(others, key=lambda name: name in latest.withdrawn)]


def prune(root: Store, lease: Lease, tonight: str | None, config: RetentionConfig) -> list[SnapshotDecision]:
    """Delete what need not be kept; says what became of each snapshot.

    Raises LockedError when the lock is lost meanwhile, OutputError when something cannot be deleted.
    """
    snapshots = list_snapshots(root)

    def choose(latest: Latest) -> tuple[str, ...]:
        return tuple(fate.snapshot.name for fate in fates(snapshots, latest, tonight, config) if not fate.is_kept)

    before = read_latest(root)
    if choose(before) or before.retiring:
        lease.confirm()
        before = change_latest(root, retire(choose), lease.generation)
        finish_retiring(root, lease)
    return fates(snapshots, before, tonight, config)


def finish_retiring(root: Store, lease: Lease) -> None:
    """Delete what is retiring, also what a killed run left so."""
    retiring = read_latest(root).retiring
    for name in retiring:
        delete_snapshot(root, name, lease.check)
    if retiring:
        change_latest(root, retired, lease.generation)


def clear_remains(root: Store, name: str, check: Callable[[], None]) -> None:
    """Remove what a run that had lost its lock wrote into a snapshot after that was deleted: such a folder has neither
    run.json nor a verdict, and could not be claimed again. `check` is as for `delete_snapshot`."""
    snapshot = open_snapshot(root, name)
    is_claimed = snapshot.exists(RUN_PATH) or snapshot.exists(GATES_PATH)
    if not is_claimed and snapshot.first_file() is not None:
        delete_snapshot(root, name, check)


def delete_snapshot(root: Store, name: str, check: Callable[[], None]) -> None:
    """Remove a snapshot's files. `check` is asked before each one, and may raise."""
    snapshot = open_snapshot(root, name)

    def delete(path: str) -> None:
        check()
        snapshot.delete(path)

    for path in (MANIFEST_PATH, INDEX_PATH):
        delete(path)
    rest = [file.path for file in snapshot.list() if file.path != RUN_PATH]
    with ThreadPoolExecutor(_DELETERS if snapshot.folder is None else 1) as threads:
        for _ in threads.map(delete, rest):
            pass
    delete(RUN_PATH)
    if root.folder is not None:
        snapshot.sweep_orphans(0)
        _remove_empty_folders(root.folder / SNAPSHOTS / name)


def _remove_empty_folders(folder: Path) -> None:
    """A disk, unlike a bucket, keeps folders that nothing is in."""
    below = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    # Gone already, or an earlier run that lost its lock still writes there; the next retention finds it.
    with suppress(OSError):
        for path in (*below, folder):
            path.rmdir()
