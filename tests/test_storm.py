"""Runs on Ray through storms: a handful here, hundreds by `python tests/chaos/storm.py`."""

import itertools
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from chaos.command import line_of, main, read_results, run_all, summary
from chaos.disturbed_run import Outcome, Reference, differences
from chaos.places import digests
from chaos.reference import prepare
from chaos.schedule import NUM_SHARDS, Fault, Moment, Phase, Schedule, What, Whom, schedule_of

# Together: kills of worker and raylet, stops of driver and worker, an exit in an encoder thread and between tar and
# record, memory that is used up, a full disk, refused requests. test_ray_cluster.py kills the driver.
HANDFUL = (122, 123, 128, 4054)
EXPECTED_STATUSES = {123: 0, 128: 0, 4054: 2}


def test_a_seed_always_gives_the_same_schedule() -> None:
    assert [schedule_of(seed) for seed in range(50)] == [schedule_of(seed) for seed in range(50)]
    assert len({schedule_of(seed).faults for seed in range(200)}) == 200
    assert str(schedule_of(8)) == "8: bucket: refuse 21% of requests; stop worker for good at 3 shards +0.06 s"
    assert all(schedule_of(seed).seed == seed and "\n" not in str(schedule_of(seed)) for seed in range(200))


def test_two_hundred_schedules_hold_everything() -> None:
    schedules = [schedule_of(seed) for seed in range(200)]
    faults = [fault for schedule in schedules for fault in schedule.faults]
    assert {schedule.where for schedule in schedules} == {"folder", "disk", "bucket"}
    assert {fault.what for fault in faults} == set(get_args(What))
    assert {fault.whom for fault in faults} == set(get_args(Whom))
    assert {fault.when.phase for fault in faults if fault.when is not None} == set(get_args(Phase))
    by_signal = Counter((fault.what, fault.whom) for fault in faults)
    assert all(by_signal[pair] for pair in itertools.product(("kill", "stop"), ("driver", "worker", "raylet", "gcs")))
    # Nobody wakes a driver that was stopped for good.
    assert all(fault.seconds for fault in faults if (fault.what, fault.whom) == ("stop", "driver"))
    assert all(
        0 <= (fault.shard or 0) < NUM_SHARDS and 1 <= len(s.faults) <= 3 for s in schedules for fault in s.faults
    )


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        (Fault("kill", "worker", Moment("making", 3)), {0}),
        (Fault("stop", "worker", Moment("making", 3)), {0}),
        (Fault("kill", "worker", Moment("connecting")), {0, 75}),
        (Fault("stop", "worker", Moment("connecting")), {0, 75}),
        (Fault("exit", "shard", shard=1), {0}),
        (Fault("refuse", "store", share=0.2), {0}),
        (Fault("kill", "driver", Moment("making", 3)), {0, -9}),
        (Fault("terminate", "driver", Moment("making", 3)), {0, 75}),
        (Fault("stop", "gcs", Moment("making", 3)), {0, 75}),
        (Fault("poison", "shard", shard=1), {0, 3}),
        (Fault("fill", "store", Moment("making", 3)), {0, 2}),
    ],
)
def test_what_a_run_may_end_with(fault: Fault, statuses: set[int]) -> None:
    assert Schedule(0, "folder", (fault,), drag=0.0).exit_statuses == statuses


def test_every_difference_is_told() -> None:
    files = {"run.json": b"{}", "shards/a.tar": b"a", "shards/b.tar": b"b", "manifest.json": b"m"}
    records = {"records/0.json": b"", "records/1.json": b"", "progress.json": b"any"}
    reference = Reference(Path("run.yaml"), digests(files), num_shards=2, seeds_per_shard=24)
    assert differences({**files, **records}, reference) == []
    without = {path: content for path, content in files.items() if path != "shards/a.tar"}
    assert differences({**without, **records}, reference) == ["lost: shards/a.tar"]
    assert differences({**files, **records, "shards/c.tar": b"c"}, reference) == ["too much: shards/c.tar"]
    assert differences({**files, **records, "shards/b.tar": b"x"}, reference) == ["other bytes: shards/b.tar"]
    assert differences({**files, "records/0.json": b""}, reference) == ["1 records of 2 shards"]


def test_a_summary_names_what_went_wrong() -> None:
    right = Outcome(1, "1: folder: ...", ["kill worker at 3 shards +0.10 s"], [], [0], [20.0], 4.0, [], 19.5)
    wrong = Outcome(2, "2: folder: ...", ["exit in shard 4"], [], [1, 0], [30.0, 20.0], 9.0, [], 18.0, ["lost: a"])
    lines = summary([vars(right), vars(wrong)])
    assert lines[0] == "2 schedules, 1 right, 0 skipped"
    assert "exit statuses: {'0': 1, '1': 1}, 1 reruns" in lines
    assert "faults that hit: {'kill worker': 1, 'exit': 1}" in lines
    assert "longest time from the last fault to the end: 9.0 s (seed 2)" in lines
    assert lines[-1] == "wrong: seed 2: lost: a"
    assert line_of(right).endswith("right") and line_of(wrong).endswith("lost: a")


@pytest.mark.timeout(900)
def test_a_handful_of_storms(tmp_path: Path) -> None:
    prepare(tmp_path / "reference")
    run_all(HANDFUL, tmp_path, jobs=1, minutes=14)  # beside another process of the tests
    outcomes = {line["seed"]: line for line in read_results(tmp_path)}
    assert outcomes.keys() == set(HANDFUL)
    assert {seed: line["problems"] for seed, line in outcomes.items() if line["problems"]} == {}
    ran = {seed: line for seed, line in outcomes.items() if line["skipped"] is None}
    # Faults may come too late on a slow machine, but not all of them.
    assert sum(len(line["hit"]) for line in ran.values()) >= 6
    hit = {seed: line for seed, line in ran.items() if not line["missed"]}
    assert {seed: line["exits"][0] for seed, line in hit.items() if seed in EXPECTED_STATUSES} == {
        seed: status for seed, status in EXPECTED_STATUSES.items() if seed in hit
    }


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_two_hundred_storms(tmp_path: Path) -> None:
    assert main(["--count", "200", "--jobs", "2", "--folder", str(tmp_path)]) == 0
