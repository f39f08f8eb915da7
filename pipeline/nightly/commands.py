"""What people and training jobs ask of a nightly root, whether a run works there or not."""

from pathlib import Path

from labelmill.pipeline.dataset.manifest import read_index
from labelmill.pipeline.nightly.latest import change_latest, pin, read_latest, roll_back, unpin
from labelmill.pipeline.nightly.snapshots import (
    check_publishable,
    find_snapshot,
    list_snapshots,
    open_snapshot,
    snapshot_url,
    state_of,
)
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.nightly import load_nightly_config
from labelmill.schemas.nightly_files import Latest


def open_root(where: str) -> Store:
    """The root that a nightly file names, or that `where` itself is. Raises ConfigError and OutputError."""
    path = Path(where)
    # A mistyped file name must not pass for a root in which nothing is live yet.
    is_meant_as_file = "://" not in where and path.suffix in (".yaml", ".yml") and not path.is_dir()
    return Store.open(load_nightly_config(where).root if path.is_file() or is_meant_as_file else where)


def rollback(root: Store, wanted: str | None, time: str) -> Latest:
    """Make an earlier snapshot live: `wanted`, or the one that was live before. The one that is live is withdrawn.

    Raises ConfigError where there is no such snapshot, OutputError where it is not whole or did not pass the gates.
    """
    snapshots = list_snapshots(root)

    def change(latest: Latest) -> Latest:
        if wanted is None and not latest.history:
            raise ConfigError(f"{root.url}: no other snapshot was live before; name the one to go back to")
        target = latest.history[0] if wanted is None else find_snapshot(snapshots, wanted).name
        if target == latest.snapshot:
            raise ConfigError(f"{target}: is live already")
        check_publishable(root, target, latest)
        return roll_back(target, time)(latest)

    return change_latest(root, change)


def pin_snapshot(root: Store, wanted: str) -> str:
    """Keep a snapshot whatever retention says. Returns its name. Raises ConfigError, OutputError."""
    name = find_snapshot(list_snapshots(root), wanted).name

    def change(latest: Latest) -> Latest:
        # Looked at again each time: it may be deleted meanwhile.
        if name in latest.retiring or state_of(open_snapshot(root, name)) == "unfinished":
            raise OutputError(f"{snapshot_url(root, name)}: is not whole, or is being deleted")
        return pin(name)(latest)

    change_latest(root, change)
    return name


def unpin_snapshot(root: Store, wanted: str) -> str:
    """Leave a snapshot to retention again. Returns its name. Raises ConfigError where no such one is pinned."""
    pins = read_latest(root).pins
    found = [name for name in pins if name.startswith(wanted)]
    if len(found) != 1:
        raise ConfigError(f"{wanted}: names {len(found)} pins; there are: {', '.join(pins) or 'none'}")
    change_latest(root, unpin(found[0]))
    return found[0]


def live_snapshot(root: Store) -> str:
    """The name of the live snapshot. Raises OutputError where none is."""
    live = read_latest(root).snapshot
    if live is None:
        raise OutputError(f"{root.url}: no snapshot is live yet; `labelmill nightly` publishes the first")
    return live


def shard_urls(root: Store, split: str | None) -> list[str]:
    """Where the live snapshot's shards are, in order: absolute paths, or URLs in a bucket.

    A snapshot never changes, so a job that was given these finishes on them whatever becomes live meanwhile. Raises
    OutputError where nothing is live, ConfigError for a split that there is not.
    """
    live = live_snapshot(root)
    try:
        index = read_index(open_snapshot(root, live))
    except OutputError:
        if live_snapshot(root) == live:
            raise
        return shard_urls(root, split)  # another one is live since, and the first was deleted
    if split is not None and split not in index.splits:
        raise ConfigError(f"--split {split}: there are {', '.join(index.splits)}")
    base = snapshot_url(root, live) if root.folder is None else str(root.folder / "snapshots" / live)
    return [f"{base}/{shard.url}" for shard in index.shardlist if split in (None, shard.split)]
