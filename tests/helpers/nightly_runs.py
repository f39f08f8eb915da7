"""Nights in processes of their own, which end or stop at a chosen write."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from helpers.tiny_run import tiny_run

from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.nightly.latest import read_latest
from labelmill.pipeline.nightly.snapshots import open_snapshot, state_of
from labelmill.pipeline.process.interruption import Interrupted, interruptible
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import EXIT_RESUMABLE, LabelmillError
from labelmill.schemas.nightly import NightlyConfig
from labelmill.schemas.yaml_file import validate
from labelmill.workers.progress import PROGRESS_PATH

# Forked from a process that has imported everything and started no thread.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["labelmill.workers.nightly", "labelmill.pipeline.labelers.style_mixing.labeler"])

WRITES = ("create", "replace", "compare_and_swap", "delete")

ANYTHING_PASSES: dict[str, None] = dict.fromkeys(
    (
        "missing_samples",
        "missing_files",
        "class_psi",
        "class_js",
        "foreground_psi",
        "empty_masks",
        "confidence_drop",
        "brightness_shift",
        "contrast_change",
        "near_duplicates",
        "near_duplicates_rise",
        "image_bytes_change",
        "throughput_drop",
    )
)


def nightly_config(checkpoint: Path, root: Path | str, **changes: Any) -> NightlyConfig:
    """A nightly file's values: 12 samples in 2 shards. Keyword arguments replace sections; `run` adds to its own."""
    run: dict[str, Any] = {**tiny_run(checkpoint, "ignored"), "dataset": {"samples": 12, "samples_per_shard": 6}}
    for key, section in changes.pop("run", {}).items():
        run[key] = {**run.get(key, {}), **section}
    values = {"run": run, "root": str(root), "lock": {"ttl_s": 60, "heartbeat_s": 20}, **changes}
    return validate(values, "nightly.yaml", NightlyConfig)


@dataclass(frozen=True)
class Trap:
    """Where a process sends itself a signal."""

    number: int
    """Before the so manieth write that fits, counted from 0; after it if `after`. progress.json does not count."""
    path: str = ""
    """A regular expression, found in `operation path`, the path being relative to the nightly root."""
    after: bool = False
    signal: int = signal.SIGKILL


def start_night(
    config: NightlyConfig,
    night: str,
    now: float,
    *,
    trap: Trap | None = None,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """A night in a process, which ends with the status that the command would end with.

    `log` gets a line `operation path` for each write, before it.
    """
    process = _context.Process(
        target=_run, args=(config.model_dump_json(), night, now, trap, log, dict(environment or {}))
    )
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """The exit status, negative for a signal."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("a night has not ended")
    return process.exitcode


def wait_until_stopped(process: BaseProcess) -> None:
    """Wait until a process has stopped itself."""
    assert process.pid is not None
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert process.is_alive(), "a night ended instead of stopping"
        time.sleep(0.01)


def _run(config: str, night: str, now: float, trap: Trap | None, log: Path | None, env: dict[str, str]) -> None:
    import torch

    from labelmill.workers.nightly import run_night

    torch.set_num_threads(1)
    os.environ.update(env)
    values = NightlyConfig.model_validate(json.loads(config))
    _spring(values.root, trap, log)
    try:
        with interruptible():
            print(run_night(values, date.fromisoformat(night), lambda: now))
    except LabelmillError as error:
        print(error)
        os._exit(error.exit_code)
    except Interrupted:
        os._exit(EXIT_RESUMABLE)
    os._exit(0)


def _spring(root: str, trap: Trap | None, log: Path | None) -> None:
    """Have every write of this process looked at."""
    count = 0

    def watched(name: str) -> Any:
        write = getattr(Store, name)

        def wrapper(store: Store, path: str, *arguments: Any) -> Any:
            nonlocal count
            place = f"{store.url}/{path}".removeprefix(root.rstrip("/")).lstrip("/")
            if path == PROGRESS_PATH:  # written by the clock
                return write(store, path, *arguments)
            line = f"{name} {place}"
            if log is not None:
                with log.open("a") as file:
                    file.write(line + "\n")
            fits = trap is not None and re.search(trap.path, line) is not None
            number, count = count, count + fits
            springs = trap is not None and fits and number == trap.number
            if trap is not None and springs and not trap.after:
                os.kill(os.getpid(), trap.signal)
            result = write(store, path, *arguments)
            if trap is not None and springs and trap.after:
                os.kill(os.getpid(), trap.signal)
            return result

        return wrapper

    for name in WRITES:
        setattr(Store, name, watched(name))


def check_live(root: Store, *, deep: bool = False) -> str | None:
    """What must always hold: the live snapshot, if any, is whole and passed the gates. Returns its name."""
    live = read_latest(root).snapshot
    if live is not None:
        snapshot = open_snapshot(root, live)
        assert state_of(snapshot) == "passed"
        assert verify(snapshot, deep=deep).problems == ()
    return live
