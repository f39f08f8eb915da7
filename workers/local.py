"""The local executor: one worker, in this process."""

from collections.abc import Iterable, Iterator

from pipeline.shard_publisher import repair_shard, tar_path
from pipeline.store import Store
from schemas.shard import ShardRecord, ShardTask
from workers.shard_worker import ShardWorker


def run_locally(worker: ShardWorker, tasks: Iterable[ShardTask], store: Store) -> Iterator[ShardRecord]:
    """Make the tasks one after the other. A shard that another driver has finished meanwhile is not made again."""
    for task in tasks:
        if store.exists(tar_path(task.name)):
            yield repair_shard(store, task.index, task.name)
        else:
            yield worker.make(task, attempt=1)
