"""How a run stands, seen from another shell: what its driver last said, and what the output holds."""

import time
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from labelmill.pipeline.dataset.manifest import INDEX_PATH, MANIFEST_PATH, RUN_PATH, read_index
from labelmill.pipeline.nightly.latest import LATEST_PATH
from labelmill.pipeline.nightly.snapshots import SNAPSHOTS
from labelmill.pipeline.shards.publisher import TAR_PATH
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.progress import RunState
from labelmill.workers.progress import PROGRESS_PATH, state_line

# A driver writes every 10 s; one that has been silent so long is dead, frozen or cut off.
SILENT_SECONDS = 90.0
_MOST_NAMED = 5


class Status(BaseModel):
    """`labelmill status --json`."""

    complete: bool
    """There is a manifest, and every shard of the index is there in its size."""
    shards: int
    """Published ones."""
    damaged: tuple[str, ...]
    """Of a dataset that was complete: what is missing, or of another size than the index says."""
    silent_seconds: float | None
    """Since the driver last wrote; null when there is nothing from it."""
    run: RunState | None


def status(store: Store) -> Status:
    """Raises OutputError where the output is not labelmill's, or is a nightly root."""
    if not store.exists(RUN_PATH):
        if store.exists(LATEST_PATH) or store.folders(SNAPSHOTS):
            raise OutputError(
                f"{store.url}: is a nightly root, not an output; `labelmill nightly status {store.url}` shows it, and "
                f"`labelmill status` one of its snapshots"
            )
        raise OutputError(f"{store.url}: has no {RUN_PATH}: no run has started there")
    run = _run_state(store)
    sizes = {file.path: file.num_bytes for file in store.list("shards") if TAR_PATH.fullmatch(file.path)}
    was_complete = store.exists(MANIFEST_PATH)
    damaged = _damaged(store, sizes) if was_complete else ()
    return Status(
        complete=was_complete and not damaged,
        shards=len(sizes),
        damaged=damaged,
        silent_seconds=None if run is None else round(max(0.0, time.time() - run.unix_time), 1),
        run=run,
    )


def status_lines(status: Status) -> list[str]:
    """The status for a person."""
    lines = [f"{status.shards} shards, {'complete' if status.complete else 'not complete'}"]
    if status.damaged:
        more = len(status.damaged) - _MOST_NAMED
        names = ", ".join(status.damaged[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        lines.append(
            f"the dataset was complete, but these files are now missing or of another size: {names}; "
            f"`labelmill verify` shows what to do"
        )
    if status.run is None or status.silent_seconds is None:
        return [*lines, "no driver has reported yet"]
    run = status.run
    lines += [
        state_line(run),
        f"{run.state}, written {status.silent_seconds:.0f} s ago by process {run.process} on {run.host}",
    ]
    if run.state == "running" and status.silent_seconds > SILENT_SECONDS:
        lines.append("the driver is silent: it was killed or is cut off; run `labelmill generate` again to resume")
    return [*lines, *(f"failed: {name}: {reason}" for name, reason in run.failures.items())]


def _damaged(store: Store, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Files of a complete dataset that are not as its index says, or the index itself."""
    if not store.exists(INDEX_PATH):
        return (INDEX_PATH,)
    return tuple(shard.url for shard in read_index(store).shardlist if sizes.get(shard.url) != shard.filesize)


def _run_state(store: Store) -> RunState | None:
    try:
        return RunState.model_validate_json(store.read(PROGRESS_PATH))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise OutputError(f"{store.url}/{PROGRESS_PATH}: is not what labelmill writes") from error
