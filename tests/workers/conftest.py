"""One Ray cluster for most tests of runs on Ray."""

from collections.abc import Iterator

import pytest
from helpers.ray_nodes import RayNodes
from helpers.s3_server import S3Server


@pytest.fixture(scope="session")
def ray_nodes(s3_server: S3Server) -> Iterator[RayNodes]:
    """A cluster with two cores and two GPUs that are none; its workers know the S3 server."""
    environment = {**s3_server.environment, "RAY_metrics_report_interval_ms": "1000"}
    with RayNodes(environment, num_cpus=2, num_gpus=2) as nodes:
        yield nodes


@pytest.fixture
def ray_cluster(ray_nodes: RayNodes) -> Iterator[RayNodes]:
    """The cluster, which this test's drivers find."""
    with ray_nodes.entered():
        yield ray_nodes
