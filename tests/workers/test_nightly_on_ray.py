"""A night whose shards are made on a Ray cluster: it is published, or says that it is not."""

import os
import signal
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from helpers.nightly_runs import (
    ANYTHING_PASSES,
    Trap,
    check_live,
    finish,
    nightly_config,
    start_night,
    wait_until_stopped,
)
from helpers.ray_nodes import RayNodes, silent
from helpers.ray_runs import RAY

from labelmill.pipeline.nightly.lock import read_lock
from labelmill.pipeline.nightly.snapshots import list_snapshots
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import EXIT_RESUMABLE
from labelmill.workers.nightly import run_night

NOON = 1_800_000_000.0


@pytest.fixture
def own_nodes() -> Iterator[RayNodes]:
    """A cluster that no other test relies on."""
    with RayNodes(num_cpus=1) as nodes:
        yield nodes


def test_a_night_whose_cluster_goes_silent_after_the_last_shard_is_not_done(
    own_nodes: RayNodes, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """All shards and the manifest are there, and Ray does not shut down: nothing is live yet, hence no status 0."""
    execution = {**RAY, "gpus_per_worker": 0}
    config = nightly_config(tiny_checkpoint, tmp_path / "root", gates=ANYTHING_PASSES, run={"execution": execution})
    root, night = Store.open(config.root), "2026-11-01"
    before_the_manifest = Trap(0, path=r"swap .*manifest\.json", signal=signal.SIGSTOP)
    process = start_night(config, night, NOON, trap=before_the_manifest, environment=own_nodes.environment)
    wait_until_stopped(process)
    with silent(own_nodes):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGCONT)
        assert finish(process) == EXIT_RESUMABLE
    (snapshot,) = list_snapshots(root)
    assert snapshot.state == "complete" and check_live(root) is None
    assert read_lock(root)[0].owner is not None
    with own_nodes.entered():
        assert run_night(config, date.fromisoformat(night), lambda: NOON + 61).kind == "published"
    assert check_live(root, deep=True) == snapshot.name
