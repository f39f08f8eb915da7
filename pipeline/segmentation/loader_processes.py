"""Processes that make items ahead of a loop, in order, without a way to leave it waiting for ever.

Items cross sockets. PyTorch's DataLoader sends them through /dev/shm, which containers keep at 64 MB: where
it is full, batches vanish without an error.
"""

import math
import pickle
import signal
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import cycle
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from typing import TypeVar

from labelmill.schemas.errors import LabelmillError, StalledError

Item = TypeVar("Item")
Make = Callable[[int, int], Iterable[Item]]
"""(number of a process, how many there are) to the items that it makes. Picklable."""

_POLL_SECONDS = 0.5
# A stop that is asked for while an item is on its way lets it arrive first: other ranks may count on it.
_STOP_GRACE_SECONDS = 5.0
_END_GRACE_SECONDS = 5.0
_COUNT = struct.Struct("!Q")


class _StopWaitingError(Exception):
    """A stop was asked for, and the next item does not come."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for an item."""

    timeout_seconds: float
    """Longer than this is an error."""
    is_stop_due: Callable[[], bool] = lambda: False
    """Once it is true, waiting ends within seconds, and with it the items."""


FOREVER = Patience(timeout_seconds=math.inf)


def items_of_processes(make: Make[Item], num_processes: int, patience: Patience) -> Generator[Item, None, None]:
    """The first item of each process in turn, then the second ones, until the first that has none left.

    Close it to end the processes. Raises what LabelmillError a process raises, and StalledError for one that dies or
    gives nothing in time.
    """
    workers: list[_Worker] = []
    try:
        for number in range(num_processes):
            workers.append(_start(make, number, num_processes))
        for worker in cycle(workers):
            message = worker.receive(patience)
            if message is None:
                return
            if isinstance(message, LabelmillError):
                raise message
            yield message  # type: ignore[misc]
    except _StopWaitingError:
        return
    finally:
        for worker in workers:
            worker.end()


@dataclass(frozen=True)
class _Worker:
    """A process, as the one that started it sees it."""

    number: int
    process: SpawnProcess
    connection: socket.socket

    def receive(self, patience: Patience) -> object:
        """What it sends next."""
        started = time.monotonic()

        def check() -> None:
            waited = time.monotonic() - started
            if waited > _STOP_GRACE_SECONDS and patience.is_stop_due():
                raise _StopWaitingError
            if waited > patience.timeout_seconds:
                raise StalledError(
                    f"loader_timeout_seconds: nothing for {patience.timeout_seconds:g} s from loader process "
                    f"{self.number} (process id {self.process.pid}), which is alive. Does the dataset's storage "
                    f"answer? Rerun the same command to resume"
                )

        try:
            return _receive(self.connection, check)
        except (EOFError, ConnectionError) as error:
            raise StalledError(self._death()) from error

    def _death(self) -> str:
        self.process.join(_END_GRACE_SECONDS)
        code = self.process.exitcode
        name = f"loader process {self.number} (process id {self.process.pid})"
        if code is not None and code < 0:
            return (
                f"workers: {name} was killed by {signal.Signals(-code).name}. If memory ran out, set fewer `workers` "
                f"or a smaller `shuffle_shards`; rerun the same command to resume"
            )
        return f"workers: {name} ended with status {code}; its output is above. Rerun the same command to resume"

    def end(self) -> None:
        """Kill it: it holds nothing that anyone needs."""
        self.connection.close()
        self.process.kill()
        self.process.join(_END_GRACE_SECONDS)


def _start(make: Make[Item], number: int, num_processes: int) -> _Worker:
    """A process that is not forked: a bucket's client, whose threads a fork leaves behind, would hang in it."""
    ours, theirs = socket.socketpair()
    ours.settimeout(_POLL_SECONDS)
    process = get_context("spawn").Process(target=_work, args=(theirs, make, number, num_processes), daemon=True)
    process.start()
    theirs.close()
    return _Worker(number, process, ours)


def _work(connection: socket.socket, make: Make[object], number: int, num_processes: int) -> None:
    """What a process does: make an item, send it, and wait until it is taken."""
    # Signals that reach a whole process group are the training's to answer.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    try:
        try:
            for item in make(number, num_processes):
                _send(connection, item)
        except LabelmillError as error:
            _send(connection, error)
        _send(connection, None)
    except ConnectionError:  # the training has ended
        return


def _send(connection: socket.socket, message: object) -> None:
    """Arrays are sent from where they lie, uncopied (pickle protocol 5)."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    frames = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    connection.sendall(b"".join(_COUNT.pack(count) for count in (len(frames), *(len(frame) for frame in frames))))
    for frame in frames:
        connection.sendall(frame)


def _receive(connection: socket.socket, check: Callable[[], None]) -> object:
    """The next message. check: called again and again while nothing comes; raises to end the wait."""
    (num_frames,) = _COUNT.unpack(_exactly(_COUNT.size, connection, check))
    lengths = struct.unpack(f"!{num_frames}Q", _exactly(num_frames * _COUNT.size, connection, check))
    head, *buffers = [_exactly(length, connection, check) for length in lengths]
    return pickle.loads(head, buffers=buffers)


def _exactly(num_bytes: int, connection: socket.socket, check: Callable[[], None]) -> bytearray:
    """Raises EOFError where the other side has ended."""
    content = bytearray(num_bytes)
    rest = memoryview(content)
    while rest:
        try:
            count = connection.recv_into(rest)
        except TimeoutError:
            check()
            continue
        if not count:
            raise EOFError
        rest = rest[count:]
    return content
