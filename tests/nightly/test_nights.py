"""Nights one after the other: what is made, what is published, and who may do so."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.drivers import Driver, wait_until
from helpers.nightly_runs import (
    ANYTHING_PASSES,
    Trap,
    check_live,
    finish,
    nightly_config,
    start_night,
    wait_until_stopped,
)
from helpers.s3_server import Fault, S3Server
from helpers.tiny_run import tiny_run
from typer.testing import CliRunner, Result

from labelmill.pipeline.cli import app
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.nightly import commands
from labelmill.pipeline.nightly.commands import live_snapshot, rollback, shard_urls
from labelmill.pipeline.nightly.latest import change_latest, read_latest, roll_back
from labelmill.pipeline.nightly.lease import Lease
from labelmill.pipeline.nightly.lock import acquire, read_lock
from labelmill.pipeline.nightly.retention import delete_snapshot
from labelmill.pipeline.nightly.snapshots import list_snapshots, open_snapshot, read_report
from labelmill.pipeline.nightly.status import nightly_status, nightly_status_lines
from labelmill.pipeline.nightly.webhook import Notice, Webhook
from labelmill.pipeline.process.interruption import Interrupted
from labelmill.pipeline.prompt_models import PromptModelError
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError, GateError, LabelmillError, LockedError, OutputError
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.nightly import NightlyConfig
from labelmill.workers import nightly
from labelmill.workers.nightly import Outcome, check_night, prune_root, run_night

NOON = 1_800_000_000.0
# Twelve images of a random generator vary a lot; but they are different images.
GATES = {**ANYTHING_PASSES, "near_duplicates": 0.5, "empty_masks": 0.5}


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store.open(str(tmp_path / "root"))
    server: S3Server = request.getfixturevalue("s3")
    return Store.open(f"{server.create_bucket()}/nightly")


@pytest.fixture
def environment(request: pytest.FixtureRequest, root: Store) -> dict[str, str]:
    """What a process needs to see the root."""
    return {} if root.folder is not None else request.getfixturevalue("s3").environment


def night(config: NightlyConfig, day: int, now: float = NOON) -> Outcome:
    return run_night(config, date(2026, 11, day), lambda: now)


def tars(root: Store, name: str) -> dict[str, bytes]:
    snapshot = open_snapshot(root, name)
    return {file.path: snapshot.read(file.path) for file in snapshot.list("shards") if file.path.endswith(".tar")}


def seeds(root: Store, name: str) -> int:
    return int(read_manifest(open_snapshot(root, name)).config["dataset"]["first_seed"])


def test_five_nights(root: Store, environment: dict[str, str], tiny_checkpoint: Path) -> None:
    fresh = {"since": "2026-11-01", "per_night": 1000}
    retention = {"keep_last": 2, "keep_rejected": 1}
    config = nightly_config(
        tiny_checkpoint, root.url, seeds="fresh", fresh_seeds=fresh, gates=GATES, retention=retention
    )
    # A night like any other.
    assert night(config, 1).kind == "published"
    first = check_live(root, deep=True)
    assert first is not None and first.startswith("2026-11-01-") and seeds(root, first) == 0
    in_training = shard_urls(root, None)
    read_at_first = {url: _read(root, url) for url in in_training}
    assert len(read_at_first) == 2

    # The second one is killed after a shard. Its lock outlives it; later it is finished, and that shard stays.
    trap = Trap(0, path=r"create .*records/", after=True)
    assert finish(start_night(config, "2026-11-02", NOON, trap=trap, environment=environment)) == -signal.SIGKILL
    assert check_live(root) == first
    unfinished = list_snapshots(root)[-1]
    assert unfinished.state == "unfinished" and unfinished.night == "2026-11-02"
    before = tars(root, unfinished.name)
    assert len(before) == 1
    with pytest.raises(LockedError, match=r"process \d+, \w{8} has the lock.* It is free in 1 s, at 2027-01-15T08:01"):
        night(config, 2, NOON + 59)
    assert night(config, 2, NOON + 61).snapshot == unfinished.name
    assert check_live(root, deep=True) == unfinished.name and seeds(root, unfinished.name) == 1000
    # A job that reads the first one goes on reading it.
    assert {url: _read(root, url) for url in in_training} == read_at_first
    assert before.items() < tars(root, unfinished.name).items()

    # The third one draws nearly the same image again and again: somebody has changed the truncation.
    drifted = config.model_copy(update={"run": _truncated(config, 0.01)})
    with pytest.raises(GateError, match=rf"{unfinished.name} stays live.*\n  near_duplicates: 1, at most 0\.5"):
        night(drifted, 3)
    assert check_live(root) == unfinished.name
    rejected = list_snapshots(root)[-1]
    report = read_report(open_snapshot(root, rejected.name))
    assert rejected.state == "rejected" and report is not None and report.live == unfinished.name
    assert {result.name for result in report.results if result.verdict == "failed"} == {"near_duplicates"}
    page = open_snapshot(root, rejected.name).read("gates.html").decode()
    assert page.count("<img ") == 4 * 8 and "is not published" in page and "http://" not in page
    assert rejected.name in page and unfinished.name in page

    # On the fourth, two drivers work at once: the second one yields, the first one is none the worse for it.
    stop = Trap(0, path=r"create .*records/", signal=signal.SIGSTOP)
    one = start_night(config, "2026-11-04", NOON, trap=stop, environment=environment)
    wait_until_stopped(one)
    assert finish(start_night(config, "2026-11-04", NOON + 1, environment=environment)) == LockedError.exit_code == 6
    _continue(one)
    assert finish(one) == 0
    fourth = check_live(root, deep=True)
    assert fourth is not None and fourth.startswith("2026-11-04-")
    # What a job has read since the first night is gone by now, two nights later, as retention was told.
    assert [snapshot.name for snapshot in list_snapshots(root)] == [unfinished.name, rejected.name, fourth]
    for url in in_training:
        with pytest.raises(FileNotFoundError):
            _read(root, url)

    # The fifth is rolled back: it is not published again by itself, and is by hand.
    assert night(config, 5).kind == "published"
    fifth = live_snapshot(root)
    assert rollback(root, None, "now").snapshot == fourth == check_live(root)
    assert night(config, 5).kind == "withdrawn" and check_live(root) == fourth
    rollback(root, fifth, "now")
    assert night(config, 5).kind == "unchanged" and check_live(root, deep=True) == fifth
    assert night(config, 4).kind == "superseded" and check_live(root) == fifth
    latest = read_latest(root)
    assert latest.history == (fourth,) and latest.withdrawn == ()
    assert read_lock(root)[0].owner is None


def _truncated(config: NightlyConfig, psi: float) -> Any:
    generator = config.run.generator.model_copy(update={"truncation_psi": psi})
    return config.run.model_copy(update={"generator": generator})


def _continue(process: Any) -> None:
    os.kill(process.pid, signal.SIGCONT)


def _read(root: Store, url: str) -> bytes:
    """A shard as a training job would read it. Raises FileNotFoundError."""
    base = root.url if root.folder is None else str(root.folder)
    return root.read(url.removeprefix(base).lstrip("/"))


def test_a_run_that_slept_through_its_lock_changes_nothing(
    root: Store, environment: dict[str, str], tiny_checkpoint: Path
) -> None:
    """It is stopped in the very moment in which it publishes. Another one takes over; then it wakes up."""
    config = nightly_config(tiny_checkpoint, root.url, gates=GATES)
    other = nightly_config(tiny_checkpoint, root.url, gates=GATES, run={"dataset": {"first_seed": 500}})
    stop = Trap(1, path="compare_and_swap latest.json|create latest.json", signal=signal.SIGSTOP)
    sleeper = start_night(config, "2026-11-01", NOON, trap=stop, environment=environment)
    wait_until_stopped(sleeper)
    slept_on = list_snapshots(root)[0]
    assert slept_on.state == "passed" and read_latest(root).snapshot is None
    assert night(other, 1, NOON + 61).kind == "published"
    live, lock = read_latest(root), read_lock(root)[0]
    _continue(sleeper)
    assert finish(sleeper) == 6
    assert (read_latest(root), read_lock(root)[0]) == (live, lock)
    assert live.snapshot != slept_on.name and check_live(root, deep=True) == live.snapshot


def test_a_lock_that_was_taken_just_now_is_noticed(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new owner has not come as far as to shut others out."""
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=GATES)
    judge = nightly.judge_snapshot

    def disturbed(root: Store, *arguments: Any) -> Any:
        report = judge(root, *arguments)
        acquire(root, "another run", NOON + 61, 60, 0)
        return report

    monkeypatch.setattr(nightly, "judge_snapshot", disturbed)
    with pytest.raises(LockedError, match="this run has lost the lock: another run has taken it"):
        night(config, 1)
    assert read_latest(Store.open(config.root)).snapshot is None


def test_a_lock_that_is_lost_while_it_is_let_go(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat finds out then, and interrupts a night that has ended: it is no interrupted one."""
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=GATES)
    let_go = Lease.__exit__

    def disturbed(lease: Lease, *error: Any) -> None:
        acquire(Store.open(config.root), "another run", NOON + 61, 60, 0)
        with suppress(LockedError):
            lease.confirm()
        let_go(lease, *error)
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(Lease, "__exit__", disturbed)
    with pytest.raises(LockedError, match="another run has taken it"):
        night(config, 1)


def test_with_fixed_seeds_only_changes_make_a_snapshot(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=GATES)
    root = Store.open(config.root)
    first = night(config, 1)
    assert [first.kind, night(config, 1).kind, night(config, 2).kind] == ["published", "unchanged", "unchanged"]
    assert [snapshot.name for snapshot in list_snapshots(root)] == [first.snapshot]
    # What does not change a byte is no change; what changes one is.
    same = config.run.model_copy(update={"execution": config.run.execution.model_copy(update={"encode_threads": 1})})
    assert night(config.model_copy(update={"run": same}), 3).kind == "unchanged"
    more = config.run.dataset.model_copy(update={"samples": 18})
    grown = config.model_copy(update={"run": config.run.model_copy(update={"dataset": more})})
    second = night(grown, 3)
    assert second.kind == "published" and second.snapshot.startswith("2026-11-03-")
    assert check_live(root) == second.snapshot
    # A change that is undone makes what was live before live again, without making it again.
    assert night(config, 4) == Outcome("published", first.snapshot, night(config, 4).fates)
    # Another checkpoint in the same place is another dataset.
    checkpoint = tmp_path / "copy.safetensors"
    checkpoint.write_bytes(tiny_checkpoint.read_bytes())
    copied = config.run.generator.model_copy(update={"checkpoint": str(checkpoint)})
    moved = config.model_copy(update={"run": config.run.model_copy(update={"generator": copied})})
    assert night(moved, 5).kind == "unchanged"
    header = int.from_bytes(checkpoint.read_bytes()[:8], "little")
    content = bytearray(checkpoint.read_bytes())
    content[8 + header + 1000] ^= 1
    checkpoint.write_bytes(content)
    assert night(moved, 5).snapshot.startswith("2026-11-05-")


def test_an_interrupted_night_is_finished_the_night_after(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=GATES)
    trap = Trap(0, path=r"create .*\.parquet")
    assert finish(start_night(config, "2026-11-01", NOON, trap=trap)) == -signal.SIGKILL
    with pytest.raises(LockedError):
        prune_root(config, date(2026, 11, 1), dry_run=False, clock=lambda: NOON + 59)
    (fate,) = prune_root(config, date(2026, 11, 1), dry_run=False, clock=lambda: NOON + 61)
    assert (fate.is_kept, fate.reason) == (True, "tonight's")
    assert night(config, 2, NOON + 61).snapshot.startswith("2026-11-01-")


def test_a_limit_that_was_widened_publishes_what_is_there(tmp_path: Path, tiny_checkpoint: Path) -> None:
    strict = nightly_config(tiny_checkpoint, tmp_path / "root", gates={**GATES, "near_duplicates": 0.0})
    strict = strict.model_copy(update={"run": _truncated(strict, 0.01)})
    with pytest.raises(GateError, match="nothing is live"):
        night(strict, 1)
    with pytest.raises(GateError):  # it is asked again, but not made again
        night(strict, 2)
    root = Store.open(strict.root)
    (snapshot,) = list_snapshots(root)
    before = (tmp_path / "root" / "snapshots" / snapshot.name / "shards" / "tiny-000000.tar").stat()
    with pytest.raises(OutputError, match="did not pass the gates"):
        rollback(root, snapshot.name, "now")
    wide = strict.model_copy(update={"gates": strict.gates.model_copy(update={"near_duplicates": 1.0})})
    assert night(wide, 2).snapshot == snapshot.name
    after = (tmp_path / "root" / "snapshots" / snapshot.name / "shards" / "tiny-000000.tar").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert check_live(root, deep=True) == snapshot.name


def test_a_damaged_snapshot_is_not_published(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=GATES)
    trap = Trap(0, path=r"replace snapshots/[^/]+/gates\.html")
    assert finish(start_night(config, "2026-11-01", NOON, trap=trap)) == -signal.SIGKILL
    root = Store.open(config.root)
    (snapshot,) = list_snapshots(root)
    assert snapshot.state == "complete"
    tar = tmp_path / "root" / "snapshots" / snapshot.name / "shards" / "tiny-000001.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(OutputError, match=r"shards/tiny-000001\.tar: is not what records/000001\.json") as refused:
        night(config, 1, NOON + 61)
    assert refused.value.exit_code == 2
    assert list_snapshots(root)[0].state == "complete" and read_latest(root).snapshot is None
    content[3000] ^= 1
    tar.write_bytes(content)
    assert night(config, 1).kind == "published"


def test_the_live_snapshot_moves_while_tonights_is_compared_with_it(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator rolls back meanwhile: tonight's is compared again, with what is live then."""
    root = Store.open(str(tmp_path / "root"))
    names = []
    for first_seed in (0, 500):
        config = nightly_config(tiny_checkpoint, root.url, gates=GATES, run={"dataset": {"first_seed": first_seed}})
        names.append(night(config, 1).snapshot)
    compared_with = []
    judge = nightly.judge_snapshot

    def disturbed(root: Store, snapshot: str, live: str | None, *arguments: Any) -> Any:
        report = judge(root, snapshot, live, *arguments)
        compared_with.append(live)
        if len(compared_with) == 1:
            change_latest(root, roll_back(names[0], "now"))
        return report

    monkeypatch.setattr(nightly, "judge_snapshot", disturbed)
    config = nightly_config(tiny_checkpoint, root.url, gates=GATES, run={"dataset": {"first_seed": 900}})
    assert night(config, 2).kind == "published"
    assert compared_with == [names[1], names[0]]
    assert read_latest(root).history == (names[0],)


class Hook:
    """A web server that remembers what was posted to it."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.status = 204
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.posted.append({"type": self.headers["Content-Type"], "path": self.path, **json.loads(body)})
                self.send_response(hook.status)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hunter2"


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    thread = threading.Thread(target=hook.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield hook
    hook.server.shutdown()
    thread.join()
    hook.server.server_close()


def test_the_webhook_is_told_why(
    tmp_path: Path,
    tiny_checkpoint: Path,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    webhook = {"url_variable": "NIGHTLY_WEBHOOK", "timeout_s": 5}
    gates = {**GATES, "near_duplicates": 0.0}
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=gates, webhook=webhook)
    config = config.model_copy(update={"run": _truncated(config, 0.01)})
    monkeypatch.delenv("NIGHTLY_WEBHOOK", raising=False)
    with pytest.raises(ConfigError, match=r"webhook\.url_variable: NIGHTLY_WEBHOOK is not set in the environment"):
        night(config, 1)
    for url in ("hunter2", "ftp://hunter2", "file:///hunter2", "http://", "http://hunter2:port", "http://[hunter2"):
        monkeypatch.setenv("NIGHTLY_WEBHOOK", url)
        with pytest.raises(ConfigError, match="NIGHTLY_WEBHOOK does not hold an http:// or https:// URL") as refused:
            night(config, 1)
        assert "hunter2" not in str(refused.value)
    assert not (tmp_path / "root").exists()

    monkeypatch.setenv("NIGHTLY_WEBHOOK", hook.url)
    with pytest.raises(GateError) as failed:
        night(config, 1)
    (posted,) = hook.posted
    (snapshot,) = list_snapshots(Store.open(config.root))
    assert posted == {
        "type": "application/json",
        "path": "/hunter2",
        "text": f"labelmill nightly 2026-11-01: {failed.value}",
        "root": config.root,
        "night": "2026-11-01",
        "snapshot": snapshot.name,
        "live": None,
        "exit_status": 5,
        "failed_gates": {"near_duplicates": 1.0},
    }
    # A webhook that fails changes nothing about the night; neither it nor what is said tells the URL.
    for status, problem in ((500, "answered 500"), (302, "answered 302")):
        hook.status = status
        with pytest.raises(GateError):
            night(config, 1)
        assert f"the webhook of NIGHTLY_WEBHOOK {problem}" in capfd.readouterr().err
    assert len(hook.posted) == 3
    for url in ("http://127.0.0.1:1/hunter2", "http://hunter2.invalid/", "https://127.0.0.1:1/hunter2"):
        monkeypatch.setenv("NIGHTLY_WEBHOOK", url)
        with pytest.raises(GateError):
            night(config, 1)
        said = capfd.readouterr().err
        assert "the webhook of NIGHTLY_WEBHOOK cannot be reached" in said and "hunter2" not in said
    for file in Store.open(config.root).list():
        assert b"hunter2" not in Store.open(config.root).read(file.path)


def test_the_webhook_is_told_of_whatever_ends_a_night(
    tmp_path: Path, tiny_checkpoint: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTLY_WEBHOOK", hook.url)
    config = nightly_config(
        tiny_checkpoint,
        tmp_path / "root",
        webhook={"url_variable": "NIGHTLY_WEBHOOK"},
        run={"quality": {"enabled": True, "foreground_min": 0.0, "foreground_max": 0.0}},
    )
    with pytest.raises(LabelmillError, match="seeds gave 0 samples"):
        night(config, 1)

    def broken(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(nightly, "generate", broken)
    with pytest.raises(ZeroDivisionError):
        night(config, 1)
    assert [posted["exit_status"] for posted in hook.posted] == [3, 1]
    assert hook.posted[1]["text"] == "labelmill nightly 2026-11-01: ZeroDivisionError: a bug"
    assert read_lock(Store.open(config.root))[0].owner is None


def test_the_webhook_is_told_of_a_night_without_seeds(
    tmp_path: Path, tiny_checkpoint: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was begun, not even the lock; yet nobody else would say so."""
    monkeypatch.setenv("NIGHTLY_WEBHOOK", hook.url)
    webhook, fresh = {"url_variable": "NIGHTLY_WEBHOOK"}, {"since": "2026-11-02"}
    config = nightly_config(tiny_checkpoint, tmp_path / "root", webhook=webhook, seeds="fresh", fresh_seeds=fresh)
    with pytest.raises(ConfigError, match=r"fresh_seeds\.since"):
        night(config, 1)
    (posted,) = hook.posted
    assert (posted["exit_status"], posted["snapshot"], posted["live"]) == (2, None, None)
    assert "fresh_seeds.since: 2026-11-02 is after the night of 2026-11-01" in posted["text"]


def test_snapshots_that_cannot_be_deleted_stop_no_night(
    s3: S3Server, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What may be written but not deleted: nights go on, and say so until it may be deleted."""
    root = Store.open(f"{s3.create_bucket()}/nightly")

    def config(first_seed: int) -> NightlyConfig:
        seeds, retention = {"dataset": {"first_seed": first_seed}}, {"keep_last": 1}
        return nightly_config(tiny_checkpoint, root.url, gates=ANYTHING_PASSES, retention=retention, run=seeds)

    first = night(config(0), 1).snapshot
    s3.inject(Fault("answer", status=403), times=1000, method="POST")  # S3 deletes by lists
    second = night(config(500), 2)
    assert (second.kind, second.fates) == ("published", ())
    assert check_live(root, deep=True) == second.snapshot
    refused = rf"old snapshots are not deleted, .*snapshots/{first}/manifest\.json: cannot be deleted: .*403"
    assert len(re.findall(refused, capfd.readouterr().err)) == 1
    third = night(config(900), 3)
    assert third.kind == "published" and check_live(root, deep=True) == third.snapshot
    assert len(re.findall(refused, capfd.readouterr().err)) == 2  # at its beginning and at its end
    with pytest.raises(OutputError, match=f"snapshots/{first}/manifest.json: cannot be deleted"):
        night(config(0), 4)  # the very snapshot that is half gone
    assert check_live(root, deep=True) == third.snapshot
    s3.clear()
    assert night(config(900), 5).kind == "unchanged"
    assert [snapshot.name for snapshot in list_snapshots(root)] == [third.snapshot]
    assert read_latest(root).retiring == ()


def test_the_webhook_knows_what_is_live_after_publication(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[Notice] = []

    def broken(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Webhook, "post", lambda self, notice: notices.append(notice))
    monkeypatch.setattr(nightly, "prune", broken)
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=ANYTHING_PASSES)
    with pytest.raises(ZeroDivisionError):
        night(config, 1)
    assert [notice.live for notice in notices] == [live_snapshot(Store.open(config.root))]


def test_a_webhook_that_never_answers_holds_nothing_up(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lock is free by then, and the status is that of the night."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("NIGHTLY_WEBHOOK", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        webhook = {"url_variable": "NIGHTLY_WEBHOOK", "timeout_s": 0.2}
        gates = {**GATES, "near_duplicates": 0.0}
        config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=gates, webhook=webhook)
        config = config.model_copy(update={"run": _truncated(config, 0.01)})
        free: list[bool] = []
        post = Webhook.post

        def look(self: Webhook, notice: Notice) -> str | None:
            free.append(read_lock(Store.open(config.root))[0].owner is None)
            return post(self, notice)

        monkeypatch.setattr(Webhook, "post", look)
        with pytest.raises(GateError):
            night(config, 1)
    assert free == [True]
    assert "the webhook of NIGHTLY_WEBHOOK cannot be reached (TimeoutError)" in capfd.readouterr().err


def test_urls_of_a_snapshot_that_is_replaced_and_deleted_meanwhile(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Store.open(str(tmp_path / "root"))
    first, second = (
        night(nightly_config(tiny_checkpoint, root.url, gates=GATES, run={"dataset": {"first_seed": seed}}), 1).snapshot
        for seed in (0, 500)
    )
    read, disturbances = commands.read_index, [second]

    def disturbed(snapshot: Store) -> Any:
        if disturbances:
            change_latest(root, roll_back(first, "now"))
            delete_snapshot(root, disturbances.pop(), lambda: None)
        return read(snapshot)

    monkeypatch.setattr(commands, "read_index", disturbed)
    urls = shard_urls(root, None)
    assert len(urls) == 2 and all(f"snapshots/{first}/" in url and Path(url).is_file() for url in urls)
    delete_snapshot(root, first, lambda: None)
    with pytest.raises(OutputError):  # what is live is gone: that is said, not asked for ever
        shard_urls(root, None)


def labelmill(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_command(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {**tiny_run(tiny_checkpoint, "ignored"), "dataset": {"samples": 12, "samples_per_shard": 6}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    nightly_file = tmp_path / "nightly.yaml"
    root = tmp_path / "root"
    nightly_file.write_text(
        yaml.safe_dump({"run": "run.yaml", "root": str(root), "gates": GATES, "retention": {"keep_last": 1}})
    )
    with pytest.raises(OutputError, match="no snapshot is live yet"):
        labelmill("resolve", root)
    assert "nothing is live" in labelmill("nightly", "status", root).stdout
    assert "nothing is live" in labelmill("nightly", "status", nightly_file).stdout
    with pytest.raises(ConfigError, match=r"nightyl\.yaml: cannot be read"):
        labelmill("nightly", "status", tmp_path / "nightyl.yaml")
    first = labelmill("nightly", nightly_file, "--date", "2026-01-01").stdout.split()[0]
    assert first.startswith("2026-01-01-")
    second = labelmill(
        "nightly",
        "--date",
        "2026-01-02",
        "--set",
        "retention.keep_last=2",
        "--set",
        "run.dataset.first_seed=99",
        nightly_file,
    ).stdout.split()[0]
    assert second.startswith("2026-01-02-")
    for split, number in {"train": 0, "val": 1}.items():
        (url,) = labelmill("resolve", nightly_file, "--split", split).stdout.split()
        assert Path(url).relative_to(root) == Path(f"snapshots/{second}/shards/tiny-{number:06d}.tar")
        assert Path(url).is_file()
    with pytest.raises(ConfigError, match="--split test: there are train, val"):
        labelmill("resolve", root, "--split", "test")
    status = labelmill("nightly", "status", nightly_file).stdout
    assert f"{second} is live since 20" in status and "no run is in progress" in status
    assert f"  {second}  passed (live)\n  {first}  passed\n" in status
    found = json.loads(labelmill("nightly", "status", root, "--json").stdout)
    assert found["live"] == second and found["newest_gates"]["live"] == first
    metrics = labelmill("nightly", "status", root, "--metrics").stdout
    assert f'labelmill_nightly_snapshots{{root="{root}",state="passed"}} 2.0\n' in metrics
    assert f'labelmill_nightly_gate_value{{gate="near_duplicates",root="{root}"}} 0.0\n' in metrics

    said = labelmill("nightly", "validate", nightly_file, "--date", "2026-01-03").stdout
    assert f"{root}/snapshots/{first}: 12 samples of the seeds 0 to 47\nlive is {second}\n" in said

    prune = ("nightly", "prune", nightly_file, "--set", "run.dataset.first_seed=99")
    dry = labelmill(*prune, "--dry-run").stdout
    assert f"{first}: would be deleted: not among the last 1 that passed" in dry
    assert labelmill("nightly", "pin", root, "2026-01-01").stdout == f"{first} is pinned\n"
    assert f"{first}: kept: pinned" in labelmill(*prune).stdout
    assert f"{first} is live" in labelmill("nightly", "rollback", root).stdout
    assert f"{second} is live" in labelmill("nightly", "rollback", root, second).stdout
    assert "no longer pinned" in labelmill("nightly", "unpin", root, first).stdout
    assert f"{first}: deleted" in labelmill(*prune).stdout
    assert not (root / "snapshots" / first).exists()
    with pytest.raises(ConfigError, match="no other snapshot was live before"):
        labelmill("nightly", "rollback", root)


def test_a_prompt_model_that_is_not_there_is_found_before_the_night(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = nightly_config(tiny_checkpoint, tmp_path / "root")
    labeler = FeatureClustersConfig(
        method="feature_clusters",
        clusters=3,
        fit_samples=16,
        naming_samples=16,
        names={"back": ["background"], "face": ["skin"]},
        prompt_model=f"open-clip:RN50@{tmp_path}/none.safetensors",
    )
    asking = config.model_copy(update={"run": config.run.model_copy(update={"labeler": labeler})})
    with pytest.raises(PromptModelError, match=r"none\.safetensors"):
        check_night(asking, date(2026, 11, 1), lambda: NOON)


def test_the_status_of_a_run_at_work(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=GATES)
    stop = Trap(0, path=r"create .*records/", signal=signal.SIGSTOP)
    process = start_night(config, "2026-11-01", NOON, trap=stop)
    wait_until_stopped(process)
    status = nightly_status(Store.open(config.root), NOON + 7)
    assert status.heartbeat_age_seconds == 7 and status.lock_expires == "2027-01-15T08:01:00+00:00"
    assert status.owner is not None and f"process {process.pid}" in status.owner
    assert [snapshot.state for snapshot in status.snapshots] == ["unfinished"]
    assert (
        f"process {process.pid}" in nightly_status_lines(status)[1]
        and "has the lock, last" in nightly_status_lines(status)[1]
    )
    late = nightly_status(Store.open(config.root), NOON + 60)
    assert late.lock_has_expired and not status.lock_has_expired
    assert nightly_status_lines(late)[1].endswith(
        "had the lock until 2027-01-15T08:01:00+00:00, last heard of 60 s ago; it is free for the next run"
    )
    process.kill()
    process.join()


@pytest.fixture
def long_night(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[tuple[Driver, Store]]:
    """The command, at work on a thousand shards."""
    run = {**tiny_run(tiny_checkpoint, "ignored"), "dataset": {"samples": 6000, "samples_per_shard": 6}}
    values = {"run": run, "root": str(tmp_path / "root"), "lock": {"ttl_s": 60, "heartbeat_s": 0.2}}
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(values))
    root = Store.open(str(tmp_path / "root"))
    with Driver("nightly", tmp_path / "nightly.yaml", "--date", "2026-01-01") as driver:
        driver.wait_for("preparing")
        wait_until(lambda: any(root.list(f"snapshots/{name}/records") for name in root.folders("snapshots")))
        yield driver, root


def test_sigterm_lets_the_lock_go(long_night: tuple[Driver, Store]) -> None:
    driver, root = long_night
    driver.send(signal.SIGTERM)
    assert driver.wait() == 75
    assert read_lock(root)[0].owner is None and read_latest(root).snapshot is None


def test_sigterm_while_the_bucket_is_down(s3: S3Server, tiny_checkpoint: Path) -> None:
    """Neither the heartbeat, which tries again for minutes, nor the lock, which cannot be let go, holds it up."""
    root = Store.open(f"{s3.create_bucket()}/nightly")
    lock = {"ttl_s": 60, "heartbeat_s": 0.1}
    config = nightly_config(tiny_checkpoint, root.url, gates=ANYTHING_PASSES, lock=lock)
    stop = Trap(0, path=r"replace .*gates\.html", signal=signal.SIGSTOP)
    process = start_night(config, "2026-11-01", NOON, trap=stop, environment=s3.environment)
    wait_until_stopped(process)
    s3.inject(Fault("answer"), times=1_000_000)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    start = time.monotonic()
    _continue(process)
    assert finish(process) == 75
    assert 4 < time.monotonic() - start < 60
    s3.clear()
    assert read_lock(root)[0].owner is not None
    assert night(config, 1, NOON + 61).kind == "published"


def test_sigterm_while_the_bucket_hangs(s3: S3Server, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A put that is never answered: of a shard, which a thread of its own waits for."""
    config = nightly_config(tiny_checkpoint, f"{s3.create_bucket()}/nightly", gates=ANYTHING_PASSES)
    s3.inject(Fault("hang"), times=100, method="PUT", path=r"tiny-000001\.tar")
    stop = Trap(0, path=r"create .*tiny-000001\.tar", signal=signal.SIGTERM)
    process = start_night(config, "2026-11-01", NOON, trap=stop, log=tmp_path / "log", environment=s3.environment)
    wait_until(lambda: (tmp_path / "log").exists() and "1.tar" in (tmp_path / "log").read_text())
    start = time.monotonic()
    assert finish(process) == 75
    assert time.monotonic() - start < 15


def test_a_run_that_loses_its_lock_ends_at_once(long_night: tuple[Driver, Store]) -> None:
    driver, root = long_night
    acquire(root, "another run", time.time() + 3600, 60, 0)
    assert driver.wait(60) == 6
    assert "this run has lost the lock: another run has taken it" in driver.lines[-1]
    assert read_lock(root)[0].owner == "another run" and list_snapshots(root)[0].state == "unfinished"
