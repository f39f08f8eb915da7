"""Ray clusters of several nodes on this machine, and a look at their processes from outside.

with RayNodes(num_cpus=2, num_gpus=2) as nodes, nodes.entered():
    nodes.add(num_cpus=1, labels={"kind": "gpu"})
    generate(...)
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import ray
from ray._private.authentication_test_utils import reset_auth_token_state
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for the time of a context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def own_ray() -> Iterator[dict[str, str]]:
    """Variables that have Ray keep to a folder and a token of its own; the folder goes when the context ends."""
    folder = tempfile.mkdtemp(prefix="ray-")  # not pytest's: the paths of Ray's sockets may have 107 characters
    token = Path(folder) / "token"
    token.write_text("0123456789abcdef" * 4)
    try:
        yield {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Ray's nodes end this process at a SIGTERM, long after they are gone; other tests send themselves one."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class RayNodes:
    """A cluster. Use as a context; drivers find it within `entered`. `head` are Ray's names of a node's settings."""

    def __init__(self, more_environment: Mapping[str, str] | None = None, **head: Any) -> None:
        self._head, self._more = head, more_environment or {}

    def __enter__(self) -> Self:
        self._own = own_ray()
        self.environment = {**self._own.__enter__(), **self._more}
        with self.entered(), _same_sigterm():
            self._cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **self._head})
        self.environment["RAY_ADDRESS"] = str(self._cluster.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert not ray.is_initialized()
        with self.entered():
            self._cluster.shutdown()
        self._own.__exit__(None, None, None)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This process and those that it starts use the cluster."""
        with environment(**self.environment):
            reset_auth_token_state()  # Ray reads its settings when it is imported
            yield
        reset_auth_token_state()

    @property
    def head(self) -> Any:
        return self._cluster.head_node

    def add(self, **node: Any) -> Any:
        """Start a node; it is part of the cluster on return."""
        with _same_sigterm():
            return self._cluster.add_node(**node)

    def remove(self, node: Any) -> None:
        """End a node as a power cut does."""
        self._cluster.remove_node(node, allow_graceful=False)

    @contextmanager
    def extra(self, **node: Any) -> Iterator[Any]:
        """A node for the time of a context."""
        added = self.add(**node)
        try:
            yield added
        finally:
            self.remove(added)


def raylet_of(node: Any) -> psutil.Process:
    """A node's own process, the parent of its workers."""
    return psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)


@contextmanager
def silent(nodes: RayNodes) -> Iterator[None]:
    """Within it the cluster's head (its GCS) is frozen."""
    head = psutil.Process(nodes.head.all_processes[PROCESS_TYPE_GCS_SERVER][0].process.pid)
    head.suspend()
    try:
        yield
    finally:
        head.resume()


def workers_on(node: Any, title: str = "") -> list[psutil.Process]:
    """The processes of labelmill's workers on a node; with `.make` those that make a shard now."""
    return [process for process in raylet_of(node).children() if _title(process).startswith(f"ray::_RayWorker{title}")]


def kill_one_at_work(node: Any) -> bool:
    """Kill a worker that surely makes a shard; whether there was one."""
    for worker in workers_on(node, ".make")[:1]:
        worker.suspend()  # or its shard might end before the kill
        while worker.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        if _title(worker).startswith("ray::_RayWorker.make"):
            worker.kill()
            return True
        worker.resume()
    return False


def _title(process: psutil.Process) -> str:
    try:
        return "".join(process.cmdline()[:1])
    except psutil.Error:
        return ""
