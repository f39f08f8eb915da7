"""What tests of runs on Ray have in common."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from labelmill.pipeline.store.store import Store
from labelmill.schemas.progress import RunState
from labelmill.workers.progress import PROGRESS_PATH

RAY = {"executor": "ray", "cpus_per_worker": 1, "device": "cpu"}
"""`execution` for nodes of few cores, whose GPUs are none."""


@dataclass(frozen=True)
class NamedWorker:
    """A worker as the driver names it when it is there."""

    number: int
    pid: int
    gpus: str | None
    """Its CUDA_VISIBLE_DEVICES, if any."""


def workers_in(text: str) -> list[NamedWorker]:
    """The workers that a driver has named in what it said."""
    found = re.findall(r"\bworker (\d+): \S+, process (\d+)(?:, GPU (\S+))?$", text, flags=re.MULTILINE)
    return [NamedWorker(int(number), int(pid), gpus or None) for number, pid, gpus in found]


def shards_of(output: str) -> dict[str, bytes]:
    """Everything under shards/ by path: what must be the same however it was made."""
    store = Store.open(output)
    return {file.path: store.read(file.path) for file in store.list("shards")}


def num_tars(output: str) -> int:
    """Shards published so far."""
    return sum(file.path.endswith(".tar") for file in Store.open(output).list("shards"))


def state_of(output: str) -> RunState:
    """What the driver last said of itself."""
    return RunState.model_validate_json(Store.open(output).read(PROGRESS_PATH))


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Does something in a thread while the body runs, and raises what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]
