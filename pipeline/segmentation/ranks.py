"""Data-parallel ranks, as `torchrun` starts them. Without it there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

# Before a group is there: DistributedDataParallel imports it, and defaults of its functions would hold that group.
import torch.distributed.nn.functional
from torch import distributed

from labelmill.pipeline.process.device import choose_device

# Rank 0 scores and saves while the others wait for it.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device
    words: distributed.ProcessGroup | None = None
    """What ranks tell each other from CPU to CPU goes through this group; None: through the one that gradients take."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank. Every rank asks at the same point. No GPU is waited for."""
        if self.count == 1:
            return mine
        flag = torch.tensor(int(mine))
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.words)
        return bool(flag.item())

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Over all ranks. Every rank asks at the same point."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun's environment tells of: NCCL between GPUs, gloo between CPUs.

    device: auto, cpu, cuda or cuda:N. Raises ConfigError for a GPU that is not there.

    Nothing that holds the group (DistributedDataParallel does) may outlive the context: the group's threads end when
    the last one lets go, and one that still runs as the interpreter ends aborts the process.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = _choose(device, int(os.environ.get("LOCAL_RANK", "0")) if count > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if count == 1:
        yield Ranks(0, 1, chosen)
        return
    on_gpus = chosen.type == "cuda"
    distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=_TIMEOUT)
    try:
        # NCCL knows GPUs alone, and an answer from there would wait for all that the GPU has yet to do.
        yield Ranks(rank, count, chosen, distributed.new_group(backend="gloo", timeout=_TIMEOUT) if on_gpus else None)
    finally:
        distributed.destroy_process_group()


def _choose(device: str, local_rank: int | None) -> torch.device:
    """A GPU by its number; a rank's own one, whatever number `device` gives."""
    kind = device if local_rank is None else device.partition(":")[0]
    chosen = choose_device(kind)
    if chosen.type == "cpu":
        return chosen
    return choose_device(f"cuda:{(chosen.index or 0) if local_rank is None else local_rank}")
