"""The lock as a run holds it: a thread renews it, and every step that matters asks first whether it still is held."""

import _thread
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType
from typing import Self

from labelmill.pipeline.nightly import lock
from labelmill.pipeline.nightly.latest import read_latest
from labelmill.pipeline.process.log import log
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import LockedError, LockExpiredError, OutputError
from labelmill.schemas.nightly import LockConfig

Clock = Callable[[], float]
"""Seconds since 1970."""


class Lease:
    """Use as a context, which lets the lock go at its end. Raises LockedError while another run has it."""

    def __init__(self, store: Store, config: LockConfig, clock: Clock) -> None:
        self._store, self._config, self._clock = store, config, clock
        self._stop = threading.Event()
        self._loss: LockedError | None = None

    def __enter__(self) -> Self:
        owner = f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(4)}"
        past = read_latest(self._store).generation
        self._held = lock.acquire(self._store, owner, self._clock(), self._config.ttl_s, past)
        # In a copy of this context, so that what it says names the night.
        self._thread = threading.Thread(target=copy_context().run, args=(self._beat,), name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            lock.release(self._store, self._held)
        except OutputError as problem:
            # What the run has done is done, whether or not the next one must wait for the lock to expire.
            log(f"the lock could not be released; it expires in {self._config.ttl_s:g} s: {problem}", level="warning")

    @property
    def generation(self) -> int:
        """The lock's number, which every write of latest.json carries."""
        return self._held.generation

    @property
    def is_lost(self) -> bool:
        """Whether the heartbeat found that the lock is not held any more."""
        return self._loss is not None

    def check(self) -> None:
        """Raises LockedError unless the lock is held, as far as this machine's clock can tell: LockExpiredError when
        it has run out."""
        if self._loss is None and self._has_expired():
            self._lose_to_time()
        if self._loss is not None:
            raise self._loss

    def confirm(self) -> None:
        """`check`, and that nobody else has taken the lock. Raises LockedError."""
        self.check()
        found, _ = lock.read_lock(self._store)
        if not lock.owns(found, self._held):
            self._lose(LockedError, f"{found.owner or 'another run'} has taken it")
            self.check()

    def _has_expired(self) -> bool:
        return self._clock() >= self._held.expires

    def _lose_to_time(self) -> None:
        self._lose(LockExpiredError, f"it was not renewed for {self._config.ttl_s:g} s (lock.ttl_s); run it again")

    def _lose(self, kind: type[LockedError], reason: str) -> None:
        self._loss = kind(f"{self._store.url}: this run has lost the lock: {reason}. Nothing more was changed")

    def _beat(self) -> None:
        while not self._stop.wait(self._config.heartbeat_s):
            try:
                held = lock.renew(self._store, self._held, self._clock(), self._config.ttl_s)
            except OutputError:
                continue  # an outage may pass in time
            if held is None:
                if self._has_expired():
                    self._lose_to_time()
                else:
                    self._lose(LockedError, "another run has taken it")
                # What follows would be in vain. Without a handler, as in other programs, nothing happens.
                _thread.interrupt_main(signal.SIGTERM)
                return
            self._held = held
