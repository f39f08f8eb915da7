"""The pool's loop and its supervisor, on a cluster of pretend workers and a virtual clock."""

import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.pretend_cluster import PretendCluster, VirtualClock, make_tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError, LabelmillError, OutputError, ShardError, StalledError
from labelmill.schemas.shard import ShardRecord
from labelmill.workers.pool import AwakeClock, make_shards
from labelmill.workers.progress import RunProgress
from labelmill.workers.supervisor import DEATHS_PER_SHARD, LOSSES_PER_SHARD, Supervisor, failure_report


def _run(cluster: PretendCluster, num_shards: int) -> tuple[list[int], LabelmillError | None, Supervisor]:
    """Indices of the shards that were made, in order, and how it ended."""
    supervisor = Supervisor(make_tasks(num_shards), cluster.limits(), cluster.clock.now())
    try:
        list(_records(cluster, supervisor))
    except LabelmillError as error:
        return cluster.made, error, supervisor
    return cluster.made, None, supervisor


def _records(
    cluster: PretendCluster, supervisor: Supervisor, tick: Callable[[], None] = lambda: None
) -> Iterator[ShardRecord]:
    return make_shards(cluster, supervisor, cluster.clock, tick)  # type: ignore[arg-type]


def test_every_shard_is_made_once_and_workers_share_them() -> None:
    cluster = PretendCluster(VirtualClock(), limit=4)
    made, error, supervisor = _run(cluster, 40)
    assert sorted(made) == list(range(40))
    assert error is None
    assert (cluster.starts, supervisor.num_retries, supervisor.num_ready) == (4, 0, 4)
    # 40 shards of a second on four workers; two in flight take twice as long each.
    assert cluster.clock.time == pytest.approx(40 / 4 + 1.5, abs=3)


def test_nothing_to_do_starts_nobody() -> None:
    cluster = PretendCluster(VirtualClock(), limit=4)
    assert _run(cluster, 0)[:2] == ([], None)
    assert cluster.starts == 0


def test_no_more_workers_than_shards() -> None:
    cluster = PretendCluster(VirtualClock(), limit=50)
    _run(cluster, 3)
    assert cluster.starts == 3


def test_a_poison_shard_is_quarantined_after_three_deaths_and_nobody_else() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=3, fate=lambda task, worker, attempt: (1.0, "die" if task.index == 7 else "made")
    )
    made, error, supervisor = _run(cluster, 30)
    assert sorted(made) == [index for index in range(30) if index != 7]
    assert isinstance(error, ShardError) and error.exit_code == 3
    assert "1 shard failed" in str(error) and "run-000007: 3 workers died on it, the last one: killed" in str(error)
    assert cluster.attempts[7] == DEATHS_PER_SHARD
    assert set(supervisor.named_failures()) == {"run-000007"}
    # The second and third try had their worker for themselves; who flew beside the first is tried once more, alone.
    assert {(7, 2), (7, 3)} <= cluster.alone
    again = [index for index, attempts in cluster.attempts.items() if attempts > 1 and index != 7]
    assert len(again) <= 1
    assert all((index, 2) in cluster.alone for index in again)


def test_an_exception_is_not_tried_again() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=3, fate=lambda task, worker, attempt: (1.0, "raise" if task.index == 4 else "made")
    )
    made, error, _ = _run(cluster, 20)
    assert len(made) == 19
    assert isinstance(error, ShardError) and "run-000004: ValueError: no such thing" in str(error)
    assert cluster.attempts[4] == 1
    assert cluster.starts == 3


def test_a_lost_node_blames_no_shard() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=2, fate=lambda task, worker, attempt: (1.0, "made" if attempt > 6 else "node")
    )
    made, error, supervisor = _run(cluster, 4)
    assert (sorted(made), error, supervisor.named_failures()) == ([0, 1, 2, 3], None, {})


def test_a_shard_whose_workers_are_lost_again_and_again_is_given_up_after_all() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=2, fate=lambda task, worker, attempt: (1.0, "node" if task.index == 1 else "made")
    )
    made, error, _ = _run(cluster, 6)
    assert sorted(made) == [0, 2, 3, 4, 5]
    assert isinstance(error, ShardError)
    assert cluster.attempts[1] == LOSSES_PER_SHARD + DEATHS_PER_SHARD - 1


def test_a_shard_that_takes_too_long_is_taken_away() -> None:
    cluster = PretendCluster(
        VirtualClock(),
        limit=1,
        fate=lambda task, worker, attempt: (1.0, "hang" if (task.index, attempt) == (2, 1) else "made"),
    )
    made, error, _ = _run(cluster, 6)
    assert (sorted(made), error) == (list(range(6)), None)
    assert cluster.attempts[2] == 2
    # What waited behind it was innocent: its second try is an ordinary one.
    assert cluster.clock.time < 100 + 20
    assert cluster.starts == 2


def test_a_shard_that_always_hangs_is_quarantined() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=2, fate=lambda task, worker, attempt: (1.0, "hang" if task.index == 2 else "made")
    )
    made, error, _ = _run(cluster, 6)
    assert len(made) == 5
    assert "longer than execution.shard_timeout_s, 100 s" in str(error)


def test_shards_that_fail_alike_end_the_run_early() -> None:
    cluster = PretendCluster(VirtualClock(), limit=2, fate=lambda task, worker, attempt: (1.0, "raise"))
    _, error, _ = _run(cluster, 1000)
    assert isinstance(error, ShardError) and "3 shards failed in the same way, 0 are made" in str(error)
    assert cluster.attempts.total() < 10


def test_what_earlier_runs_have_made_counts_among_the_successes() -> None:
    """A rerun begins with the shards that failed before; what comes after them is made all the same."""
    tasks = [task for task in make_tasks(100) if task.index in (3, 5, 7) or task.index >= 50]
    fate = lambda task, worker, attempt: (1.0, "raise" if task.index < 50 else "made")  # noqa: E731
    cluster = PretendCluster(VirtualClock(), limit=1, fate=fate)
    supervisor = Supervisor(tasks, cluster.limits(), 0.0, num_done=47)
    with pytest.raises(ShardError, match="3 shards failed; all others are finished"):
        for _ in _records(cluster, supervisor):
            pass
    assert cluster.attempts.total() == 53


def test_many_failures_among_more_successes_do_not() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=2, fate=lambda task, worker, attempt: (1.0, "raise" if task.index % 3 == 2 else "made")
    )
    made, error, _ = _run(cluster, 60)
    assert len(made) == 40
    assert "20 shards failed" in str(error) and "and 10 more" in str(error)


def test_workers_that_all_die_end_the_run_early() -> None:
    cluster = PretendCluster(VirtualClock(), limit=2, fate=lambda task, worker, attempt: (1.0, "die"))
    _, error, _ = _run(cluster, 1000)
    assert isinstance(error, ShardError) and "shards in a row" in str(error)
    assert cluster.attempts.total() < 40


def test_a_store_that_refuses_everything_ends_the_run_with_its_own_status() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=2, fate=lambda task, worker, attempt: (1.0, "store"), error=OutputError("disk full")
    )
    _, error, _ = _run(cluster, 100)
    assert isinstance(error, OutputError) and error.exit_code == 2
    assert cluster.attempts.total() <= 6


def test_a_store_that_refuses_now_and_then_does_not() -> None:
    cluster = PretendCluster(
        VirtualClock(),
        limit=2,
        fate=lambda task, worker, attempt: (1.0, "store" if task.index % 5 == 0 and attempt == 1 else "made"),
        error=OutputError("503"),
    )
    made, error, supervisor = _run(cluster, 40)
    assert (sorted(made), error, supervisor.num_retries) == (list(range(40)), None, 8)


def test_no_worker_ever_starts() -> None:
    cluster = PretendCluster(VirtualClock(), limit=2, start_fate=lambda worker: (1.0, "never"))
    _, error, _ = _run(cluster, 4)
    assert isinstance(error, StalledError) and error.exit_code == 75
    assert 120 <= cluster.clock.time <= 123


def test_starts_that_fail_are_judged_by_time_not_by_number() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=1, start_fate=lambda worker: (0.1, "lost" if worker < 7 else "ok"), start_seconds=50
    )
    assert sorted(_run(cluster, 4)[0]) == [0, 1, 2, 3]
    assert cluster.starts == 8
    never = PretendCluster(VirtualClock(), limit=1, start_fate=lambda worker: (0.1, "lost"), start_seconds=50)
    _, error, _ = _run(never, 4)
    assert isinstance(error, StalledError) and "node went away" in str(error)
    assert never.starts < 20  # it waits longer and longer between them


def test_loading_that_hangs_is_ended_and_tried_elsewhere() -> None:
    cluster = PretendCluster(
        VirtualClock(), limit=1, start_fate=lambda worker: (1.0, "slow load" if not worker else "ok")
    )
    assert sorted(_run(cluster, 4)[0]) == [0, 1, 2, 3]
    assert cluster.starts == 2


@pytest.mark.parametrize(
    ("raised", "expected"), [(ConfigError("no such file"), ConfigError), (KeyError("x"), ShardError)]
)
def test_loading_that_raises_everywhere_is_not_waited_for(raised: Exception, expected: type[Exception]) -> None:
    cluster = PretendCluster(VirtualClock(), limit=1, start_fate=lambda worker: (0.1, "raises"), error=raised)
    _, error, _ = _run(cluster, 4)
    assert isinstance(error, expected)
    assert cluster.clock.time < 10


def test_the_pool_grows_when_nodes_join() -> None:
    clock = VirtualClock()
    cluster = PretendCluster(clock, limit=1, fate=lambda task, worker, attempt: (5.0, "made"))

    def grow() -> None:
        cluster.limit = 5 if clock.time > 20 else 1

    supervisor = Supervisor(make_tasks(60), cluster.limits(), clock.now())
    records = list(make_shards(cluster, supervisor, clock, grow))  # type: ignore[arg-type]
    assert len(records) == 60
    assert (cluster.starts, cluster.most_alive) == (5, 5)
    assert clock.time < 120


def test_workers_that_wait_for_a_node_are_let_go_at_the_end() -> None:
    cluster = PretendCluster(VirtualClock(), limit=8, start_fate=lambda worker: (1.0, "ok" if worker < 2 else "never"))
    assert sorted(_run(cluster, 30)[0]) == list(range(30))
    assert cluster.starts == 8


FATES = ("made", "made", "made", "made", "raise", "die", "node", "hang", "store")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 40))
def test_whatever_happens_it_ends_and_every_shard_is_accounted_for(seed: int, limit: int, num_shards: int) -> None:
    chance = random.Random(seed)
    trouble = chance.choice((0.02, 0.2, 0.6))

    def fate(task: object, worker: int, attempt: int) -> tuple[float, str]:
        return chance.uniform(0.1, 30), chance.choice(FATES) if chance.random() < trouble else "made"

    def start_fate(worker: int) -> tuple[float, str]:
        strange = chance.random() < trouble
        return chance.uniform(0, 20), chance.choice(("lost", "never", "slow load", "raises")) if strange else "ok"

    cluster = PretendCluster(
        VirtualClock(), limit, fate, start_fate, error=chance.choice((OutputError("full"), ValueError("odd")))
    )
    made, error, supervisor = _run(cluster, num_shards)
    assert len(made) == len(set(made))
    assert cluster.most_alive <= limit
    assert max(cluster.attempts.values(), default=0) <= 60
    failed = set(supervisor.named_failures())
    assert not failed & {f"run-{index:06d}" for index in made}
    if error is None:
        assert sorted(made) == list(range(num_shards))
    elif "all others are finished" in str(error):
        assert len(made) + len(failed) == num_shards
    assert cluster.clock.time < num_shards * 400 + 2000


def test_a_thousand_workers_cost_a_millisecond_a_shard_and_no_memory(tmp_path: Path) -> None:
    chance = random.Random(0)
    cluster = PretendCluster(
        VirtualClock(), limit=1000, fate=lambda task, worker, attempt: (chance.uniform(50, 90), "made")
    )
    tasks = make_tasks(10_000)
    supervisor = Supervisor(tasks, cluster.limits(), 0.0)
    tracemalloc.start()
    try:
        held = tracemalloc.get_traced_memory()[0]
        peak_late = 0
        for count, _ in enumerate(_records(cluster, supervisor)):
            if count in (2000, 9000):
                peak_late = tracemalloc.get_traced_memory()[0] - held if count == 9000 else peak_late
                held = tracemalloc.get_traced_memory()[0] if count == 2000 else held
    finally:
        tracemalloc.stop()
    assert count == 9999
    assert peak_late < 1_000_000

    # Again without tracing, which costs several times the work itself; with the progress of a real run.
    cluster = PretendCluster(
        VirtualClock(), limit=1000, fate=lambda task, worker, attempt: (chance.uniform(50, 90), "made")
    )
    supervisor = Supervisor(tasks, cluster.limits(), 0.0)
    with RunProgress(Store.open(str(tmp_path)), supervisor, total_samples=60_000, done=[]) as progress:
        start = time.process_time()
        for record in _records(cluster, supervisor, progress.tick):
            progress.add(record)
        seconds = time.process_time() - start
    assert seconds / 10_000 < 0.001


def test_time_asleep_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 101.0, 3701.0, 3702.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    clock = AwakeClock()
    assert [clock.now() for _ in range(3)] == [1.0, 11.0, 12.0]


def test_a_report_of_failures_names_ten() -> None:
    report = failure_report({f"run-{index:06d}": "why" for index in range(12)})
    assert report.count("why") == 10
    assert report.startswith("12 shards failed; all others are finished")
    assert report.endswith("and 2 more")
