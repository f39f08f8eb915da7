"""Which snapshots go, and what is left at every moment while they do."""

from pathlib import Path

import pytest
from helpers.s3_server import S3Server
from helpers.small_dataset import write_dataset
from hypothesis import given
from hypothesis import strategies as st

from labelmill.pipeline.dataset.manifest import MANIFEST_PATH, RUN_PATH
from labelmill.pipeline.nightly.commands import pin_snapshot, rollback, unpin_snapshot
from labelmill.pipeline.nightly.latest import change_latest, pin, publish, read_latest, retire
from labelmill.pipeline.nightly.lease import Lease
from labelmill.pipeline.nightly.retention import clear_remains, delete_snapshot, fates, finish_retiring, prune
from labelmill.pipeline.nightly.snapshots import Snapshot, State, list_snapshots, open_snapshot, state_of
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError, LockedError, OutputError
from labelmill.schemas.nightly import LockConfig, RetentionConfig
from labelmill.schemas.nightly_files import GateReport, Latest


def name_of(number: int) -> str:
    return f"2026-01-{number + 1:02d}-{number:012x}"


states = st.sampled_from(["unfinished", "complete", "passed", "rejected"])


@given(
    given_states=st.lists(states, max_size=20),
    keep_last=st.integers(1, 5),
    keep_rejected=st.integers(0, 3),
    data=st.data(),
)
def test_what_is_kept(given_states: list[State], keep_last: int, keep_rejected: int, data: st.DataObject) -> None:
    snapshots = [Snapshot(name_of(number), state) for number, state in enumerate(given_states)]
    names = [snapshot.name for snapshot in snapshots]
    some = st.lists(st.sampled_from(names), max_size=3) if names else st.just([])
    live = data.draw(st.sampled_from([None, *names]))
    tonight = data.draw(st.sampled_from([None, *names]))
    pins = data.draw(some)
    once_live = [name for name in data.draw(st.permutations(names)) if name != live]
    num_history = data.draw(st.integers(0, len(once_live)))
    history, rest = once_live[:num_history], once_live[num_history:]
    withdrawn = rest[: data.draw(st.integers(0, len(rest)))]
    latest = Latest(snapshot=live, pins=tuple(pins), history=tuple(history), withdrawn=tuple(withdrawn))
    config = RetentionConfig(keep_last=keep_last, keep_rejected=keep_rejected)
    result = fates(snapshots, latest, tonight, config)
    assert [fate.snapshot for fate in result] == snapshots
    kept = {fate.snapshot.name for fate in result if fate.is_kept}
    always = {live, tonight, *pins} - {None}
    assert always <= kept
    newest_first = snapshots[::-1]
    never_live = [name for name in names[::-1] if name not in (live, *history, *withdrawn)]
    by_worth = [live, *history, *never_live, *sorted(withdrawn, reverse=True)]
    state_by_name = dict(zip(names, given_states, strict=True))
    passed = [name for name in by_worth if name is not None and state_by_name[name] == "passed"]
    others = [snapshot.name for snapshot in newest_first if snapshot.state in ("rejected", "complete")]
    assert kept - always == {*passed[:keep_last], *others[:keep_rejected]} - always


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Four snapshots of painted samples that passed; the last one is live and was preceded by the others."""
    if request.param == "disk":
        url = str(tmp_path / "root")
    else:
        server: S3Server = request.getfixturevalue("s3")
        url = f"{server.create_bucket()}/root"
    store = Store.open(url)
    template, _ = write_dataset(tmp_path / "template", samples=5)
    files = {file.path: template.read(file.path) for file in template.list()}
    for number in range(4):
        add_live(store, number, files)
    return store


def add_live(root: Store, number: int, files: dict[str, bytes]) -> None:
    """Publish one more snapshot, of these files."""
    snapshot = open_snapshot(root, name_of(number))
    for path, content in files.items():
        snapshot.create(path, content)
    snapshot.replace("gates.json", report_of(number, passed=True))
    change_latest(root, publish(name_of(number), read_latest(root).snapshot, f"{number}"))


def report_of(number: int, *, passed: bool) -> bytes:
    report = GateReport(
        snapshot=name_of(number),
        live=None,
        passed=passed,
        problems=(),
        results=(),
        tonight=None,
        live_measures=None,
        judged="2026-01-01T00:00:00+00:00",
    )
    return report.model_dump_json().encode()


def lease_of(root: Store) -> Lease:
    return Lease(root, LockConfig(ttl_s=60, heartbeat_s=20), lambda: 1000.0)


def test_old_snapshots_go_and_history_with_them(root: Store) -> None:
    change_latest(root, pin(name_of(0)))
    with lease_of(root) as lease:
        result = prune(root, lease, None, RetentionConfig(keep_last=2))
    assert {fate.snapshot.name: (fate.is_kept, fate.reason) for fate in result} == {
        name_of(0): (True, "pinned"),
        name_of(1): (False, "not among the last 2 that passed"),
        name_of(2): (True, "among the last 2 that passed"),
        name_of(3): (True, "live, among the last 2 that passed"),
    }
    assert [snapshot.name for snapshot in list_snapshots(root)] == [name_of(0), name_of(2), name_of(3)]
    assert root.list(f"snapshots/{name_of(1)}") == []
    latest = read_latest(root)
    assert (latest.snapshot, latest.history, latest.retiring) == (name_of(3), (name_of(2), name_of(0)), ())
    if root.folder is not None:
        assert not (root.folder / "snapshots" / name_of(1)).exists()


def test_what_was_live_stays_for_longer_than_what_a_rollback_left(root: Store) -> None:
    """The night after a rollback: trainings have read the older snapshot until then, and nobody should the newer."""
    rollback(root, None, "now")
    template = open_snapshot(root, name_of(0))
    add_live(root, 4, {file.path: template.read(file.path) for file in template.list()})
    with lease_of(root) as lease:
        prune(root, lease, None, RetentionConfig(keep_last=4))
        assert [snapshot.name for snapshot in list_snapshots(root)] == [name_of(number) for number in (0, 1, 2, 4)]
        prune(root, lease, None, RetentionConfig(keep_last=2))
    assert [snapshot.name for snapshot in list_snapshots(root)] == [name_of(2), name_of(4)]
    assert rollback(root, None, "now").snapshot == name_of(2)


def test_what_a_rollback_left_stays_while_there_is_room(root: Store) -> None:
    """It was a mistake, perhaps."""
    rollback(root, name_of(0), "now")
    with lease_of(root) as lease:
        prune(root, lease, None, RetentionConfig(keep_last=4))
    assert rollback(root, name_of(3), "now").snapshot == name_of(3)


@pytest.mark.parametrize(
    ("root", "num_deletions"), [*(("disk", number) for number in range(15)), ("s3", 1), ("s3", 12)], indirect=["root"]
)
def test_a_deletion_that_ends_anywhere_leaves_nothing_that_looks_whole(root: Store, num_deletions: int) -> None:
    """Interrupted after any number of files. What is left is unfinished, known for labelmill's, and goes later."""
    left = [num_deletions]

    def check() -> None:
        if not left[0]:
            raise LockedError("lost")
        left[0] -= 1

    num_files = len(root.list(f"snapshots/{name_of(0)}"))
    change_latest(root, retire(lambda latest: (name_of(0),)))
    try:
        delete_snapshot(root, name_of(0), check)
    except LockedError:
        assert num_deletions < num_files
    else:
        assert num_deletions >= num_files
    snapshot = open_snapshot(root, name_of(0))
    if num_deletions:
        assert state_of(snapshot) == "unfinished"
    if snapshot.list():
        assert snapshot.exists(RUN_PATH) or num_deletions == num_files
    for refused in (lambda: rollback(root, name_of(0), "now"), lambda: pin_snapshot(root, name_of(0))):
        with pytest.raises((OutputError, ConfigError)):
            refused()
    with lease_of(root) as lease:
        finish_retiring(root, lease)
    assert snapshot.list() == []
    assert read_latest(root).retiring == ()


def test_what_was_written_after_the_deletion_is_cleared_away(root: Store) -> None:
    """A run that slept through its lock writes the manifest of a snapshot that is gone by then."""
    manifest = open_snapshot(root, name_of(0)).read(MANIFEST_PATH)
    delete_snapshot(root, name_of(0), lambda: None)
    open_snapshot(root, name_of(0)).create(MANIFEST_PATH, manifest)
    for number in range(4):
        clear_remains(root, name_of(number), lambda: None)
    assert [snapshot.name for snapshot in list_snapshots(root)] == [name_of(number) for number in (1, 2, 3)]
    assert all(snapshot.state == "passed" for snapshot in list_snapshots(root))


def test_a_rollback_while_retention_decides(root: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator goes back to a snapshot after retention has chosen it, and before it says so: it stays."""
    swap, disturbances = Store.compare_and_swap, [name_of(1)]

    def disturbed(store: Store, path: str, *arguments: object) -> bool:
        if path == "latest.json" and disturbances:
            rollback(Store.open(root.url), disturbances.pop(), "now")
        return swap(store, path, *arguments)  # type: ignore[arg-type]

    with lease_of(root) as lease:
        monkeypatch.setattr(Store, "compare_and_swap", disturbed)
        prune(root, lease, None, RetentionConfig(keep_last=1))
    assert read_latest(root).snapshot == name_of(1)
    assert [snapshot.name for snapshot in list_snapshots(root)] == [name_of(1)]


def test_a_run_that_lost_its_lock_deletes_nothing_more(root: Store) -> None:
    now = [1000.0]
    with Lease(root, LockConfig(ttl_s=60, heartbeat_s=20), lambda: now[0]) as lease:
        now[0] = 1060.0
        with pytest.raises(LockedError):
            prune(root, lease, None, RetentionConfig(keep_last=1))
    assert len(list_snapshots(root)) == 4
    assert read_latest(root).retiring == ()


def test_rollback_goes_back_step_by_step(root: Store) -> None:
    assert rollback(root, None, "now").snapshot == name_of(2)
    assert rollback(root, None, "now").snapshot == name_of(1)
    latest = rollback(root, "2026-01-04", "now")
    assert (latest.snapshot, latest.withdrawn) == (name_of(3), (name_of(2),))
    assert latest.history == (name_of(1), name_of(0))
    with pytest.raises(ConfigError, match="is live already"):
        rollback(root, name_of(3), "now")
    with pytest.raises(ConfigError, match="2026-02: is not a snapshot; there are: 2026-01-01-"):
        rollback(root, "2026-02", "now")
    with pytest.raises(ConfigError, match="2026-01: names several snapshots"):
        rollback(root, "2026-01", "now")


def test_rollback_refuses_what_must_not_be_live(root: Store) -> None:
    open_snapshot(root, name_of(0)).replace("gates.json", report_of(0, passed=False))
    open_snapshot(root, name_of(1)).delete(MANIFEST_PATH)
    open_snapshot(root, name_of(2)).replace("shards/painted-000001.tar", b"cut")
    for number, sentence in (
        (0, r"did not pass the gates .*--set gates\.NAME=VALUE"),
        (1, "is not complete"),
        (2, r"painted-000001\.tar: is missing or damaged"),
    ):
        with pytest.raises(OutputError, match=sentence):
            rollback(root, name_of(number), "now")
    open_snapshot(root, name_of(2)).delete("gates.json")
    with pytest.raises(OutputError, match="was not judged by the gates yet"):
        rollback(root, None, "now")
    assert read_latest(root).snapshot == name_of(3)


def test_pins(root: Store) -> None:
    assert pin_snapshot(root, "2026-01-02") == pin_snapshot(root, name_of(1)) == name_of(1)
    assert read_latest(root).pins == (name_of(1),)
    with pytest.raises(ConfigError, match=f"names 0 pins; there are: {name_of(1)}"):
        unpin_snapshot(root, "2026-01-03")
    assert unpin_snapshot(root, "2026-01-02") == name_of(1)
    assert read_latest(root).pins == ()
