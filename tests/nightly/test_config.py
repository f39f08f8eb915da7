"""The nightly file, and the seeds that it gives each night."""

from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml
from helpers.nightly_runs import nightly_config
from hypothesis import given
from hypothesis import strategies as st

from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.nightly.gates import GATES
from labelmill.pipeline.nightly.seeds import first_seed, nights_left, run_of
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.nightly import GatesConfig, NightlyConfig, load_nightly_config
from labelmill.schemas.section import SEED_LIMIT

SINCE = date(2026, 1, 1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A run file and a nightly file that names it."""
    run = {
        "name": "portraits",
        "output": "./elsewhere",
        "generator": {"checkpoint": "bundled:avatars-32"},
        "dataset": {"samples": 1000},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    (tmp_path / "nightly.yaml").write_text("run: run.yaml\nroot: /data/nightly\nfresh_seeds: {since: 2026-02-03}\n")
    return tmp_path


def test_a_run_file_is_found_beside_the_nightly_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load_nightly_config(files / "nightly.yaml", ["run.dataset.samples=77", "gates.class_psi=null"])
    assert (config.run.name, config.run.dataset.samples, config.root) == ("portraits", 77, "/data/nightly")
    assert config.gates.class_psi is None and config.gates.class_js == GatesConfig().class_js
    assert config.fresh_seeds.since == date(2026, 2, 3)


def test_an_inline_run_needs_no_output(files: Path) -> None:
    run = yaml.safe_load((files / "run.yaml").read_text())
    del run["output"]
    (files / "nightly.yaml").write_text(yaml.safe_dump({"run": run, "root": "s3://bucket/nightly"}))
    assert load_nightly_config(files / "nightly.yaml").run.dataset.samples == 1000


def test_all_mistakes_are_told_at_once(files: Path) -> None:
    overrides = [
        "run.dataset.samples=0",
        "gates.clas_psi=1",
        "lock.ttl_s=100",
        "lock.heartbeat_s=50",
        "webhook.url_variable=https://hooks.example/secret",
        "seeds=random",
    ]
    with pytest.raises(ConfigError) as refused:
        load_nightly_config(files / "nightly.yaml", overrides)
    for sentence in (
        "run.dataset.samples: input should be greater than or equal to 1, found 0",
        "gates.clas_psi: unknown key; did you mean class_psi?",
        "lock: heartbeat_s: 50 leaves no room for two failed renewals within ttl_s 100; at most 33.3333 works",
        "webhook.url_variable",
        "seeds: input should be 'fixed' or 'fresh', found 'random'",
    ):
        assert sentence in str(refused.value)


def test_a_run_file_cannot_be_set_from_the_command(files: Path) -> None:
    with pytest.raises(ConfigError, match="name the run file in the nightly file"):
        load_nightly_config(files / "nightly.yaml", ["run=other.yaml"])
    (files / "nightly.yaml").write_text("run: missing.yaml\nroot: a\n")
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        load_nightly_config(files / "nightly.yaml")


def test_every_gate_has_its_limit() -> None:
    assert [gate.name for gate in GATES] == list(GatesConfig.model_fields)


def config_of(
    samples: int = 100, per_night: int = 2**20, first: int = 0, seeds: str = "fresh", per_shard: int = 10
) -> NightlyConfig:
    dataset = {"samples": samples, "samples_per_shard": per_shard, "first_seed": first}
    fresh = {"since": SINCE.isoformat(), "per_night": per_night}
    return nightly_config(Path("c"), "r", seeds=seeds, fresh_seeds=fresh, run={"dataset": dataset})


@given(
    samples=st.integers(1, 5000),
    per_shard=st.integers(1, 700),
    spare=st.integers(0, 10_000),
    first=st.integers(0, 2**31),
    days=st.lists(st.integers(0, 4000), min_size=2, max_size=2, unique=True),
)
def test_nights_share_no_seed(samples: int, per_shard: int, spare: int, first: int, days: list[int]) -> None:
    shards = -(-samples // per_shard)
    config = config_of(samples, shards * per_shard * 4 + spare, first, per_shard=per_shard)
    nights = [SINCE + timedelta(days=day) for day in days]
    fits = [first + (day + 1) * config.fresh_seeds.per_night <= SEED_LIMIT for day in days]
    if not all(fits):
        for night, fit in zip(nights, fits, strict=True):
            if not fit:
                with pytest.raises(ConfigError, match="used up"):
                    run_of(config, night)
        return
    runs = [run_of(config, night) for night in nights]
    assert runs == [run_of(config, night) for night in nights]  # nothing but the date decides
    tasks = [shard_tasks(run) for run in runs]
    spans = sorted((each[0].first_seed, each[-1].first_seed + each[-1].num_seeds) for each in tasks)
    assert first <= spans[0][0] and spans[0][1] <= spans[1][0] and spans[1][1] <= SEED_LIMIT
    assert runs[0].model_copy(update={"dataset": runs[1].dataset}) == runs[1]  # nothing else differs


def test_the_default_lasts_for_eleven_years() -> None:
    config = config_of()
    assert nights_left(config, SINCE) == 4096
    last = SINCE + timedelta(days=4095)
    assert first_seed(config, last) == SEED_LIMIT - 2**20
    assert nights_left(config, last) == 1
    with pytest.raises(ConfigError, match=rf"{last} was the last night of 1048576 seeds.*since to 2037-03-20"):
        first_seed(config, last + timedelta(days=1))


def test_a_night_before_the_first_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fresh_seeds\.since: 2026-01-01 is after the night of 2025-12-31"):
        run_of(config_of(), date(2025, 12, 31))


def test_a_night_that_needs_more_seeds_than_it_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="399 is less than the 400 seeds that a night of this run may try; 400 or"):
        config_of(per_night=399)
    assert config_of(per_night=400).fresh_seeds.per_night == 400
    assert config_of(per_night=399, seeds="fixed").run.dataset.samples == 100


def test_fixed_seeds_are_the_same_every_night() -> None:
    config = config_of(seeds="fixed", first=7)
    assert run_of(config, date(1999, 1, 1)) == run_of(config, SINCE) == config.run
    assert config.run.dataset.first_seed == 7
