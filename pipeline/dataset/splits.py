"""Which split each shard belongs to: a matter of the shards before it alone, so that growth never moves one."""

import hashlib
from collections.abc import Mapping, Sequence

from labelmill.schemas.config import DatasetConfig
from labelmill.schemas.errors import ConfigError

_MOST_TRIED = 1000


def assign_splits(num_shards: int, shares: Mapping[str, float], num_hashed: int = 0) -> list[str]:
    """The split of each shard, by index.

    Shard 0 goes to the split with the largest share and the next ones to splits that have none yet; every other one
    goes to the split that is furthest behind its share. So all splits exist as soon as there are as many shards, and
    none is ever more than about a shard off its share. num_hashed: so many of the first were assigned as earlier
    versions did, by a hash of the index.
    """
    wanted = {name: share for name, share in shares.items() if share > 0}
    counts = dict.fromkeys(wanted, 0)
    assigned = []
    for index in range(num_shards):
        behind = {name: share * (index + 1) - counts[name] for name, share in wanted.items()}
        if index and not all(counts.values()):
            behind = {name: value for name, value in behind.items() if not counts[name]}
        name = _hashed(index, shares) if index < num_hashed else max(behind, key=behind.__getitem__)
        counts[name] = counts.get(name, 0) + 1
        assigned.append(name)
    return assigned


def num_hashed_shards(assigned: Sequence[str], shares: Mapping[str, float]) -> int:
    """How many of the first shards an index, which lists the splits of all, has assigned by hash.

    0 unless nothing else explains it.
    """
    count = len(assigned)
    tried = (0, count) if count > _MOST_TRIED else (0, *range(count, 0, -1))
    return next((hashed for hashed in tried if list(assigned) == assign_splits(count, shares, hashed)), 0)


def check_splits(dataset: DatasetConfig) -> None:
    """Raises ConfigError where there are too few shards for every split to have one; a single shard is no split yet."""
    wanted = [name for name, share in dataset.splits.items() if share > 0]
    if 1 < dataset.num_shards < len(wanted):
        most = dataset.samples // len(wanted)
        raise ConfigError(
            f"dataset.splits: {', '.join(wanted)} are {len(wanted)} splits, but {dataset.samples} samples in shards of "
            f"{dataset.samples_per_shard} are {dataset.num_shards} shards, and a shard is in one split. "
            + (f"Set dataset.samples_per_shard to {most} or less, or" if most else "Set")
            + f" dataset.samples to {(len(wanted) - 1) * dataset.samples_per_shard + 1} or more, or name fewer splits"
        )


def empty_splits(dataset: DatasetConfig) -> list[str]:
    """Splits that were asked for and get no shard: all but one, where one shard is all there is."""
    assigned = set(assign_splits(dataset.num_shards, dataset.splits))
    return [name for name, share in dataset.splits.items() if share > 0 and name not in assigned]


def _hashed(index: int, shares: Mapping[str, float]) -> str:
    position = int.from_bytes(hashlib.sha256(f"shard {index}".encode()).digest()[:8], "big") / 2**64
    upper = 0.0
    for name, share in shares.items():
        upper += share
        if position < upper:
            return name
    return name  # the shares may sum to a hair less than 1
