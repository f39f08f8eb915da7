"""Progress off a terminal: a line and progress.json."""

import json
from pathlib import Path

import pytest

from pipeline.store import Store
from schemas.shard import ShardRecord
from workers.progress import RunProgress


def _record(index: int, dropped: dict[str, int]) -> ShardRecord:
    return ShardRecord(
        index=index,
        name=f"run-{index:06d}",
        num_samples=10,
        num_candidates=10 + sum(dropped.values()),
        dropped_by_reason=dropped,
        sha256="",
        num_bytes=0,
        class_pixels={},
        channel_means=(0, 0, 0),
        channel_square_means=(0, 0, 0),
        fingerprint="",
        seconds_by_stage=None,
        attempts=None,
        host=None,
        device=None,
        created=None,
    )


def _saved(folder: Path) -> dict[str, object]:
    return json.loads((folder / "progress.json").read_text())


def test_counts_go_on_from_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = [_record(0, {"fragmented": 2})]
    with RunProgress(Store.open(str(tmp_path)), total_samples=30, done=done) as progress:
        assert (_saved(tmp_path)["done"], _saved(tmp_path)["finished"]) == (10, False)
        progress.add(_record(1, {}))
        assert capsys.readouterr().err == ""  # the next line is due in 10 s
        progress.add(_record(2, {"fragmented": 1, "low_confidence": 3}))
    line = capsys.readouterr().err
    assert line.startswith("30/30 samples, ")
    assert line.endswith("0 s left, dropped: fragmented 3, low_confidence 3\n")
    saved = _saved(tmp_path)
    assert (saved["done"], saved["total"], saved["finished"]) == (30, 30, True)
    assert saved["dropped_by_reason"] == {"fragmented": 3, "low_confidence": 3}


def test_a_failed_run_is_not_called_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunProgress(Store.open(str(tmp_path)), total_samples=30, done=[]):
        raise KeyError
    assert _saved(tmp_path)["finished"] is False
