"""What lies ahead of the clock: a night that has not come yet would stand in the way of all nights before it."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from labelmill.pipeline.nightly.snapshots import Snapshot, night_of
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.nightly_files import Latest

# Where the date changes first. Whoever names a night by the date of a place means no later one.
_EARLIEST_ZONE = timedelta(hours=14)


def newest_night(now: float) -> date:
    """The date that it is where the date changes first. `now` is in seconds since 1970."""
    return (datetime.fromtimestamp(now, UTC) + _EARLIEST_ZONE).date()


def check_has_come(night: date, now: float) -> None:
    """Raises ConfigError for a night that lies ahead of the clock."""
    if night > newest_night(now):
        raise ConfigError(
            f"--date {night}: is ahead of this machine's clock, by which it is {_utc(now)}. Correct the date or the "
            f"clock: once such a night is live, no night before it makes anything"
        )


def check_live_has_come(root: Store, latest: Latest, now: float) -> None:
    """Raises OutputError when the live snapshot is of a night that lies ahead of the clock, and says how to mend it."""
    live = latest.snapshot
    if live is None or not is_ahead(live, now):
        return
    earlier = next((name for name in latest.history if not is_ahead(name, now)), None)
    if earlier is None:
        pins = ", with the pins that it holds" if latest.pins else ""
        mend = f"delete {root.url}/latest.json{pins}, and the next night publishes its snapshot as the first one did"
    else:
        mend = f"`labelmill nightly rollback {root.url} {earlier}` makes live what was live before"
    raise OutputError(
        f"{root.url}: the live snapshot {live} is of a night ahead of this machine's clock, by which it is "
        f"{_utc(now)}; nothing was made. If the clock is wrong, set it. If the clock was ahead that night, or --date "
        f"mistyped, {mend}"
    )


def those_that_have_come(snapshots: Sequence[Snapshot], now: float) -> list[Snapshot]:
    """Snapshots of nights that do not lie ahead of the clock: the ones that a night may resume or find unchanged."""
    return [snapshot for snapshot in snapshots if not is_ahead(snapshot.name, now)]


def is_ahead(snapshot: str, now: float) -> bool:
    """Whether a snapshot is of a night that lies ahead of the clock."""
    return night_of(snapshot) > newest_night(now).isoformat()


def _utc(now: float) -> str:
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
