"""How a nightly root stands: what is live, what else there is, and who works on it."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from labelmill.pipeline.nightly.clock import is_ahead
from labelmill.pipeline.nightly.latest import read_latest
from labelmill.pipeline.nightly.lock import LOCK_PATH, iso_time, read_lock
from labelmill.pipeline.nightly.snapshots import Snapshot, State, list_snapshots, open_snapshot, read_report
from labelmill.pipeline.store.store import Store
from labelmill.schemas.nightly_files import GateReport


class SnapshotStatus(BaseModel):
    """A snapshot, as `labelmill nightly status` shows it."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: State
    is_live: bool
    is_pinned: bool
    is_withdrawn: bool
    is_retiring: bool


class NightlyStatus(BaseModel):
    """`labelmill nightly status --json`."""

    model_config = ConfigDict(frozen=True)

    root: str
    unix_time: float
    """When all this was so."""
    live: str | None
    published: str | None
    live_is_ahead: bool
    """Whether the live snapshot is of a night ahead of this machine's clock. No night makes anything then."""
    live_age_seconds: float | None
    """Since it became live. Below 0 where that lies ahead of the clock, as with the other ages."""
    success_age_seconds: float | None
    """Since a night last ended well: it published a snapshot, or there was nothing new to make."""
    owner: str | None
    """The run that has the lock, or had it until it expired."""
    heartbeat_age_seconds: float | None
    """Since the lock's owner was last heard of."""
    lock_expires: str | None
    lock_has_expired: bool
    """Whether the next run takes the lock from its owner, who has been silent for too long."""
    generation: int
    snapshots: tuple[SnapshotStatus, ...]
    newest_gates: GateReport | None
    """What verification and gates said last. A refusal is left out once a night has ended well after it."""


def nightly_status(root: Store, now: float) -> NightlyStatus:
    """Raises OutputError where the root cannot be read."""
    latest = read_latest(root)
    lock = read_lock(root)[0] if root.exists(LOCK_PATH) else None
    held = lock is not None and lock.owner is not None
    snapshots = list_snapshots(root)
    return NightlyStatus(
        root=root.url,
        unix_time=now,
        live=latest.snapshot,
        published=latest.published,
        live_is_ahead=latest.snapshot is not None and is_ahead(latest.snapshot, now),
        live_age_seconds=_age(latest.published, now),
        success_age_seconds=_age(latest.succeeded, now),
        owner=lock.owner if lock else None,
        heartbeat_age_seconds=now - lock.heartbeat if lock and held else None,
        lock_expires=iso_time(lock.expires) if lock and held else None,
        lock_has_expired=lock is not None and held and now >= lock.expires,
        generation=latest.generation,
        snapshots=tuple(
            SnapshotStatus(
                name=snapshot.name,
                state=snapshot.state,
                is_live=snapshot.name == latest.snapshot,
                is_pinned=snapshot.name in latest.pins,
                is_withdrawn=snapshot.name in latest.withdrawn,
                is_retiring=snapshot.name in latest.retiring,
            )
            for snapshot in snapshots
        ),
        newest_gates=_newest_report(root, snapshots, latest.succeeded),
    )


def _newest_report(root: Store, snapshots: Sequence[Snapshot], succeeded: str | None) -> GateReport | None:
    """By the time of the judgement: a snapshot of an earlier date may have been judged again."""
    judged = [open_snapshot(root, snapshot.name) for snapshot in snapshots if snapshot.state in ("passed", "rejected")]
    reports = [report for report in map(read_report, judged) if report is not None]
    # A refusal is over when the next night publishes another snapshot, or finds what is live unchanged.
    standing = [report for report in reports if report.passed or succeeded is None or report.judged >= succeeded]
    return max(standing, key=lambda report: (report.judged, report.snapshot), default=None)


def nightly_status_lines(status: NightlyStatus) -> list[str]:
    """The status for a person."""
    lines = [
        f"{status.root}: nothing is live"
        if status.live is None
        else f"{status.root}: {status.live} is live since {status.published}"
    ]
    if status.live_is_ahead:
        lines.append("that night is ahead of this machine's clock; `labelmill nightly validate` shows how to fix it")
    if status.owner is None:
        lines.append("no run is in progress")
    else:
        until = f"had the lock until {status.lock_expires}" if status.lock_has_expired else "has the lock"
        tail = "; it is free for the next run" if status.lock_has_expired else f", until {status.lock_expires}"
        lines.append(f"{status.owner} {until}, last heard of {status.heartbeat_age_seconds or 0:.0f} s ago{tail}")
    for snapshot in reversed(status.snapshots):
        marks = {
            "live": snapshot.is_live,
            "pinned": snapshot.is_pinned,
            "withdrawn": snapshot.is_withdrawn,
            "being deleted": snapshot.is_retiring,
        }
        named = ", ".join(mark for mark, holds in marks.items() if holds)
        lines.append(f"  {snapshot.name}  {snapshot.state}{f' ({named})' if named else ''}")
    return lines


def _age(time: str | None, now: float) -> float | None:
    return None if time is None else round(now - datetime.fromisoformat(time).timestamp(), 1)
