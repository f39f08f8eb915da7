"""A run's metrics, for the Prometheus that watches a Ray cluster.

Only the driver has them: what a worker counts would vanish with it. Ray puts `ray_` before the names, `_total` behind
those that count, and tags of its own beside `run`, the name in the run file. deploy/README.md lists them.
"""

import time

from ray.util.metrics import Counter, Gauge

from labelmill.schemas.progress import RunState


class RunMetrics:
    """The metrics of one run, as a Ray driver reports them: create it after `ray.init`."""

    def __init__(self, run: str) -> None:
        self._start: RunState | None = None
        self._shown_at, self._num_worker_seconds = time.monotonic(), 0.0
        self._done = _Level("labelmill_samples_done", "Samples in published shards, earlier drivers' too.", run)
        self._wanted = _Level("labelmill_samples_wanted", "Samples asked for.", run)
        self._rate = _Level("labelmill_images_per_second", "Samples kept per second since the driver started.", run)
        self._workers = _Level("labelmill_workers", "Workers making shards now.", run)
        # Not totals: Ray exports no total before its first step, so that an alert on the step would miss it.
        self._retries = _Level("labelmill_retries", "Shards sent out again after a death or a refusal.", run)
        self._failed = _Level("labelmill_failed_shards", "Shards given up: quarantined, or impossible to make.", run)
        self._samples = _Total("labelmill_samples", "Samples kept.", run)
        self._dropped = _Total("labelmill_dropped", "Candidates dropped by a quality rule.", run, by="reason")
        self._shards = _Total("labelmill_shards", "Shards published.", run)
        self._seconds = _Total("labelmill_stage_seconds", "Seconds that workers spent in a stage.", run, by="stage")
        # The stages in which a worker's device works, in parts of these: the share of time that GPUs are busy.
        self._worker_seconds = _Total("labelmill_worker_seconds", "Seconds of all workers since they were ready.", run)

    def show(self, state: RunState) -> None:
        """Report a state, the one at the driver's start first: totals are this driver's, so that drivers add up.

        Call it every second: a level that is not repeated vanishes from Ray's next export.
        """
        start = self._start = self._start or state
        self._done.set(state.done)
        self._wanted.set(state.total)
        self._rate.set(state.images_per_second)
        self._workers.set(state.workers)
        self._retries.set(state.retries)
        self._failed.set(len(state.failures))
        self._samples.reach(state.done - start.done)
        for reason, count in state.dropped_by_reason.items():
            self._dropped.reach(count - start.dropped_by_reason.get(reason, 0), reason)
        self._shards.reach(state.shards - start.shards)
        for stage, seconds in state.seconds_by_stage.items():
            self._seconds.reach(seconds, stage)
        now = time.monotonic()
        self._num_worker_seconds += state.workers * (now - self._shown_at)
        self._shown_at = now
        self._worker_seconds.reach(self._num_worker_seconds)


class _Level:
    def __init__(self, name: str, description: str, run: str) -> None:
        self._gauge = Gauge(name, description, ("run",)).set_default_tags({"run": run})

    def set(self, value: float) -> None:
        self._gauge.set(value)


class _Total:
    """A counter that is told where it stands, not what to add."""

    def __init__(self, name: str, description: str, run: str, by: str | None = None) -> None:
        self._by = by
        self._counter = Counter(name, description, ("run",) if by is None else ("run", by))
        self._counter.set_default_tags({"run": run})
        self._reached: dict[str, float] = {}

    def reach(self, value: float, kind: str = "") -> None:
        more = value - self._reached.get(kind, 0.0)
        if more > 0:
            self._counter.inc(more, {} if self._by is None else {self._by: kind})
            self._reached[kind] = value
