"""Shards that cannot be made: told apart, given up after as few tries as it takes, and all the others finished."""

import json
from collections.abc import Callable
from pathlib import Path

from helpers.drivers import Driver
from helpers.ray_nodes import environment, own_ray
from helpers.ray_runs import RAY, shards_of, state_of

INSIDE = Path(__file__).resolve().parents[1] / "chaos" / "inside"
POISONED, RAISING, SAMPLES, SEEDS_PER_SHARD = 2, 5, 48, 24


def test_poison_is_quarantined_and_everything_else_is_made(
    write_run_file: Callable[..., Path], tmp_path: Path, expected: dict[str, bytes]
) -> None:
    output = str(tmp_path / "out")
    run_file = write_run_file(dataset={"samples": SAMPLES}, execution={**RAY, "device": "cpu"})
    faults = [
        {
            "what": what,
            "where": "encode",
            "seed": index * SEEDS_PER_SHARD,
            "tar": "",
            "marker": str(tmp_path / what),
        }
        for what, index in (("poison", POISONED), ("raise", RAISING))
    ]
    # Ray is started by the driver, so that its workers inherit what kills them.
    with own_ray() as own, environment(**own, RAY_ADDRESS="local"):
        poison = {"PYTHONPATH": str(INSIDE), "STORM_INSIDE": json.dumps(faults)}
        with Driver("generate", run_file, env=poison) as driver:
            assert driver.wait() == 3, driver.text
        gone = [match[1] for match in driver.wait_for(r"\bworker (\d+) is gone: ")]
        assert len(gone) == len(set(gone)) == 3, driver.text
        assert len(driver.wait_for(r"\bshard tiny-000005 failed")) == 1
        report = driver.text[driver.text.index("labelmill: 2 shards failed") :]
        assert "tiny-000002: 3 workers died on it, the last one: " in report
        assert f"tiny-000005: RuntimeError: seed {RAISING * SEEDS_PER_SHARD} cannot be encoded" in report
        assert "Traceback" not in driver.text

        made = {path: content for path, content in expected.items() if int(path[12:18]) < SAMPLES // 6}
        missing = {path for path in made if int(path[12:18]) in (POISONED, RAISING)}
        assert shards_of(output) == {path: content for path, content in made.items() if path not in missing}
        assert not (tmp_path / "out" / "manifest.json").exists()
        state = state_of(output)
        assert (state.state, list(state.failures)) == ("failed", ["tiny-000002", "tiny-000005"])

        before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    with Driver("generate", run_file, "--set", "execution.executor=local") as driver:
        assert driver.wait() == 0, driver.text
    assert shards_of(output) == made
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    assert after.keys() - before.keys() == {path.removeprefix("shards/") for path in missing}
    assert before.items() <= after.items()
    assert (tmp_path / "out" / "manifest.json").exists()
