"""Whether a finished snapshot may be live: every byte verified, then compared with the one that is."""

from collections.abc import Callable

from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.nightly.gates import ask_gates
from labelmill.pipeline.nightly.gates_page import figure, gates_page
from labelmill.pipeline.nightly.lease import Clock
from labelmill.pipeline.nightly.lock import iso_time
from labelmill.pipeline.nightly.measure import measure_snapshot
from labelmill.pipeline.nightly.snapshots import GATES_PAGE_PATH, GATES_PATH, open_snapshot
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import LabelmillError, OutputError
from labelmill.schemas.nightly import NightlyConfig
from labelmill.schemas.nightly_files import GateReport, Measures

_LISTED_PROBLEMS = 20


def judge_snapshot(
    root: Store, snapshot: str, live: str | None, config: NightlyConfig, clock: Clock, confirm: Callable[[], None]
) -> GateReport:
    """Verify a snapshot and ask the gates. Writes gates.html, then gates.json, into it.

    `clock` says when that was. `confirm` is called before anything is written, and may raise. Raises OutputError where
    the store fails, or the live snapshot cannot be measured.
    """
    tonight = open_snapshot(root, snapshot)
    problems = verify(tonight).problems[:_LISTED_PROBLEMS]
    measures = None if problems else measure_snapshot(tonight, config.sampling)
    live_measures = None if problems else _measure_live(root, live, config)
    results = () if measures is None else ask_gates(measures, live_measures, config.gates)
    report = GateReport(
        snapshot=snapshot,
        live=live,
        passed=not problems and all(result.verdict != "failed" for result in results),
        problems=problems,
        results=results,
        tonight=measures,
        live_measures=live_measures,
        judged=iso_time(clock()),
    )
    page = None if problems else gates_page(tonight, None if live is None else open_snapshot(root, live), report)
    confirm()
    if page is None:
        tonight.delete(GATES_PAGE_PATH)  # of an earlier judgement
    else:
        tonight.replace(GATES_PAGE_PATH, page)
    tonight.replace(GATES_PATH, report.model_dump_json(indent=1).encode() + b"\n")
    return report


def _measure_live(root: Store, live: str | None, config: NightlyConfig) -> Measures | None:
    if live is None:
        return None
    try:
        return measure_snapshot(open_snapshot(root, live), config.sampling)
    except LabelmillError as error:
        raise OutputError(
            f"the live snapshot {live} cannot be compared with: {error}. `labelmill nightly rollback` makes another "
            f"one live"
        ) from error


def failures(report: GateReport) -> list[str]:
    """The failed gates, a line each."""
    return [
        f"{result.name}: {figure(result.value)}, at most {figure(result.limit)} passes ({result.meaning})"
        for result in report.results
        if result.verdict == "failed"
    ]
