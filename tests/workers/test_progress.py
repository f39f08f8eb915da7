"""Progress off a terminal: a line, progress.json, and what another shell makes of it."""

import json
import time
from pathlib import Path

import pytest
from helpers.pretend_cluster import make_tasks
from helpers.records import make_record

from labelmill.pipeline.process.interruption import Interrupted
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.workers import progress as progress_module
from labelmill.workers.progress import RunProgress
from labelmill.workers.status import SILENT_SECONDS, status, status_lines
from labelmill.workers.supervisor import Failed, Limits, Loaded, Placed, Supervisor

DONE = [make_record(0, 10, {"fragmented": 2})]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk, the last state is written before a test looks."""
    monkeypatch.setattr(progress_module, "_LAST_WRITE_SECONDS", 60.0)


def _saved(folder: Path) -> dict[str, object]:
    deadline = time.monotonic() + 10
    while not (folder / "progress.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return json.loads((folder / "progress.json").read_text())


def _supervisor() -> Supervisor:
    supervisor = Supervisor(make_tasks(3), Limits(1, 100, 100), 0.0)
    supervisor.decide(0.0)
    supervisor.on(Placed(0), 0.0)
    supervisor.on(Loaded(0), 0.0)
    return supervisor


def _progress(folder: Path, supervisor: Supervisor | None = None) -> RunProgress:
    return RunProgress(Store.open(str(folder)), supervisor or _supervisor(), total_samples=30, done=DONE)


def test_counts_go_on_from_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _progress(tmp_path) as progress:
        assert (_saved(tmp_path)["done"], _saved(tmp_path)["state"]) == (10, "running")
        progress.add(make_record(1, 10, {}))
        progress.tick()
        assert capsys.readouterr().err == ""  # the next line is due in 10 s
        progress.add(make_record(2, 10, {"fragmented": 1, "low_confidence": 3}))
        monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
        progress.tick()
    line = capsys.readouterr().err
    assert line.startswith("30/30 samples, ")
    assert line.endswith(" by 1 workers, 0 s left, dropped: fragmented 3, low_confidence 3\n")
    saved = _saved(tmp_path)
    assert (saved["done"], saved["total"], saved["state"], saved["workers"]) == (30, 30, "finished", 1)
    assert saved["dropped_by_reason"] == {"fragmented": 3, "low_confidence": 3}


@pytest.mark.parametrize(("error", "state"), [(KeyError(), "failed"), (Interrupted("SIGTERM"), "interrupted")])
def test_how_it_ended(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), _progress(tmp_path):
        raise error
    assert _saved(tmp_path)["state"] == state


def test_failures_and_retries_are_told(tmp_path: Path) -> None:
    supervisor = _supervisor()
    sent = supervisor.decide(1.0)
    assert sent
    supervisor.on(Failed(0, 0, ValueError("bad seed")), 2.0)
    with _progress(tmp_path, supervisor):
        pass
    Store.open(str(tmp_path)).create("run.json", b"{}")
    lines = status_lines(status(Store.open(str(tmp_path))))
    assert lines[0] == "0 shards, not complete"
    assert "1 shards failed" in lines[1]
    assert lines[-1] == "failed: run-000000: ValueError: bad seed"


def test_a_driver_that_fell_silent(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    store.create("run.json", b"{}")
    with _progress(tmp_path):
        state = _saved(tmp_path)
    assert "silent" not in "\n".join(status_lines(status(store)))
    state |= {"unix_time": time.time() - SILENT_SECONDS - 60, "state": "running"}
    store.replace("progress.json", json.dumps(state).encode())
    found = status(store)
    assert found.silent_seconds is not None and found.silent_seconds > SILENT_SECONDS
    assert "run `labelmill generate` again to resume" in status_lines(found)[-1]


def test_a_driver_that_makes_one_long_shard_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ticks meanwhile."""
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    with _progress(tmp_path):
        first = _saved(tmp_path)["unix_time"]
        deadline = time.monotonic() + 10
        while _saved(tmp_path)["unix_time"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    state, last = (_saved(tmp_path)[key] for key in ("state", "unix_time"))
    assert state == "finished"
    time.sleep(0.3)
    assert _saved(tmp_path)["unix_time"] == last


def test_an_output_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no run has started there"):
        status(Store.open(str(tmp_path)))
    Store.open(str(tmp_path)).create("run.json", b"{}")
    assert status_lines(status(Store.open(str(tmp_path)))) == ["0 shards, not complete", "no driver has reported yet"]
    Store.open(str(tmp_path)).replace("progress.json", b"{")
    with pytest.raises(OutputError, match=r"progress\.json: is not what labelmill writes"):
        status(Store.open(str(tmp_path)))


def test_a_store_that_refuses_progress_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.open(str(tmp_path))
    (tmp_path / "progress.json").mkdir()  # nothing can be written there
    with RunProgress(store, _supervisor(), total_samples=30, done=[]):
        pass
    assert "progress is not written" in capsys.readouterr().err
