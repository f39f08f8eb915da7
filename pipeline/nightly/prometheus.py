"""The status of a nightly root for Prometheus, which reads it through the textfile collector of its node exporter.

Points in time, not ages: the collector goes on serving a file that nobody writes any more, and an age in it would stand
still for ever.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from labelmill.pipeline.nightly.snapshots import State, night_of
from labelmill.pipeline.nightly.status import NightlyStatus

_Sample = tuple[dict[str, str], float | None]


def prometheus_text(status: NightlyStatus) -> str:
    """Gauges in Prometheus' text format, each with the root as a label. What is not known is left out."""

    def when(age_seconds: float | None) -> float | None:
        return None if age_seconds is None else status.unix_time - age_seconds

    live_night = None if status.live is None else datetime.fromisoformat(f"{night_of(status.live)}T00Z").timestamp()
    gates = status.newest_gates
    results = () if gates is None else gates.results
    states = [snapshot.state for snapshot in status.snapshots]
    gauges: list[tuple[str, str, list[_Sample]]] = [
        ("status_timestamp_seconds", "When this status was read.", [({}, status.unix_time)]),
        ("success_timestamp_seconds", "When a night last ended well.", [({}, when(status.success_age_seconds))]),
        ("live_timestamp_seconds", "When the live snapshot became live.", [({}, when(status.live_age_seconds))]),
        ("live_night_timestamp_seconds", "The live snapshot's night, at 0:00 UTC.", [({}, live_night)]),
        (
            "heartbeat_timestamp_seconds",
            "When the lock's owner last renewed it.",
            [({}, when(status.heartbeat_age_seconds))],
        ),
        ("generation", "Runs that have had the lock.", [({}, status.generation)]),
        ("snapshots", "Snapshots by state.", [({"state": state}, states.count(state)) for state in get_args(State)]),
        (
            "gates_passed",
            "Whether the snapshot judged last passed, or a night has ended well since.",
            [({}, None if gates is None else gates.passed)],
        ),
        ("gate_value", "A gate's value.", [({"gate": result.name}, result.value) for result in results]),
        (
            "gate_limit",
            "Highest value of the gate that passes.",
            [({"gate": result.name}, result.limit) for result in results],
        ),
    ]
    families = []
    for name, description, samples in gauges:
        family = GaugeMetricFamily(f"labelmill_nightly_{name}", description)
        for labels, value in samples:
            if value is not None:
                family.add_sample(family.name, {"root": status.root, **labels}, value)
        families += [family] if family.samples else []
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry).decode()


class _Families(Collector):
    """Metrics that are known already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families
