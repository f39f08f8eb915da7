"""The local executor: one worker, in this process."""

from collections.abc import Iterable, Iterator

from pipeline.store import Store
from schemas.shard import ShardRecord, ShardTask
from workers.shard_worker import ShardWorker


def run_locally(worker: ShardWorker, tasks: Iterable[ShardTask], store: Store) -> Iterator[ShardRecord]:
    """Make the tasks one after the other. A shard that another driver has finished meanwhile is not made again."""
    for task in tasks:
        record_path = f"records/{task.index:06d}.json"
        if store.exists(record_path):
            yield ShardRecord.model_validate_json(store.read(record_path))
        else:
            yield worker.make(task, attempt=1)
