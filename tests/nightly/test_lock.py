"""The lock of a nightly root, and that nobody who lost it changes what is live."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.s3_server import S3Server
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from labelmill.pipeline.nightly.latest import LiveMovedError, change_latest, fence, pin, publish, read_latest, roll_back
from labelmill.pipeline.nightly.lease import Lease
from labelmill.pipeline.nightly.lock import LOCK_PATH, Held, acquire, owns, read_lock, release, renew, renewed, taken
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import LockedError, LockExpiredError, OutputError
from labelmill.schemas.nightly import LockConfig
from labelmill.schemas.nightly_files import Latest, LockFile

TTL = 10.0
AGENTS = ("anna", "bert", "cleo")


@pytest.fixture(params=["disk", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "disk":
        return Store.open(str(tmp_path / "root"))
    server: S3Server = request.getfixturevalue("s3")
    server.speaks_google = request.param == "gs"
    monkeypatch.setenv("GOOGLE_BASE_URL", server.endpoint)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "unchecked")
    return Store.open(f"{request.param}{server.create_bucket().removeprefix('s3')}/root")


def test_one_run_at_a_time(store: Store) -> None:
    first = acquire(store, "anna", 100.0, TTL, 0)
    with pytest.raises(
        LockedError, match=r"root: anna has the lock; last heard of 9 s ago\. It is free in 1 s, at 1970-01-01T00:01:50"
    ) as refused:
        acquire(store, "bert", 109.0, TTL, 0)
    assert refused.value.exit_code == 6
    renewed_one = renew(store, first, 109.5, TTL)
    assert renewed_one is not None and renewed_one.expires == 119.5
    with pytest.raises(LockedError):
        acquire(store, "bert", 119.0, TTL, 0)
    second = acquire(store, "bert", 119.5, TTL, 0)
    assert (first.generation, second.generation) == (1, 2)
    assert renew(store, renewed_one, 119.6, TTL) is None
    release(store, renewed_one)  # it is not hers any more
    assert read_lock(store)[0].owner == "bert"
    release(store, second)
    assert acquire(store, "cleo", 119.7, TTL, 0).generation == 3


def test_an_expired_owner_does_not_renew_even_if_nobody_came(store: Store) -> None:
    held = acquire(store, "anna", 0.0, TTL, 0)
    assert renew(store, held, TTL, TTL) is None


def test_a_deleted_lock_does_not_start_from_the_beginning(store: Store) -> None:
    held = acquire(store, "anna", 0.0, TTL, 0)
    fence(store, held.generation)
    store.delete(LOCK_PATH)
    with pytest.raises(OutputError, match=r"root/lock\.json: is gone"):
        renew(store, held, 1.0, TTL)
    again = acquire(store, "bert", 1.0, TTL, read_latest(store).generation)
    assert again.generation == 2
    fence(store, again.generation)
    with pytest.raises(LockedError, match=r"a later owner of the lock has written to it \(number 2, ours is 1\)"):
        change_latest(store, publish("a", None, "now"), held.generation)
    assert read_latest(store).snapshot is None


def test_a_server_that_ignores_conditions_is_refused(s3: S3Server) -> None:
    store = Store.open(f"{s3.create_bucket()}/root")
    s3.stripped_headers = {"if-match"}
    with pytest.raises(OutputError, match="ignores `If-Match` on PUT"):
        acquire(store, "anna", 0.0, TTL, 0)
    s3.clear()
    assert acquire(store, "bert", 0.0, TTL, 0).owner == "bert"


def test_files_that_are_not_labelmills_are_named(store: Store) -> None:
    store.create(LOCK_PATH, b"{}!")
    with pytest.raises(OutputError, match=r"root/lock\.json: is not what labelmill writes"):
        acquire(store, "anna", 0.0, TTL, 0)
    store.create("latest.json", b'{"snapshot": 3}')
    with pytest.raises(OutputError, match=r"root/latest\.json: is not what labelmill writes.*Restore it"):
        read_latest(store)
    store.replace("latest.json", b'{"snapshot": "2026-01-01-0123456789ab"}')  # as the message says
    assert read_latest(store).snapshot == "2026-01-01-0123456789ab"


def test_a_change_meanwhile_is_not_lost(store: Store) -> None:
    """Somebody pins and rolls back between a run's look at latest.json and its write."""
    fence(store, 1)
    change_latest(store, publish("a", None, "1"), 1)
    disturbances = [pin("a"), roll_back("b", "2")]

    def disturbed(latest: Latest) -> Latest:
        if disturbances:
            change_latest(store, disturbances.pop(0))
        return publish("c", "a", "3")(latest)

    with pytest.raises(LiveMovedError):  # what it was compared with is not live any more
        change_latest(store, disturbed, 1)
    latest = read_latest(store)
    assert (latest.snapshot, latest.pins, latest.withdrawn, latest.generation) == ("b", ("a",), ("a",), 1)


def test_history_and_rollbacks() -> None:
    latest = Latest()
    for name in "abcd":
        latest = publish(name, latest.snapshot, name)(latest)
    assert (latest.snapshot, latest.history) == ("d", ("c", "b", "a"))
    latest = roll_back("c", "now")(latest)
    assert (latest.snapshot, latest.history, latest.withdrawn) == ("c", ("b", "a"), ("d",))
    latest = roll_back("a", "now")(latest)
    assert (latest.snapshot, latest.history, latest.withdrawn) == ("a", (), ("c", "d"))
    latest = roll_back("d", "now")(latest)
    assert (latest.snapshot, latest.history, latest.withdrawn) == ("d", ("a",), ("c",))
    latest = publish("e", "d", "now")(latest)
    assert (latest.snapshot, latest.history, latest.withdrawn) == ("e", ("d", "a"), ("c",))
    latest = publish("c", "e", "now")(latest)
    assert (latest.snapshot, latest.history, latest.withdrawn) == ("c", ("e", "d", "a"), ())


class LockedRoot(RuleBasedStateMachine):
    """Runs that get, lose and let go of the lock, and publish, with pauses of any length between any two steps.

    A model beside the files says what each step must give.
    """

    def __init__(self) -> None:
        super().__init__()
        shared_memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None)
        self.store = Store.open(self._folder.name)
        self.now = 0.0
        self.held: dict[str, Held] = {}
        self.owner: tuple[str, int] | None = None
        self.expires = 0.0
        self.generation = 0  # of the lock
        self.fenced = 0  # of latest.json
        self.published: str | None = None
        self.count = 0

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(seconds=st.sampled_from([0.5, 3.0, TTL, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(agent=st.sampled_from(AGENTS))
    def acquire(self, agent: str) -> None:
        is_free = self.owner is None or self.now >= self.expires
        try:
            held = acquire(self.store, agent, self.now, TTL, read_latest(self.store).generation)
        except LockedError as error:
            assert not is_free and self.owner is not None and self.owner[0] in str(error)
            return
        assert is_free
        self.generation += 1
        assert held == Held(agent, self.generation, self.now + TTL)
        self.held[agent] = held
        self.owner, self.expires = (agent, held.generation), held.expires

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(sorted(self.held.values(), key=str)))
        is_mine = self.owner == (held.owner, held.generation) and self.now < self.expires
        again = renew(self.store, held, self.now, TTL)
        assert (again is not None) == is_mine
        if again is not None:
            self.held[held.owner] = again
            self.expires = self.now + TTL

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(sorted(self.held.values(), key=str)))
        release(self.store, held)
        if self.owner == (held.owner, held.generation):
            self.owner = None

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fence(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(sorted(self.held.values(), key=str)))
        if held.generation < self.fenced:
            with pytest.raises(LockedError):
                fence(self.store, held.generation)
        else:
            assert fence(self.store, held.generation).snapshot == self.published
            self.fenced = held.generation

    @precondition(lambda self: self.held)
    @rule(data=st.data(), is_paused=st.booleans())
    def publish(self, data: st.DataObject, is_paused: bool) -> None:
        """With a pause, others get the lock and fence between the look at latest.json and the write."""
        held = data.draw(st.sampled_from(sorted(self.held.values(), key=str)))
        self.count += 1
        name, pauses = f"snapshot-{self.count}", [True] * is_paused

        def change(latest: Latest) -> Latest:
            if pauses.pop() if pauses else False:
                self.now += 100.0
                self.acquire(data.draw(st.sampled_from(AGENTS)))
                newest = max(self.held.values(), key=lambda each: each.generation)
                if newest.generation >= self.fenced:
                    fence(self.store, newest.generation)
                    self.fenced = newest.generation
            return publish(name, latest.snapshot, name)(latest)

        try:
            latest = change_latest(self.store, change, held.generation)
        except LockedError:
            assert held.generation < self.fenced
            return
        assert held.generation >= self.fenced and latest.snapshot == name
        self.published, self.fenced = name, held.generation

    @invariant()
    def files_are_those_of_the_model(self) -> None:
        latest = read_latest(self.store)
        assert (latest.snapshot, latest.generation) == (self.published, self.fenced)


LockedRoot.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLockedRoot = LockedRoot.TestCase


def test_the_states_of_a_lock() -> None:
    free = LockFile(generation=4)
    held_by_anna = taken(free, "anna", 10.0, TTL)
    assert held_by_anna == LockFile(generation=5, owner="anna", heartbeat=10.0, expires=20.0)
    assert taken(free, "anna", 10.0, TTL, past=8).generation == 9
    with pytest.raises(LockedError):
        taken(held_by_anna, "anna", 19.9, TTL)  # not even by itself
    assert taken(held_by_anna, "bert", 20.0, TTL).generation == 6
    mine = Held("anna", 5, 20.0)
    assert owns(held_by_anna, mine) and not owns(taken(held_by_anna, "anna", 20.0, TTL), mine)
    assert renewed(held_by_anna, mine, 19.9, TTL) == LockFile(generation=5, owner="anna", heartbeat=19.9, expires=29.9)
    assert renewed(held_by_anna, mine, 20.0, TTL) is None


def test_a_heartbeat_keeps_the_lock(store: Store) -> None:
    now = [1000.0]
    config = LockConfig(ttl_s=60, heartbeat_s=0.05)
    with Lease(store, config, lambda: now[0]) as lease:
        for _ in range(3):
            now[0] += 50
            _wait_until(lambda: read_lock(store)[0].expires == now[0] + 60)
        lease.confirm()
        with pytest.raises(LockedError), Lease(store, config, lambda: now[0]):
            raise AssertionError("two have the lock")
    with Lease(store, config, lambda: now[0]) as after:
        assert after.generation == lease.generation + 1


def test_a_run_that_was_frozen_knows_it_when_it_wakes(store: Store) -> None:
    now = [1000.0]
    with Lease(store, LockConfig(ttl_s=60, heartbeat_s=20), lambda: now[0]) as lease:
        lease.confirm()
        now[0] += 59.9
        lease.check()
        now[0] += 0.1
        with pytest.raises(LockExpiredError, match=r"has lost the lock: it was not renewed for 60 s \(lock\.ttl_s\)"):
            lease.check()
        now[0] -= 30  # and stays so, whatever the clock says
        with pytest.raises(LockedError):
            lease.confirm()


def test_a_run_notices_that_its_lock_was_taken(store: Store) -> None:
    with Lease(store, LockConfig(ttl_s=60, heartbeat_s=20), lambda: 1000.0) as lease:
        other = acquire(store, "bert", 1060.0, TTL, 0)
        lease.check()  # this machine's clock is behind and sees nothing wrong
        with pytest.raises(LockedError, match="lost the lock: bert has taken it"):
            lease.confirm()
    assert owns(read_lock(store)[0], other)  # leaving does not take it back


def test_the_heartbeat_notices_that_the_lock_was_taken(store: Store) -> None:
    with Lease(store, LockConfig(ttl_s=60, heartbeat_s=0.05), lambda: 1000.0) as lease:
        acquire(store, "bert", 1060.0, TTL, 0)
        _wait_until(lambda: lease.is_lost)
        with pytest.raises(LockedError, match="another run has taken it") as lost:
            lease.check()
    assert lost.value.exit_code == 6


def test_the_heartbeat_notices_that_the_lock_ran_out(store: Store) -> None:
    """Nobody has taken it: the same command may go on."""
    now = [1000.0]
    with Lease(store, LockConfig(ttl_s=60, heartbeat_s=0.05), lambda: now[0]) as lease:
        now[0] += 60
        _wait_until(lambda: lease.is_lost)
        with pytest.raises(LockExpiredError, match=r"was not renewed for 60 s .* run it again") as lost:
            lease.check()
    assert lost.value.exit_code == 75


def test_what_a_run_has_done_stands_though_it_cannot_let_the_lock_go(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lease(store, LockConfig(ttl_s=60, heartbeat_s=20), lambda: 1000.0):
        store.delete(LOCK_PATH)
    assert capsys.readouterr().err.startswith("the lock could not be released; it expires in 60 s: ")


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
