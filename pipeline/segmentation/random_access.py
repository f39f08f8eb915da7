"""A dataset as a torch Dataset: samples by number, in any order, by any number of DataLoader processes.

Shape suffixes: C channels, H height, W width.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from labelmill.pipeline.pictures.mask_png import MaskError
from labelmill.pipeline.segmentation.epoch_order import EpochOrder, SampleIndex
from labelmill.pipeline.segmentation.reading import LabeledImage, ShardReader, Split, decode, grouped
from labelmill.pipeline.segmentation.tar_members import members_of
from labelmill.pipeline.shards.reader import DamagedTarError
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError

Item = TypeVar("Item")
Pair = tuple[Tensor, Tensor]

# Shards of a bucket that a process keeps in memory; a folder's are read sample by sample.
_KEPT_SHARDS = 4


def to_pair(sample: LabeledImage) -> Pair:
    """image_CHW float32 RGB in [0, 1] and mask_HW int64 class indices, 255 to ignore: what
    `cross_entropy(..., ignore_index=255)` takes."""
    image_CHW = torch.from_numpy(sample.image_HWC).permute(2, 0, 1).contiguous().float() / 255
    return image_CHW, torch.from_numpy(sample.mask_HW).long()


class LabeledDataset(Dataset[Item]):
    """The samples of a split: `len(dataset)`, `dataset[3]`, and as much as `DataLoader` needs.

    From a folder each sample is read by itself, so that shuffling costs nothing; memory holds 16 bytes per sample. From
    a bucket whole shards are read, of which four stay in memory: there take `DataLoader(dataset,
    sampler=dataset.order(seed=0, epoch=0))`, which reads few shards at a time.
    """

    def __init__(self, split: Split, transform: Callable[[LabeledImage], Item]) -> None:
        """transform: makes an item of a sample as it is stored; picklable where DataLoader's processes are spawned."""
        self._split, self._transform = split, transform
        self._ends = list(accumulate(shard.nsamples for shard in split.shards))
        self._reader: _SampleReader | ShardReader | None = None
        self._process = -1

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the mask values 0, 1, ...; index 0 is background."""
        return self._split.classes

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Item:
        """Item 0 to len - 1, or negative from the end. Raises IndexError, and OutputError naming the shard that is not
        as it should be."""
        return self._transform(self.sample(index))

    def sample(self, index: int) -> LabeledImage:
        """A sample as it is stored: image_HWC RGB and mask_HW, uint8, key and metadata. Raises as `[]` does."""
        place = self._place(range(len(self))[index])
        return self._opened().read(place)

    def order(self, *, seed: int, epoch: int, shuffle_shards: int = _KEPT_SHARDS) -> list[int]:
        """All indices, shuffled such that at most so many shards are in use at a time. Follows from its arguments."""
        counts = [shard.nsamples for shard in self._split.shards]
        order = EpochOrder(counts, batch_size=len(self), seed=seed, shuffle_shards=shuffle_shards)
        starts = [0, *self._ends]
        return [starts[place.shard] + place.sample for place in order.batch(epoch)]

    def _place(self, index: int) -> SampleIndex:
        shard = bisect_right(self._ends, index)
        return SampleIndex(shard, index - (self._ends[shard - 1] if shard else 0))

    def _opened(self) -> "_SampleReader | ShardReader":
        """The reader of this process: a bucket's client does not survive a fork."""
        if self._reader is None or self._process != os.getpid():
            folder = Store.open(self._split.url).folder
            reader = ShardReader(self._split, _KEPT_SHARDS) if folder is None else _SampleReader(self._split, folder)
            self._reader, self._process = reader, os.getpid()
        return self._reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


class _SampleReader:
    """Reads single samples out of the tars of a local folder."""

    def __init__(self, split: Split, folder: Path) -> None:
        self._split, self._folder = split, folder
        self._bounds: dict[int, NDArray[np.int64]] = {}

    def read(self, place: SampleIndex) -> LabeledImage:
        """Decode one sample. Raises OutputError naming the shard and the file in it."""
        shard = self._split.shards[place.shard]
        name = f"{self._split.url}/{shard.url}"
        advice = f"`labelmill verify {self._split.url}` shows the details"
        try:
            if place.shard not in self._bounds:
                self._bounds[place.shard] = _sample_bounds(self._folder / shard.url, shard.nsamples)
            start, end = self._bounds[place.shard][place.sample : place.sample + 2].tolist()
            with (self._folder / shard.url).open("rb") as file:
                file.seek(start)
                samples = grouped(file.read(end - start))
            if len(samples) != 1:
                raise DamagedTarError(f"it has changed since it was opened, at byte {start}")
            return decode(samples[0], self._split)
        except OSError as error:
            raise OutputError(f"{name}: cannot be read: {error.strerror or error}; {advice}") from error
        except (MaskError, DamagedTarError) as error:
            raise OutputError(f"{name}: {error}; {advice}") from error


def _sample_bounds(tar: Path, num_samples: int) -> NDArray[np.int64]:
    """Where each sample begins, and the last one ends [num_samples + 1], from the headers alone."""
    keys, bounds = [""], [0]
    with tar.open("rb") as file:
        for member in members_of(file):
            if member.key == keys[-1]:
                bounds[-1] = member.end
            else:
                keys.append(member.key)
                bounds.append(member.end)
    _check_keys(keys[1:], num_samples)
    return np.array(bounds, np.int64)


def _check_keys(keys: Sequence[str], num_samples: int) -> None:
    """Raises DamagedTarError."""
    if len(keys) != num_samples:
        raise DamagedTarError(f"holds {len(keys)} samples, index.json says {num_samples}")
    if len(set(keys)) != len(keys):
        raise DamagedTarError("the files of a sample do not stand together")
