"""Nights, rollbacks and pins in any order, while drivers are killed, overtaken and given other times at any write.

All of it is the real code on a real folder but for the images, which are painted: hypothesis wants hundreds of nights.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from helpers.nightly_runs import ANYTHING_PASSES, WRITES, check_live
from helpers.small_dataset import claim, context_of, publish, records_of, samples_of, tar_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from labelmill.pipeline.dataset.finish import finish_dataset
from labelmill.pipeline.dataset.plan import remaining_tasks, shard_tasks
from labelmill.pipeline.nightly.commands import pin_snapshot, rollback, shard_urls, unpin_snapshot
from labelmill.pipeline.nightly.latest import read_latest
from labelmill.pipeline.nightly.lock import LOCK_PATH, read_lock
from labelmill.pipeline.nightly.retention import fates
from labelmill.pipeline.nightly.snapshots import check_publishable, list_snapshots
from labelmill.pipeline.nightly.status import nightly_status
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, GateError, LabelmillError, LockedError, LockExpiredError, OutputError
from labelmill.schemas.nightly import NightlyConfig
from labelmill.schemas.yaml_file import validate
from labelmill.workers.nightly import Outcome, run_night

TTL = 60.0
DARK = 0.1
"""Below this truncation psi images are painted dark, which a gate notices."""


def paint_dataset(config: RunConfig) -> None:
    """What `generate` does, with painted images: claim, the shards that are missing, manifest."""
    context, store = context_of(config), Store.open(config.output)
    claim(store, config)
    dimmed = 8 if config.generator.truncation_psi < DARK else 1
    with ThreadPoolExecutor(1) as threads:
        records = records_of(store, config)
        for task in remaining_tasks(shard_tasks(config), records):
            tar = tar_of(samples_of(task, context.fingerprint, dimmed), threads)
            records.append(publish(store, task, tar, context.fingerprint))
    finish_dataset(store, sorted(records, key=lambda record: record.index), context)


class KilledError(BaseException):
    """The driver is dead. No handler sees it, and nothing that it would write arrives."""


@dataclass(frozen=True)
class Disturbance:
    """What happens at a write of a night, counted from 0."""

    number: int
    kind: str
    """before, after: it is killed then. overtaken: it sleeps for longer than the lock lives, and another night is made
    meanwhile. forward, back: the clock jumps."""


class _Driver:
    """Looks at every write of a night."""

    def __init__(
        self, disturbance: Disturbance | None, happen: Callable[[str], None], look: Callable[[], None]
    ) -> None:
        self._disturbance, self._happen, self._look = disturbance, happen, look
        self._count, self._is_dead = 0, False
        self.has_happened = False

    def write(self, write: Callable[[], Any]) -> Any:
        if self._is_dead:
            raise KilledError
        self._look()
        number, self._count = self._count, self._count + 1
        disturbance = self._disturbance
        if disturbance is None or number != disturbance.number:
            return write()
        self.has_happened = True
        if disturbance.kind in ("before", "after"):
            if disturbance.kind == "after":
                write()
            self._is_dead = True
            raise KilledError
        self._happen(disturbance.kind)
        return write()


class Nights(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        shared_memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None)
        folder = Path(self._folder.name)
        (folder / "checkpoint").write_bytes(b"a generator")
        self.root = Store.open(str(folder / "root"))
        self.checkpoint = str(folder / "checkpoint")
        self.now = 1_800_000_000.0
        self.generation = 0
        self.drivers: list[_Driver] = []
        self.stack = ExitStack()
        self.stack.enter_context(patch("labelmill.workers.nightly.generate", paint_dataset))
        # Whoever looks at pictures does so in other tests.
        self.stack.enter_context(patch("labelmill.pipeline.nightly.judge.gates_page", lambda *arguments: b"a page"))
        for name in WRITES:
            self.stack.enter_context(patch.object(Store, name, self._watched(getattr(Store, name))))

    def teardown(self) -> None:
        """Whatever has happened, a night on a clock that goes on ends as if nothing had."""
        try:
            self.drivers.clear()
            expires = read_lock(self.root)[0].expires if self.root.exists(LOCK_PATH) else 0.0
            self.now = max(self.now, expires)
            self._undisturbed(self._config(100, dark=False), 9)
            self._undisturbed(self._config(100, dark=False), 9)
        finally:
            self.stack.close()
            self._folder.cleanup()

    def _watched(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def watched(store: Store, *arguments: Any) -> Any:
            if not self.drivers:
                return write(store, *arguments)
            return self.drivers[-1].write(lambda: write(store, *arguments))

        return watched

    def _config(self, first_seed: int, *, dark: bool) -> NightlyConfig:
        run = {
            "name": "painted",
            "generator": {"checkpoint": self.checkpoint, "truncation_psi": DARK / 2 if dark else 0.7},
            "dataset": {"samples": 6, "samples_per_shard": 4, "image_format": "png", "first_seed": first_seed},
        }
        values = {
            "run": run,
            "root": self.root.url,
            "gates": {**ANYTHING_PASSES, "brightness_shift": 0.25},
            "retention": {"keep_last": 2, "keep_rejected": 1},
            "lock": {"ttl_s": TTL, "heartbeat_s": TTL / 3},
        }
        return validate(values, "nightly.yaml", NightlyConfig)

    def _run(self, config: NightlyConfig, day: int, driver: _Driver) -> Outcome | LabelmillError | None:
        """None where it was killed."""
        self.drivers.append(driver)
        try:
            return run_night(config, date(2026, 11, day), lambda: self.now)
        except LabelmillError as error:
            return error
        except KilledError:
            return None
        finally:
            self.drivers.pop()

    def _undisturbed(self, config: NightlyConfig, day: int) -> Outcome | LabelmillError:
        """A night that has the lock. Says what must come of it from what the root holds."""
        before = read_latest(self.root)
        was_dark = before.snapshot is not None and self._is_dark(before.snapshot)
        result = self._run(config, day, _Driver(None, lambda kind: None, self._look))
        latest = read_latest(self.root)
        is_dark = config.run.generator.truncation_psi < DARK
        if isinstance(result, GateError):
            assert before.snapshot is not None and was_dark != is_dark
            assert latest.snapshot == before.snapshot and latest.succeeded == before.succeeded
        else:
            assert isinstance(result, Outcome), result
            name = result.snapshot
            if result.kind == "published":
                assert before.snapshot is None or was_dark == is_dark
                assert name not in before.withdrawn and name != before.snapshot
                assert latest.snapshot == name
            else:
                assert name in ((before.snapshot,) if result.kind == "unchanged" else before.withdrawn)
                assert latest.snapshot == before.snapshot
        assert latest.retiring == () and read_lock(self.root)[0].owner is None
        names = list_snapshots(self.root)
        tonight = result.snapshot if isinstance(result, Outcome) else names[-1].name
        kept = fates(names, latest, tonight, config.retention)
        # A refused one may be among older ones that were refused; else all that is there is kept.
        assert isinstance(result, GateError) or all(fate.is_kept for fate in kept)
        return result

    def _is_dark(self, name: str) -> bool:
        config = Store.open(f"{self.root.url}/snapshots/{name}").read("manifest.json")
        return b'"truncation_psi": 0.05' in config or b'"truncation_psi":0.05' in config

    def _look(self) -> None:
        """At any moment: what is live passed the gates and has all its shards, and training jobs find them."""
        latest = read_latest(self.root)
        if latest.snapshot is not None:
            check_publishable(self.root, latest.snapshot, latest)
            assert all(Path(url).is_file() for url in shard_urls(self.root, None))
        assert latest.generation >= self.generation
        self.generation = latest.generation

    def _happen(self, kind: str) -> None:
        if kind == "overtaken":
            self.now += TTL
            other = _Driver(None, lambda kind: None, self._look)
            result = self._run(self._config(700, dark=False), 5, other)
            assert isinstance(result, Outcome | GateError)
            self.overtaker = read_latest(self.root)
        else:
            self.now += TTL if kind == "forward" else -10 * TTL

    @rule(
        first_seed=st.sampled_from([100, 300]),
        dark=st.booleans(),
        day=st.integers(1, 4),
        number=st.integers(0, 40),
        kind=st.sampled_from(["none", "before", "after", "overtaken", "forward", "back"]),
    )
    def night(self, first_seed: int, dark: bool, day: int, number: int, kind: str) -> None:
        config = self._config(first_seed, dark=dark)
        lock = read_lock(self.root)[0] if self.root.exists(LOCK_PATH) else None
        if lock is not None and lock.owner is not None and self.now < lock.expires:
            before = read_latest(self.root)
            result = self._run(config, day, _Driver(None, self._happen, self._look))
            # A heartbeat so far ahead means that one of the clocks is wrong.
            refusal = OutputError if lock.heartbeat - self.now > TTL else LockedError
            assert isinstance(result, refusal) and read_latest(self.root) == before
            return
        if kind == "none":
            self._undisturbed(config, day)
            return
        driver = _Driver(Disturbance(number, kind), self._happen, self._look)
        result = self._run(config, day, driver)
        if not driver.has_happened:
            assert isinstance(result, Outcome | GateError)
        elif kind in ("before", "after"):
            assert result is None
        elif kind == "overtaken":
            # Unless all that was left to write was that the lock is free, it notices; and it changes nothing.
            assert isinstance(result, LockedError | Outcome | GateError)
            assert read_latest(self.root).snapshot == self.overtaker.snapshot
        elif kind == "forward":
            assert isinstance(result, LockExpiredError | Outcome | GateError)
        else:
            assert isinstance(result, Outcome | GateError)

    @rule(seconds=st.sampled_from([1.0, TTL / 2, TTL, 10 * TTL, -5.0, -5 * TTL]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.root.folders("snapshots"))
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        wanted = data.draw(st.sampled_from([None, *self.root.folders("snapshots")]))
        before = read_latest(self.root)
        try:
            latest = rollback(self.root, wanted, "2026-11-01T00:00:00+00:00")
        except (ConfigError, OutputError):
            assert read_latest(self.root) == before
            return
        assert latest.snapshot == (before.history[0] if wanted is None else wanted) != before.snapshot

    @precondition(lambda self: self.root.folders("snapshots"))
    @rule(data=st.data(), is_pinned=st.booleans())
    def pin(self, data: st.DataObject, is_pinned: bool) -> None:
        wanted = data.draw(st.sampled_from(self.root.folders("snapshots")))
        with suppress(ConfigError, OutputError):
            (pin_snapshot if is_pinned else unpin_snapshot)(self.root, wanted)

    @invariant()
    def what_is_live_is_whole(self) -> None:
        check_live(self.root, deep=True)
        self._look()
        latest = read_latest(self.root)
        states = {snapshot.name: snapshot.state for snapshot in list_snapshots(self.root)}
        assert all(states[name] != "unfinished" for name in latest.pins)
        assert not {*latest.pins, latest.snapshot} & set(latest.retiring)
        assert latest.snapshot not in (*latest.history, *latest.withdrawn)
        nightly_status(self.root, self.now)


# The same nights every time: a new one that fails is found by the long run below, not by somebody else's change.
Nights.TestCase.settings = settings(max_examples=15, stateful_step_count=15, deadline=None, derandomize=True)
TestNights = Nights.TestCase


class TestManyNights(Nights.TestCase):
    """The same for minutes."""

    settings = settings(max_examples=400, stateful_step_count=30, deadline=None)
    pytestmark = pytest.mark.slow
