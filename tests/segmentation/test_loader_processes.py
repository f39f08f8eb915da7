"""Processes that make a training's batches: in order, and never waited for in vain."""

import os
import signal
import time

import numpy as np
import pytest
from helpers.loader_items import broken, damaged, endless, hanging, large, numbers

from labelmill.pipeline.segmentation import loader_processes
from labelmill.pipeline.segmentation.loader_processes import FOREVER, Patience, items_of_processes
from labelmill.schemas.errors import OutputError, StalledError


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("num_processes", [1, 3])
def test_items_come_in_order_from_all_processes(num_processes: int) -> None:
    items = list(items_of_processes(numbers, num_processes, FOREVER))
    assert [number for number, _ in items] == list(range(7))
    assert len({pid for _, pid in items}) == num_processes and os.getpid() not in {pid for _, pid in items}
    assert all(_ended(pid) for _, pid in items)


def test_arrays_cross_whole_and_writable() -> None:
    filled, empty = items_of_processes(large, 1, FOREVER)
    assert np.array_equal(filled, np.arange(0, 3_000_000, 2, dtype=np.int32)) and empty.shape == (0, 4)
    filled[0] = 1


def test_an_error_about_data_arrives_as_it_was_raised() -> None:
    items = items_of_processes(damaged, 1, FOREVER)
    assert next(items) == 1
    with pytest.raises(OutputError, match=r"^shards/a\.tar: is cut$"):
        next(items)


def test_a_killed_process_is_told_with_what_to_do() -> None:
    items = items_of_processes(endless, 1, FOREVER)
    os.kill(next(items), signal.SIGKILL)
    with pytest.raises(
        StalledError, match=r"process 0 .* was killed by SIGKILL\. If memory ran out, set fewer `workers`"
    ):
        for _ in items:
            pass


def test_a_process_that_breaks_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    items = items_of_processes(broken, 1, FOREVER)
    assert next(items) == 1
    with pytest.raises(StalledError, match=r"process 0 .* ended with status 1; its output is above"):
        next(items)
    assert "not foreseen" in capfd.readouterr().err


def test_a_process_that_hangs_is_an_error_in_time() -> None:
    items = items_of_processes(hanging, 1, Patience(timeout_seconds=0.7))
    pid = next(items)
    started = time.monotonic()
    with pytest.raises(
        StalledError, match=r"nothing for 0\.7 s from loader process 0 .* Does the dataset's storage answer"
    ):
        next(items)
    assert time.monotonic() - started < 20 and _ended(pid)


@pytest.mark.parametrize("sent", [signal.SIGSTOP, None])
def test_a_stop_ends_a_vain_wait(sent: signal.Signals | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_processes, "_STOP_GRACE_SECONDS", 0.2)
    stops: list[bool] = []
    items = items_of_processes(endless if sent else hanging, 1, Patience(1000, is_stop_due=lambda: bool(stops)))
    pid = next(items)
    stops.append(True)
    if sent:
        os.kill(pid, sent)
    started = time.monotonic()
    assert set(items) <= {pid}
    assert time.monotonic() - started < 20 and _ended(pid)


def test_closed_early_it_leaves_no_process() -> None:
    items = items_of_processes(endless, 2, FOREVER)
    pids = {next(items), next(items)}
    items.close()
    assert len(pids) == 2 and all(_ended(pid) for pid in pids)
