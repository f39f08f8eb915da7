"""Which samples make up which training batch: a pure function of a seed, so that any rank, any worker and any resumed
run agree without a word.

Each epoch puts the shards in a new order, shuffles the samples of a few neighbouring shards together, and cuts the
whole sequence into as many equal parts as there are ranks, whatever the shards hold. Handing out whole shards
instead, as webdataset's node and worker splitters do, gives ranks of unequal length, and the longest one waits for
the others for ever. A rank's part goes to its workers in sections of neighbours, so that each shard is read by few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ORDER_PURPOSE = 1


@dataclass(frozen=True)
class SampleIndex:
    """A sample, by its shard's number and its own within the shard."""

    shard: int
    sample: int


class EpochOrder:
    """Batches of an endless stream of epochs, for one rank.

    Every epoch has `batches_per_epoch` full batches on every rank. All ranks together see each sample once an
    epoch, and the first samples of its order again to fill the last batches: fewer than ranks * batch_size.
    """

    def __init__(
        self,
        counts: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        shuffle_shards: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 1,
    ) -> None:
        """counts: samples a shard. num_workers: processes that share this rank's batches, at least 1."""
        self._counts, self._seed, self._shuffle_shards = tuple(counts), seed, shuffle_shards
        self._batch_size, self._rank, self._num_workers = batch_size, rank, num_workers
        num_samples = sum(self._counts)
        if num_samples < 1:
            raise ValueError("an epoch needs at least one sample")
        self.batches_per_epoch = -(-num_samples // (num_ranks * batch_size))
        self._epoch, self._order = -1, np.zeros((0, 2), np.int64)

    def batch(self, number: int) -> list[SampleIndex]:
        """The samples of batch `number`, 0 or more, of this rank's stream."""
        epoch, _ = divmod(number, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        batch = self._rank * self.batches_per_epoch + self._section_position(number)
        positions = np.arange(batch * self._batch_size, (batch + 1) * self._batch_size)
        return [SampleIndex(shard, sample) for shard, sample in self._order[positions % len(self._order)].tolist()]

    def _section_position(self, number: int) -> int:
        """Where in its epoch and rank a batch lies. Worker `number % num_workers` makes it, and a worker's batches
        of an epoch are neighbours there."""
        first = number - number % self.batches_per_epoch
        worker = number % self._num_workers
        sections = [len(self._numbers(first, other)) for other in range(self._num_workers)]
        return sum(sections[:worker]) + self._numbers(first, worker).index(number)

    def _numbers(self, first: int, worker: int) -> range:
        """The numbers, in the epoch that starts with batch `first`, of a worker's batches."""
        start = first + (worker - first) % self._num_workers
        return range(start, first + self.batches_per_epoch, self._num_workers)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """(shard, sample) of every sample in the epoch's order, [N, 2]."""
        random = np.random.default_rng([self._seed, _ORDER_PURPOSE, epoch])
        shards = random.permutation(len(self._counts)).tolist()
        groups = [shards[first : first + self._shuffle_shards] for first in range(0, len(shards), self._shuffle_shards)]
        return np.concatenate([random.permutation(self._samples_of(group)) for group in groups])

    def _samples_of(self, shards: Sequence[int]) -> NDArray[np.int64]:
        counts = [self._counts[shard] for shard in shards]
        samples = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
        return np.stack([np.repeat(np.array(shards, np.int64), counts), samples], axis=1)
