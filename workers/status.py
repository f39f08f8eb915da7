"""How a run stands, seen from another shell: what its driver last said, and what the output holds."""

import time

from pydantic import BaseModel, ValidationError

from pipeline.manifest import MANIFEST_PATH, RUN_PATH
from pipeline.shard_publisher import TAR_PATH
from pipeline.store import Store
from schemas.errors import OutputError
from schemas.progress import RunState
from workers.progress import PROGRESS_PATH, state_line

# A driver writes every 10 s; one that has been silent so long is dead, frozen or cut off.
SILENT_SECONDS = 90.0


class Status(BaseModel):
    """`labelmill status --json`."""

    complete: bool
    """There is a manifest."""
    shards: int
    """Published ones."""
    silent_seconds: float | None
    """Since the driver last wrote; null when there is nothing from it."""
    run: RunState | None


def status(store: Store) -> Status:
    """Raises OutputError where the output is not labelmill's."""
    if not store.exists(RUN_PATH):
        raise OutputError(f"{store.url}: has no {RUN_PATH}: no run has started there")
    run = _run_state(store)
    return Status(
        complete=store.exists(MANIFEST_PATH),
        shards=sum(TAR_PATH.fullmatch(file.path) is not None for file in store.list("shards")),
        silent_seconds=None if run is None else round(max(0.0, time.time() - run.unix_time), 1),
        run=run,
    )


def status_lines(status: Status) -> list[str]:
    """The status for a person."""
    lines = [f"{status.shards} shards, {'complete' if status.complete else 'not complete'}"]
    if status.run is None or status.silent_seconds is None:
        return [*lines, "nothing from a driver yet"]
    run = status.run
    lines += [
        state_line(run),
        f"{run.state}, written {status.silent_seconds:.0f} s ago by process {run.process} on {run.host}",
    ]
    if run.state == "running" and status.silent_seconds > SILENT_SECONDS:
        lines.append("its driver has gone silent: it was killed, or is cut off; `labelmill generate` goes on from here")
    return [*lines, *(f"failed: {name}: {reason}" for name, reason in run.failures.items())]


def _run_state(store: Store) -> RunState | None:
    try:
        return RunState.model_validate_json(store.read(PROGRESS_PATH))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise OutputError(f"{store.url}/{PROGRESS_PATH}: is not what labelmill writes") from error
