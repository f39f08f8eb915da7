"""Nights whose clock or date was ahead: they are refused, and what one of them left is told instead of obeyed."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from helpers.nightly_runs import ANYTHING_PASSES, nightly_config
from prometheus_client.parser import text_string_to_metric_families

from labelmill.pipeline.nightly.clock import newest_night
from labelmill.pipeline.nightly.commands import rollback
from labelmill.pipeline.nightly.latest import read_latest
from labelmill.pipeline.nightly.lock import acquire, taken
from labelmill.pipeline.nightly.prometheus import prometheus_text
from labelmill.pipeline.nightly.status import nightly_status, nightly_status_lines
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.nightly import NightlyConfig
from labelmill.schemas.nightly_files import LockFile
from labelmill.workers.nightly import Outcome, _Night, check_night, prune_root, run_night

DAY = 86_400.0
NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC
AHEAD = NOON + 400 * DAY


def night(config: NightlyConfig, now: float) -> Outcome:
    return run_night(config, datetime.fromtimestamp(now, UTC).date(), lambda: now)


def config_of(checkpoint: Path, root: Path, seeds: str) -> NightlyConfig:
    run = {"dataset": {"samples": 6, "samples_per_shard": 6}}
    return nightly_config(checkpoint, root, seeds=seeds, gates=ANYTHING_PASSES, run=run)


def test_the_newest_night_is_that_of_the_first_time_zone() -> None:
    assert newest_night(NOON - 2 * 3600 - 1) == date(2027, 1, 15)
    assert newest_night(NOON - 2 * 3600) == date(2027, 1, 16)


def test_a_date_ahead_of_the_clock_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = config_of(tiny_checkpoint, tmp_path / "root", "fresh")
    mistyped = date(2072, 1, 15)
    sentence = r"^--date 2072-01-15: is ahead of this machine's clock, by which it is 2027-01-15 12:00 UTC\. Correct"
    with pytest.raises(ConfigError, match=sentence):
        run_night(config, mistyped, lambda: NOON)
    with pytest.raises(ConfigError, match=sentence):
        check_night(config, mistyped, lambda: NOON)
    with pytest.raises(ConfigError, match=sentence):
        prune_root(config, mistyped, dry_run=True, clock=lambda: NOON)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("seeds", ["fresh", "fixed"])
def test_a_live_snapshot_ahead_of_the_clock_is_told_and_mended(
    seeds: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    config = config_of(tiny_checkpoint, tmp_path / "root", seeds)
    root = Store.open(config.root)
    # The very first night: nothing was live before.
    ahead = night(config, AHEAD).snapshot
    assert ahead.startswith("2028-02-19-")
    left = read_latest(root)
    for now in (NOON, NOON + DAY):
        with pytest.raises(OutputError, match=rf"{ahead} is of a night ahead .* delete {root.url}/latest\.json, and"):
            night(config, now)
        assert read_latest(root).succeeded == left.succeeded
    with pytest.raises(OutputError, match=r"nothing was made"):
        check_night(config, date(2027, 1, 15), lambda: NOON)
    root.delete("latest.json")
    first = night(config, NOON).snapshot
    assert first.startswith("2027-01-15-") and read_latest(root).snapshot == first

    # A later one: the night before it can be made live again.
    other = config.model_copy(update={"run": _truncated(config)})
    ahead = night(other, AHEAD + DAY).snapshot
    with pytest.raises(OutputError, match=rf"`labelmill nightly rollback {root.url} {first}` makes live"):
        night(other, NOON + DAY)
    status = nightly_status(root, NOON + DAY)
    assert status.live == ahead and status.live_is_ahead
    assert status.success_age_seconds == -400 * DAY
    assert "that night is ahead of this machine's clock" in nightly_status_lines(status)[1]
    families = text_string_to_metric_families(prometheus_text(status))
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["labelmill_nightly_live_night_timestamp_seconds"] == AHEAD + DAY / 2
    assert values["labelmill_nightly_success_timestamp_seconds"] == AHEAD + DAY
    rollback(root, first, "now")
    mended = night(other, NOON + DAY)
    assert mended.kind == "published" and mended.snapshot.startswith("2027-01-16-")
    assert not nightly_status(root, NOON + DAY).live_is_ahead


def _truncated(config: NightlyConfig) -> object:
    generator = config.run.generator.model_copy(update={"truncation_psi": 0.5})
    return config.run.model_copy(update={"generator": generator})


def test_a_night_before_the_live_one_is_no_success(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = config_of(tiny_checkpoint, tmp_path / "root", "fresh")
    root = Store.open(config.root)
    night(config, NOON)
    before = read_latest(root)
    yesterday = datetime.fromtimestamp(NOON, UTC).date() - timedelta(days=1)
    assert run_night(config, yesterday, lambda: NOON + 60).kind == "superseded"
    assert read_latest(root).succeeded == before.succeeded
    assert night(config, NOON + 60).kind == "unchanged"
    assert read_latest(root).succeeded != before.succeeded


def test_what_is_posted_holds_no_secret_of_an_address(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = config_of(tiny_checkpoint, tmp_path / "root", "fixed")
    error = OutputError("https://user:hunter2@host/x.pkl?token=hunter2: cannot be read")
    notice = _Night(config, date(2027, 1, 15), Store.open(config.root), lambda: NOON).notice(error)
    assert notice.text == "labelmill nightly 2027-01-15: https://host/x.pkl?...: cannot be read"


def test_a_lock_from_the_future_is_told(tmp_path: Path) -> None:
    root = Store.open(str(tmp_path / "root"))
    acquire(root, "anna", AHEAD, 60, 0)
    with pytest.raises(OutputError, match=rf"{root.url}: anna has the lock, last heard of at 2028-02-19T12.* delete"):
        acquire(root, "bert", NOON, 60, 0)
    held = LockFile(generation=1, owner="anna", heartbeat=NOON + 60, expires=NOON + 120)
    with pytest.raises(ValueError, match="anna has the lock; last heard of 0 s ago"):
        taken(held, "bert", NOON, 60)  # clocks that differ a little
