"""Progress off a terminal: a line and progress.json."""

import json
from pathlib import Path

import pytest
from records import make_record

from pipeline.store import Store
from workers.progress import RunProgress


def _saved(folder: Path) -> dict[str, object]:
    return json.loads((folder / "progress.json").read_text())


def test_counts_go_on_from_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = [make_record(0, 10, {"fragmented": 2})]
    with RunProgress(Store.open(str(tmp_path)), total_samples=30, done=done) as progress:
        assert (_saved(tmp_path)["done"], _saved(tmp_path)["finished"]) == (10, False)
        progress.add(make_record(1, 10, {}))
        assert capsys.readouterr().err == ""  # the next line is due in 10 s
        progress.add(make_record(2, 10, {"fragmented": 1, "low_confidence": 3}))
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
