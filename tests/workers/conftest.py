"""Fixtures of the tests with Ray: one cluster for most of them, and what a run without Ray makes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNodes
from ray_runs import shards_of
from s3_server import S3Server

from schemas.config import RunConfig
from schemas.run_file import load_config
from workers.generate import generate

MOST_SAMPLES = 480
"""Of the run that others are compared with; shards hold six."""


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3Server) -> Iterator[RayNodes]:
    """Two cores and two GPUs that are none; its workers know the S3 server."""
    with RayNodes(s3_server.environment, num_cpus=2, num_gpus=2) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def expected(write_run_file_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of `write_run_file`'s run by path, as the local executor makes them."""
    run_file = write_run_file_in(tmp_path_factory.mktemp("expected"), dataset={"samples": MOST_SAMPLES})
    config = load_config(run_file, RunConfig)
    generate(config)
    return shards_of(config.output)
