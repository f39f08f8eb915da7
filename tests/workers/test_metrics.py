"""What Prometheus gets from a node while a run is on it."""

import re
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from helpers.drivers import Driver, wait_until
from helpers.ray_nodes import RayNodes
from helpers.ray_runs import RAY

from labelmill.schemas.config import RunConfig
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate

ROOT = Path(__file__).resolve().parents[2]


def _scrape(nodes: RayNodes) -> Counter[tuple[str, str]]:
    """Values by name and reason or stage, of the last driver: totals of those before it stay for ever."""
    with urllib.request.urlopen(f"http://127.0.0.1:{nodes.head.metrics_export_port}", timeout=10) as page:
        lines = re.findall(r"^ray_(labelmill_\w+){(.*)} (\S+)$", page.read().decode(), flags=re.MULTILINE)
    drivers: dict[str, Counter[tuple[str, str]]] = {}
    for name, tags, value in lines:
        values = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        if values["run"] == "metered":
            kind = values.get("reason", values.get("stage", ""))
            drivers.setdefault(values["WorkerId"], Counter())[name, kind] = float(value)
    return drivers[max(drivers)] if drivers else Counter()


def test_metrics_of_a_run(ray_cluster: RayNodes, write_run_file: Callable[..., Path]) -> None:
    quality = {"enabled": True, "confidence_min": 0.35, "largest_component_min": 0.0, "foreground_max": 1.0}
    dataset = {"samples": 24, "max_candidates_per_sample": 100}
    sections = {"name": "metered", "quality": quality, "execution": RAY}
    earlier = generate(load_config(write_run_file(dataset=dataset, **sections), RunConfig))
    run_file = write_run_file(dataset={**dataset, "samples": 600_000}, **sections)
    stages = {"synthesise", "label", "copy"}
    documented = set(re.findall(r"`ray_(labelmill_\w+)`", (ROOT / "deploy" / "README.md").read_text()))
    values: Counter[tuple[str, str]] = Counter()
    with Driver("generate", run_file) as driver:

        def is_whole() -> bool:
            """An export may fall between two steps of the driver, or Ray's agent drop a gauge that came late; then the
            next one is looked at."""
            nonlocal values
            values = _scrape(ray_cluster)
            samples = values["labelmill_samples_total", ""]
            return (
                {name for name, _ in values} >= documented
                and samples > 0
                and values["labelmill_images_per_second", ""] > 0
                and values["labelmill_dropped_total", "low_confidence"] > 0
                and samples == 6 * values["labelmill_shards_total", ""]
                and samples + 24 == values["labelmill_samples_done", ""]
                and values["labelmill_samples_wanted", ""] == 600_000
                and values["labelmill_workers", ""] == 2
                and all(values["labelmill_stage_seconds_total", stage] > 0 for stage in stages)
            )

        wait_until(is_whole)
        assert values["labelmill_failed_shards", ""] == values["labelmill_retries", ""] == 0
        driver.send(signal.SIGTERM)
        assert driver.wait() == 75
    assert sum(record.dropped_by_reason["low_confidence"] for record in earlier) > 0
    assert {name for name, _ in values} == documented
    # Panels and alerts ask for nothing else, and for no other stage or reason.
    pages = [(ROOT / "deploy" / page).read_text() for page in ("grafana/dashboard.json", "prometheus/rules.yaml")]
    asked = set(re.findall(r"ray_(labelmill_\w+)", "".join(pages)))
    assert asked and asked <= documented
    assert set("|".join(re.findall(r'stage=~?\\?"([\w|]+)', "".join(pages))).split("|")) == stages
    busy = sum(values["labelmill_stage_seconds_total", stage] for stage in stages)
    assert 0 < busy <= 2 * values["labelmill_worker_seconds_total", ""]
