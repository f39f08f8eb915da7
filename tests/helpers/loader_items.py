"""What processes of a loader make in its tests: a module that they can import."""

import os
import time
from collections.abc import Iterator
from itertools import count

import numpy as np

from labelmill.schemas.errors import OutputError


def numbers(worker: int, num_workers: int) -> Iterator[tuple[int, int]]:
    """(the number, the process) of 7 items in all."""
    return ((number, os.getpid()) for number in range(worker, 7, num_workers))


def large(worker: int, num_workers: int) -> Iterator[np.ndarray]:
    """More than a socket or a pipe holds, in memory that is not in one piece, too."""
    yield np.arange(3_000_000, dtype=np.int32)[::2]
    yield np.zeros((0, 4), np.uint8)


def damaged(worker: int, num_workers: int) -> Iterator[int]:
    yield 1
    raise OutputError("shards/a.tar: is cut")


def hanging(worker: int, num_workers: int) -> Iterator[int]:
    yield os.getpid()
    time.sleep(1000)


def endless(worker: int, num_workers: int) -> Iterator[int]:
    for _ in count():
        yield os.getpid()


def broken(worker: int, num_workers: int) -> Iterator[int]:
    yield 1
    raise KeyError("not foreseen")
