"""How the suite is spread over processes (`pytest -n 2`): by whole files, so that fixtures of a file are made once."""

import pytest
from xdist.scheduler import LoadScopeScheduling

# In one process, one after the other: a Ray cluster takes memory, and most of these share one.
ON_RAY = (
    "test_storm.py",
    "test_ray_cluster.py",
    "test_node_loss.py",
    "test_ray_job.py",
    "test_poison.py",
    "test_metrics.py",
    "test_ray_data.py",
    "test_nightly_on_ray.py",
    "test_methods.py",
    "test_ray_gpu.py",
)
# They take longest and come first, so that no process is left alone with one of them at the end.
LONG = (
    *ON_RAY,
    "test_readme.py",
    "test_domain_distance.py",
    "test_train.py",
    "test_classes.py",
    "test_downstream.py",
    "test_chaos.py",
    "test_speed.py",
)


class FileScheduling(LoadScopeScheduling):
    """Files, in the order in which they were collected; those on Ray as if they were one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "ray" if path.rpartition("/")[2] in ON_RAY else path


def long_ones_first(items: list[pytest.Item]) -> None:
    """Sorts collected tests; those of a file keep their order."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def scheduling(config: pytest.Config, log: object) -> FileScheduling:
    """The scheduler for a run with `-n`."""
    config.option.loadscopereorder = False
    return FileScheduling(config, log)
