"""Workers on a Ray cluster: one actor a worker, each with GPUs and CPU cores of its own.

Actors are plain (max_restarts=0, max_task_retries=0): Ray restarts and retries nothing, because it cannot know which
shard killed a worker; the supervisor does. Pixels never enter Ray's object store: a ShardTask goes out, a ShardRecord
comes back.
"""

import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
import torch
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    RayError,
    RayTaskError,
)

from labelmill.pipeline.generator.checkpoints.source import located_reference
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.process.interruption import Interrupted, interruptible, postponed
from labelmill.pipeline.process.last_resort import last_resort
from labelmill.pipeline.process.log import log, log_context
from labelmill.pipeline.process.settings import PROCESS_SETTINGS
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import ExecutionConfig, RunConfig
from labelmill.schemas.errors import EXIT_RESUMABLE, ConfigError, LabelmillError, StalledError
from labelmill.schemas.progress import RunState
from labelmill.schemas.secrets import plain_address
from labelmill.schemas.section import LocatedSection
from labelmill.schemas.shard import ShardRecord, ShardTask
from labelmill.workers.metrics import RunMetrics
from labelmill.workers.prepare import PreparedRun, open_prepared_worker, prepare, read_labeler
from labelmill.workers.shard_worker import ShardWorker
from labelmill.workers.supervisor import (
    DEATHS_PER_SHARD,
    SHARDS_IN_FLIGHT,
    Event,
    Failed,
    Limits,
    Loaded,
    Lost,
    Made,
    Placed,
)
from labelmill.workers.watchdog import Watchdog

# Longest silences of Ray, in seconds: it kills a driver itself when the cluster's head is gone for 60.
_CALL_SECONDS, _INIT_SECONDS, _SHUTDOWN_SECONDS = 45.0, 55.0, 20.0
# Longer than the watchdog's, which forgives a driver that was frozen and has better last words.
_LAST_RESORT_SECONDS = 90
_LOOK_SECONDS = 2.0
# Cores of a worker, unless the configuration names a number: what encodes 1,000 images of 1024 px per second at most.
_FEWEST_CPUS, _MOST_CPUS = 2, 16
# Between lines that say that no node can take a worker.
_NO_ROOM_SECONDS = 60.0
# What Ray says of an actor whose machine went down, in ActorDiedError.
_NODE_DIED = "node has died"


@dataclass(frozen=True)
class _Needs:
    """What a worker asks of its node."""

    gpus: float
    cpus: int
    labels: dict[str, str]

    def options(self) -> dict[str, Any]:
        """For actors and tasks alike."""
        return {
            "num_gpus": self.gpus,
            "num_cpus": self.cpus,
            "label_selector": self.labels,
            "runtime_env": {"env_vars": PROCESS_SETTINGS},
        }

    def fit_into(self, node: dict[str, Any]) -> int:
        """How many workers a node of Ray's list has room for."""
        if not node["Alive"] or any(node["Labels"].get(key) != value for key, value in self.labels.items()):
            return 0
        resources = node["Resources"]
        by_cpu = int(resources.get("CPU", 0) / self.cpus)
        if not self.gpus:
            return by_cpu
        gpus = resources.get("GPU", 0)
        by_gpu = int(gpus) * int(1 / self.gpus) if self.gpus < 1 else int(gpus / self.gpus)
        return min(by_cpu, by_gpu)


class _Room:
    """Watches whether the cluster has a node for a worker, before there is any."""

    def __init__(self, needs: _Needs, patience: float) -> None:
        self._needs, self._patience = needs, patience
        self._since: float | None = None
        self._said = -math.inf

    def look(self, nodes: list[dict[str, Any]], now: float) -> None:
        """Says once a minute that there is none. Raises StalledError when there has been none for `patience` s."""
        if any(self._needs.fit_into(node) for node in nodes):
            self._since = None
            return
        self._since = now if self._since is None else self._since
        wanted = f"{self._needs.gpus:g} GPUs, {self._needs.cpus} CPU cores and the labels {self._needs.labels}"
        if now - self._since > self._patience:
            raise StalledError(
                f"for {self._patience:g} s (2 execution.start_timeout_s) no node of the cluster has had {wanted}, "
                "which execution.gpus_per_worker, cpus_per_worker and node_labels ask for. Add one, or ask for less"
            )
        if now - self._said >= _NO_ROOM_SECONDS:
            self._said = now
            log(f"waiting for a node with {wanted}", level="warning")


def _prepare(config: RunConfig) -> PreparedRun:
    sampler, checkpoint = open_sampler(config)
    return prepare(config, sampler, checkpoint).run


class _RayWorker:
    """A ShardWorker in its own process. Its calls run in threads; one thread alone talks to the device."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._worker: ShardWorker | None = None

    def place(self) -> str:
        """Where the worker is."""
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return f"{socket.gethostname()}, process {os.getpid()}" + (f", GPU {gpus}" if gpus else "")

    def load(self, run: PreparedRun) -> None:
        """Load generator and labeler."""
        self._worker = self._device.submit(open_prepared_worker, self._config, run).result()

    def make(self, task: ShardTask, attempt: int) -> ShardRecord:
        """Make and publish a shard; the next one is synthesised meanwhile."""
        assert self._worker is not None
        drawn = self._device.submit(self._worker.synthesise, task).result()
        with log_context(self._config.name):
            return self._worker.publish(task, drawn, attempt)


class RayCluster:
    """The cluster that RAY_ADDRESS names, or that runs on this machine, or one started for this run."""

    def __init__(self, config: RunConfig) -> None:
        self._watchdog = Watchdog()
        with (
            postponed(self._interrupted_at_start),
            self._watchdog.limit(
                _INIT_SECONDS,
                exit_code=EXIT_RESUMABLE,
                last_words=f"Ray did not start or answer in {_INIT_SECONDS:g} s; look at `ray status`, then run again",
            ),
            last_resort(_LAST_RESORT_SECONDS, exit_code=EXIT_RESUMABLE),
        ):
            _connect()
        # Ray's C++ has put a handler of SIGTERM over Python's.
        self._signals = interruptible()
        self._signals.__enter__()
        try:
            self._set_up(config)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def _set_up(self, config: RunConfig) -> None:
        with self._expecting_an_answer():
            self._needs = _needs(config.execution)
            num_nodes = len(ray.nodes())
        self._checkpoint_reference = plain_address(config.generator.checkpoint)
        self._config = _for_workers(config, self._needs)
        self._actor_class: Any = ray.remote(_RayWorker).options(
            max_restarts=0, max_task_retries=0, max_concurrency=SHARDS_IN_FLIGHT, **self._needs.options()
        )
        self._actors: dict[int, Any] = {}
        self._awaited: dict[ray.ObjectRef, tuple[int, ShardTask | None]] = {}
        self._loading: set[ray.ObjectRef] = set()
        self._metrics = RunMetrics(config.name)
        gpus = f"{self._needs.gpus:g} GPUs" if self._needs.gpus else "no GPU"
        log(
            f"Ray: {num_nodes} nodes with room for {self.limits().workers} workers of {gpus} and "
            f"{self._needs.cpus} CPU cores each"
        )

    def prepare(self) -> PreparedRun:
        """Claim the output and fit the labeler, in a task on a worker. Raises ConfigError unless the driver sees it."""
        for attempt in range(DEATHS_PER_SHARD):
            try:
                self._run = self._prepare_once()
            except RayTaskError as error:
                raise _cause(error) from error
            except RayError as error:
                if attempt == DEATHS_PER_SHARD - 1:
                    raise StalledError(f"{DEATHS_PER_SHARD} workers died while preparing the run: {error}") from error
                log(f"a worker died while preparing the run, another one tries: {_first_line(error)}", level="warning")
            else:
                break
        read_labeler(self._config, self._run)
        # As the user wrote it, so that a dataset's description does not depend on the executor.
        checkpoint = self._run.checkpoint.model_copy(update={"reference": self._checkpoint_reference})
        self._run = replace(self._run, checkpoint=checkpoint)
        return self._run

    def _prepare_once(self) -> PreparedRun:
        execution = self._config.execution
        seconds = execution.shard_timeout_s + execution.start_timeout_s
        task: Any = ray.remote(_prepare).options(max_retries=0, **self._needs.options())
        with self._expecting_an_answer():
            ref = task.remote(self._config)
        room = _Room(self._needs, patience=2 * execution.start_timeout_s)
        for _ in range(max(1, round(seconds / _LOOK_SECONDS))):
            with self._expecting_an_answer():
                if ray.wait([ref], timeout=_LOOK_SECONDS)[0]:
                    prepared: PreparedRun = ray.get(ref)
                    return prepared
                nodes = ray.nodes()  # without a head, waiting would never end
            room.look(nodes, time.monotonic())
        with self._expecting_an_answer():
            ray.cancel(ref, force=True)
        raise StalledError(
            f"no worker has prepared the run within {seconds:g} s (execution.start_timeout_s and shard_timeout_s); "
            "does the cluster have a node with what a worker asks for?"
        )

    def limits(self) -> Limits:
        """As many workers as the nodes that live have room for, unless the configuration names a number."""
        execution = self._config.execution
        with self._expecting_an_answer():
            # Asked for in any case: it shows whether the cluster's head still lives.
            room = sum(self._needs.fit_into(node) for node in ray.nodes())
        workers = max(1, room) if execution.workers == "auto" else execution.workers
        return Limits(workers, execution.shard_timeout_s, execution.start_timeout_s)

    def start(self, worker: int) -> None:
        with self._expecting_an_answer():
            actor = self._actor_class.remote(self._config)
            self._actors[worker] = actor
            self._awaited[actor.place.remote()] = worker, None

    def load(self, worker: int) -> None:
        with self._expecting_an_answer():
            ref: ray.ObjectRef = self._actors[worker].load.remote(self._run)
        self._loading.add(ref)
        self._awaited[ref] = worker, None

    def make(self, worker: int, task: ShardTask, attempt: int) -> None:
        with self._expecting_an_answer():
            self._awaited[self._actors[worker].make.remote(task, attempt)] = worker, task

    def kill(self, worker: int) -> None:
        with self._expecting_an_answer():
            ray.kill(self._actors.pop(worker))
        self._awaited = {ref: wait for ref, wait in self._awaited.items() if wait[0] != worker}
        self._loading &= self._awaited.keys()

    def show(self, state: RunState) -> None:
        self._metrics.show(state)

    def wait(self, seconds: float) -> list[Event]:
        """What came back within `seconds`; what was made stands before who was lost."""
        if not self._awaited:
            time.sleep(seconds)
            return []
        with self._expecting_an_answer():
            ready, rest = ray.wait(list(self._awaited), num_returns=1, timeout=seconds)
            if ready and rest:
                more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
                ready += more
            events = [self._event(ref) for ref in ready]
        # A worker dies once, however many of its calls it takes along.
        lost = {event.worker: event for event in reversed(events) if isinstance(event, Lost)}
        for worker in lost.keys() & self._actors.keys():
            self.kill(worker)
        return [*(event for event in events if not isinstance(event, Lost)), *lost.values()]

    def _event(self, ref: ray.ObjectRef) -> Event:
        worker, task = self._awaited.pop(ref)
        loading = ref in self._loading
        self._loading.discard(ref)
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            cause = _cause(error)
            if task is not None and not _ruins_its_process(cause):
                return Failed(worker, task.index, cause)
            return Lost(worker, f"{type(cause).__name__}: {cause}", blame=True, error=cause)
        except RayError as error:
            return Lost(worker, _first_line(error), blame=_may_be_the_shards_fault(error))
        if task is not None:
            return Made(worker, result)
        if loading:
            return Loaded(worker)
        log(f"worker {worker}: {result}", worker=worker)
        return Placed(worker)

    def _interrupted_at_start(self) -> None:
        # Ray's handler has set it off, to abort the process in three seconds.
        signal.alarm(0)
        self._interrupted()

    def _interrupted(self) -> None:
        self._watchdog.hurry(
            exit_code=EXIT_RESUMABLE,
            last_words="interrupted, and Ray does not answer; rerun the same command to resume",
        )

    @contextmanager
    def _expecting_an_answer(self) -> Iterator[None]:
        """For every call of Ray, which does not survive an exception out of a signal's handler."""
        with (
            postponed(self._interrupted),
            self._watchdog.limit(
                _CALL_SECONDS,
                exit_code=EXIT_RESUMABLE,
                last_words=f"Ray has not answered for {_CALL_SECONDS:g} s: its head or this machine's node is gone or "
                "frozen. Finished work is kept; rerun the same command to resume",
            ),
        ):
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = f"Ray did not shut down in {_SHUTDOWN_SECONDS:g} s and was left running"
        words = f"{left}; rerun the same command to resume" if error is None else f"{error}\nlabelmill: {left}"
        # To go on beside it is no way out: Ray ends a process whose cluster has been silent for a minute.
        with (
            postponed(),
            self._watchdog.limit(_SHUTDOWN_SECONDS, exit_code=_exit_code(error), last_words=words),
        ):
            _disconnect()
        self._signals.__exit__(None, None, None)


def _connect() -> None:
    try:
        with _sole_handlers_of_signals():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises all kinds, plain ones too
        address = os.environ.get("RAY_ADDRESS")
        if address is not None and isinstance(error, ConnectionError):
            raise ConfigError(
                f"execution.executor: ray, but {address} (RAY_ADDRESS) cannot be reached: {_first_line(error)}. Start "
                "it, or correct RAY_ADDRESS (and set RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH "
                "where it asks for one)"
            ) from error
        if str(error).startswith("Version mismatch"):
            raise ConfigError(f"execution.executor: ray, but this is another Ray or Python. {error}") from error
        raise StalledError(f"Ray did not start: {_first_line(error)} Look at `ray status`, then run again") from error


@contextmanager
def _sole_handlers_of_signals() -> Iterator[None]:
    """Those that Ray would install within it end the process from the middle of Ray's start, half connected."""
    install = signal.signal
    signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = install


def _disconnect() -> None:
    """ray.shutdown sets SIGTERM back to killing the process; beside this thread, which undoes that at once."""
    shutdown = threading.Thread(target=ray.shutdown)
    shutdown.start()
    while shutdown.is_alive():
        shutdown.join(0.05)
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _needs(execution: ExecutionConfig) -> _Needs:
    gpus, cpus, labels = execution.gpus_per_worker, execution.cpus_per_worker, execution.node_labels
    nodes = ray.nodes()
    if gpus == "auto":
        has_gpus = any(node["Alive"] and node["Resources"].get("GPU", 0) > 0 for node in nodes)
        gpus = 1.0 if execution.device != "cpu" and (has_gpus or execution.device == "cuda") else 0.0
    if cpus == "auto":
        cpus = _cpus_beside(gpus, labels, nodes) if gpus else _FEWEST_CPUS
    return _Needs(gpus, cpus, labels)


def _cpus_beside(gpus: float, labels: dict[str, str], nodes: list[dict[str, Any]]) -> int:
    """Cores for each worker such that every node there is takes as many workers as its GPUs allow."""
    one_core = _Needs(gpus, 1, labels)
    shares = [
        int(node["Resources"].get("CPU", 0) * gpus / node["Resources"]["GPU"])
        for node in nodes
        if one_core.fit_into(node)
    ]
    return max(1, min(*shares, _MOST_CPUS)) if shares else _FEWEST_CPUS


def _for_workers(config: RunConfig, needs: _Needs) -> RunConfig:
    """The configuration as workers need it, who stand in other folders than the driver.

    Raises ConfigError for an output in the copy of a job's working directory, which Ray deletes when it likes.
    """
    output, generator, labeler, quality = config.output, config.generator, config.labeler, config.quality
    instances = config.instances
    folder = Store.open(output).folder
    if ray.get_runtime_context().runtime_env.get("working_dir"):
        # Each worker stands in a copy of the same folder.
        if folder is not None and folder.is_relative_to(Path.cwd()):
            raise ConfigError(
                f"output: {output} lies in the job's copy of the working directory, which Ray deletes. "
                "Use a bucket (s3://, gs://, az://) or the absolute path of a shared file system"
            )
    else:
        # Of the driver's home folder, too.
        checkpoint = located_reference(generator.checkpoint, generator.folder.absolute())
        generator = generator.model_copy(update={"checkpoint": checkpoint})
        labeler = labeler.absolute() if isinstance(labeler, LocatedSection) else labeler
        instances = instances and instances.absolute()
        promise = quality.promise and quality.promise.absolute()
        quality = quality.model_copy(update={"promise": promise})
    # With a GPU of its own a worker must use it, and without one must not use those it happens to see.
    device = {"device": "cuda" if needs.gpus else "cpu", "gpus_per_worker": needs.gpus, "cpus_per_worker": needs.cpus}
    return config.model_copy(
        update={
            "output": output if folder is None else str(folder),
            "generator": generator,
            "labeler": labeler,
            "instances": instances,
            "quality": quality,
            "execution": config.execution.model_copy(update=device),
        }
    )


def _cause(error: RayTaskError) -> Exception:
    """What the worker raised, where it could be sent, else Ray's account of it."""
    return error.cause if isinstance(error.cause, Exception) else error


def _ruins_its_process(error: Exception) -> bool:
    """Whether a worker is better replaced: memory is short, or CUDA's context is broken for good."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)) or "CUDA" in str(error)


def _may_be_the_shards_fault(error: RayError) -> bool:
    """Not so for a lost or preempted node, or a connection that broke."""
    if isinstance(error, ActorUnavailableError):
        return False
    return not (isinstance(error, ActorDiedError) and (error.preempted or _NODE_DIED in str(error)))


def _first_line(error: BaseException) -> str:
    """The line of Ray's account that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("The actor is dead", "The actor died because", "Worker"))]
    return (telling or lines or [type(error).__name__])[0]


def _exit_code(error: BaseException | None) -> int:
    """What the process would end with. Without an error that is not known yet: a night has still to publish."""
    if isinstance(error, LabelmillError):
        return error.exit_code
    return EXIT_RESUMABLE if error is None or isinstance(error, Interrupted) else 1
