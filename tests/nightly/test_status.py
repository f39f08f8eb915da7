"""What `labelmill nightly status` says of gates: the last word that still counts."""

from datetime import date
from pathlib import Path

import pytest
from helpers.nightly_runs import ANYTHING_PASSES, nightly_config
from prometheus_client.parser import text_string_to_metric_families

from labelmill.pipeline.dataset.manifest import MANIFEST_PATH
from labelmill.pipeline.nightly.latest import change_latest, succeed
from labelmill.pipeline.nightly.lock import iso_time
from labelmill.pipeline.nightly.prometheus import prometheus_text
from labelmill.pipeline.nightly.snapshots import open_snapshot
from labelmill.pipeline.nightly.status import nightly_status
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import GateError
from labelmill.schemas.nightly_files import GateReport
from labelmill.workers.nightly import run_night

NOON = 1_800_000_000.0
FIRST, SECOND = "2026-11-03-000000000000", "2026-11-03-ffffffffffff"


def add(root: Store, name: str, judged: float, *, passed: bool) -> None:
    """A snapshot that is whole and was judged at that time."""
    report = GateReport(
        snapshot=name,
        live=None,
        passed=passed,
        problems=(),
        results=(),
        tonight=None,
        live_measures=None,
        judged=iso_time(judged),
    )
    snapshot = open_snapshot(root, name)
    snapshot.replace(MANIFEST_PATH, b"{}")
    snapshot.replace("gates.json", report.model_dump_json().encode())


def newest(root: Store) -> str | None:
    report = nightly_status(root, NOON).newest_gates
    return None if report is None else report.snapshot


def test_the_last_judgement_counts_whatever_the_snapshots_name(tmp_path: Path) -> None:
    """Two on one date stand in the order of their digests, and an older one may be judged again."""
    root = Store.open(str(tmp_path / "root"))
    assert newest(root) is None
    add(root, SECOND, NOON, passed=True)
    add(root, FIRST, NOON + 60, passed=False)
    assert newest(root) == FIRST
    add(root, SECOND, NOON + 60, passed=False)  # within the same second
    assert newest(root) == SECOND
    open_snapshot(root, SECOND).delete(MANIFEST_PATH)  # it is being deleted
    assert newest(root) == FIRST


@pytest.mark.parametrize(("succeeded", "expected"), [(NOON + 59, FIRST), (NOON + 60, FIRST), (NOON + 61, SECOND)])
def test_a_refusal_is_over_when_a_night_ends_well(succeeded: float, expected: str, tmp_path: Path) -> None:
    root = Store.open(str(tmp_path / "root"))
    add(root, SECOND, NOON, passed=True)
    add(root, FIRST, NOON + 60, passed=False)
    change_latest(root, succeed(iso_time(succeeded)))
    assert newest(root) == expected


def test_a_change_that_is_undone_ends_the_alert(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """As the runbook says: with fixed seeds the next night finds what is live unchanged."""
    gates = {**ANYTHING_PASSES, "near_duplicates": 0.5}
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=gates)
    generator = config.run.generator.model_copy(update={"truncation_psi": 0.01})
    drifted = config.model_copy(update={"run": config.run.model_copy(update={"generator": generator})})

    def passed() -> str:
        lines = prometheus_text(nightly_status(Store.open(config.root), NOON + 300)).splitlines()
        return next(line[-3:] for line in lines if line.startswith("labelmill_nightly_gates_passed{"))

    run_night(config, date(2026, 11, 1), lambda: NOON)
    assert passed() == "1.0"
    with pytest.raises(GateError):
        run_night(drifted, date(2026, 11, 2), lambda: NOON + 100)
    assert passed() == "0.0"
    assert run_night(config, date(2026, 11, 3), lambda: NOON + 200).kind == "unchanged"
    assert passed() == "1.0"


def test_what_prometheus_reads(tmp_path: Path) -> None:
    """Every sample carries the root, whatever its name; what is not known is left out."""
    root = Store.open(str(tmp_path / 'a "root"'))
    add(root, FIRST, NOON, passed=False)
    text = prometheus_text(nightly_status(root, NOON + 0.5))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(family.type == "gauge" and family.documentation for family in families.values())
    assert {sample.labels["root"] for family in families.values() for sample in family.samples} == {root.url}
    values = {name: [sample.value for sample in family.samples] for name, family in families.items()}
    assert values["labelmill_nightly_status_timestamp_seconds"] == [NOON + 0.5]
    assert values["labelmill_nightly_gates_passed"] == [0.0]
    states = {sample.labels["state"]: sample.value for sample in families["labelmill_nightly_snapshots"].samples}
    assert states == {"unfinished": 0.0, "complete": 0.0, "passed": 0.0, "rejected": 1.0}
    assert "labelmill_nightly_success_timestamp_seconds" not in values
