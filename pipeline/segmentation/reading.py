"""Shards to tensors: reads a labelmill dataset for training and for scoring.

    split = open_split("./out/demo", "train")
    for sample in read_samples(split):                 # in order, one at a time
        sample.image_HWC, sample.mask_HW, sample.metadata
    for batch in training_loader(split, batch_size=16, seed=0, batches=range(1000)):
        batch.images_BCHW, batch.masks_BHW             # shuffled, endless epochs, resumable at any batch

A folder and a bucket read alike. A shard that holds another number of samples than index.json says is an error: most
readers, webdataset's too, take a tar that was cut between two files for a shorter one.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

import io
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.dataset.manifest import MANIFEST_PATH, read_index, read_manifest
from labelmill.pipeline.pictures.class_maps import sum_problem, unstacked
from labelmill.pipeline.pictures.mask_png import MaskError, decode_shard_mask
from labelmill.pipeline.segmentation.epoch_order import EpochOrder, SampleIndex
from labelmill.pipeline.segmentation.loader_processes import FOREVER, Patience, items_of_processes
from labelmill.pipeline.segmentation.tar_members import members_of
from labelmill.pipeline.shards.reader import DamagedTarError, Member, parse_metadata
from labelmill.pipeline.shards.sample_files import (
    ALPHA,
    IMAGE,
    MASK,
    METADATA,
    OPTIONAL_FILES,
    PROBABILITIES,
    SampleFile,
    sample_files,
)
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import DatasetConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import IndexedShard
from labelmill.schemas.sample import IGNORE, ImageShape, SampleMetadata
from labelmill.schemas.segmentation import Triple
from labelmill.schemas.yaml_file import validate

Pixels = NDArray[np.uint8]

_AUGMENT_PURPOSE = 2


@dataclass(frozen=True)
class LabeledPixels:
    """An image with its mask."""

    image_HWC: Pixels
    """RGB, 0 to 255; gray images have three equal channels."""
    mask_HW: Pixels
    """Class index of each pixel; 255 is ignore."""
    alpha_HW: Pixels | None = None
    """Share of foreground, 0 to 255, where the dataset has it."""
    probabilities_KHW: Pixels | None = None
    """255 times the probability of each class, where the dataset has it."""


@dataclass(frozen=True, kw_only=True)
class LabeledImage(LabeledPixels):
    """A sample as it is stored."""

    key: str
    metadata: SampleMetadata


@dataclass(frozen=True)
class PairBatch:
    """Samples of one size, on the CPU."""

    keys: tuple[str, ...]
    images_BCHW: Tensor
    """uint8 RGB, 0 to 255; gray images have three equal channels."""
    masks_BHW: Tensor
    """uint8 class indices; 255 is ignore."""
    metadata: tuple[SampleMetadata, ...]
    alphas_BHW: Tensor | None = None
    """uint8 share of foreground, 0 to 255, where the dataset has it."""
    probabilities_BKHW: Tensor | None = None
    """uint8: 255 times the probability of each class, where the dataset has it."""

    def pin_memory(self) -> "PairBatch":
        """The same batch, ready to be copied to a GPU while that works."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self._tensors().items()})  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[object, ...]:
        """As arrays: pickled tensors would be copied several times, or cross processes through /dev/shm."""
        images_BHWC = self.images_BCHW.permute(0, 2, 3, 1).contiguous().numpy()
        others = {name: tensor.numpy() for name, tensor in self._tensors().items() if name != "images_BCHW"}
        return _batch_of_arrays, (self.keys, self.metadata, images_BHWC, others)

    def _tensors(self) -> dict[str, Tensor]:
        """By field; without those that the dataset has not."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def _batch_of_arrays(
    keys: tuple[str, ...], metadata: tuple[SampleMetadata, ...], images_BHWC: Pixels, others: Mapping[str, Pixels]
) -> PairBatch:
    """others: by field of PairBatch."""
    tensors = {name: torch.from_numpy(array) for name, array in others.items()}
    images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)
    return PairBatch(keys=keys, metadata=metadata, images_BCHW=images_BCHW, **tensors)


Augment = Callable[[LabeledImage, np.random.Generator], LabeledImage]


@dataclass(frozen=True)
class Split:
    """Some shards of a dataset, and what its manifest says of all of them."""

    url: str
    name: str | None
    shards: tuple[IndexedShard, ...]
    classes: tuple[str, ...]
    """Names of the values 0, 1, ... of masks."""
    image_shape: ImageShape
    """As they are stored."""
    mean: Triple
    """Of red, green and blue in [0, 1], over the whole dataset; equal ones where images are gray."""
    std: Triple
    fingerprint: str
    files: tuple[SampleFile, ...]
    """Those that each sample consists of."""
    checkpoint_sha256: str
    """Of the generator: with a seed, it says which image a sample is."""
    dataset: DatasetConfig
    unread: tuple[SampleFile, ...] = ()
    """Optional files that have to be there, but are not decoded: samples lack their fields."""

    def reading(self, *optional_files: SampleFile) -> "Split":
        """The same, with these of the optional files alone decoded."""
        return replace(self, unread=tuple(file for file in OPTIONAL_FILES if file not in optional_files))

    @cached_property
    def seed_blocks(self) -> tuple[range, ...]:
        """The seeds that each of the shards owns; its samples are of some of them."""
        first, count = self.dataset.first_seed, self.dataset.seeds_per_shard
        indices = [int(shard.url.removesuffix(".tar").rpartition("-")[2]) for shard in self.shards]
        return tuple(range(first + index * count, first + (index + 1) * count) for index in indices)

    @property
    def num_samples(self) -> int:
        return sum(shard.nsamples for shard in self.shards)


def open_split(url: str, split: str | None) -> Split:
    """The shards of a split; of all splits for None. Raises OutputError for what is no finished dataset, and for a
    split that it does not have or that holds no sample."""
    store = Store.open(url)
    manifest, index = read_manifest(store), read_index(store)
    shards = tuple(shard for shard in index.shardlist if split in (None, shard.split) and shard.nsamples)
    if not shards:
        counts = {name: count for name, count in manifest.samples_by_split.items() if count}
        held = ", ".join(f"{name} ({count} samples)" for name, count in counts.items())
        raise OutputError(
            f"{url}: the split {split!r} holds no sample; it has {held}. Whole shards are split: with few of them a "
            f"small split may get none. Take another split, or null for all"
        )
    return Split(
        url=url,
        name=split,
        shards=shards,
        classes=tuple(manifest.classes),
        image_shape=manifest.image_shape,
        mean=_of_rgb(manifest.mean),
        std=_of_rgb(manifest.std),
        fingerprint=manifest.fingerprint,
        files=sample_files(manifest.image_format, manifest.optional_files),
        checkpoint_sha256=manifest.checkpoint.sha256,
        dataset=validate(manifest.config["dataset"], f"{url}/{MANIFEST_PATH}: config.dataset", DatasetConfig),
    )


def _of_rgb(values: tuple[float, ...]) -> Triple:
    red, green, blue = values if len(values) == 3 else values * 3
    return red, green, blue


def read_samples(split: Split) -> Iterator[LabeledImage]:
    """Every sample once, in the dataset's order. Raises OutputError naming the shard that is not as it should be."""
    reader = ShardReader(split, capacity=1)
    for number, shard in enumerate(split.shards):
        for sample in range(shard.nsamples):
            yield reader.read(SampleIndex(number, sample))


class ShardReader:
    """Samples by place; keeps the last `capacity` shards in memory, as they are stored."""

    def __init__(self, split: Split, capacity: int) -> None:
        self._split, self._capacity = split, capacity
        self._shards: OrderedDict[int, list[dict[str, Member]]] = OrderedDict()

    @cached_property
    def _store(self) -> Store:
        """Opened by the process that reads: a bucket's client does not survive a move to another process."""
        return Store.open(self._split.url)

    def read(self, place: SampleIndex) -> LabeledImage:
        """Decode one sample. Raises OutputError naming the shard and the file in it."""
        if place.shard not in self._shards:
            while len(self._shards) >= self._capacity:
                self._shards.popitem(last=False)
            self._shards[place.shard] = self._load(self._split.shards[place.shard])
        self._shards.move_to_end(place.shard)
        try:
            return decode(self._shards[place.shard][place.sample], self._split)
        except (MaskError, DamagedTarError) as error:
            raise OutputError(f"{self._split.url}/{self._split.shards[place.shard].url}: {error}") from error

    def _load(self, shard: IndexedShard) -> list[dict[str, Member]]:
        name = f"{self._split.url}/{shard.url}"
        advice = f"`labelmill verify {self._split.url}` shows the details"
        try:
            samples = grouped(self._store.read(shard.url))
        except FileNotFoundError as error:
            raise OutputError(f"{name}: is not there, though index.json lists it; {advice}") from error
        except DamagedTarError as error:
            raise OutputError(f"{name}: {error}; {advice}") from error
        if len(samples) != shard.nsamples:
            raise OutputError(f"{name}: holds {len(samples)} samples, index.json says {shard.nsamples}; {advice}")
        return samples


def grouped(tar: bytes) -> list[dict[str, Member]]:
    """The files of each sample by their endings, in order, of a tar or of a part of one. Raises DamagedTarError."""
    content, samples = memoryview(tar), dict[str, dict[str, Member]]()
    for member in members_of(io.BytesIO(tar)):
        data = content[member.offset : member.offset + member.num_bytes]
        if len(data) != member.num_bytes:
            raise DamagedTarError(f"it is cut within member {member.name!r}")
        files = samples.setdefault(member.key, {})
        if member.ending in files:
            raise DamagedTarError(f"member {member.name!r} is there twice")
        files[member.ending] = Member(member.name.rpartition("/")[2], data)
    return list(samples.values())


def decode(files: Mapping[str, Member], split: Split) -> LabeledImage:
    """A sample from its files by ending. Raises DamagedTarError, or MaskError, naming the file in the tar."""
    key = next(iter(files.values())).key
    _check_files(key, files, split.files)
    members = {file.field: files[file.ending] for file in split.files if file not in split.unread}
    image_HWC, num_classes = _decode_image(members[IMAGE.field], split.image_shape), len(split.classes)
    mask_HW = _decode_gray(members[MASK.field], image_HWC.shape[:2])
    strange = mask_HW[(mask_HW >= num_classes) & (mask_HW != IGNORE)]
    if strange.size:
        raise MaskError(f"{MASK.member(key)} holds {strange[0]}, but there are {num_classes} classes")
    alpha, probabilities = members.get(ALPHA.field), members.get(PROBABILITIES.field)
    return LabeledImage(
        image_HWC,
        mask_HW,
        alpha_HW=None if alpha is None else _decode_gray(alpha, mask_HW.shape),
        probabilities_KHW=None if probabilities is None else _decode_maps(probabilities, mask_HW.shape, num_classes),
        key=key,
        metadata=parse_metadata(members[METADATA.field]),
    )


def _check_files(key: str, found: Mapping[str, Member], files: Sequence[SampleFile]) -> None:
    """Raises DamagedTarError where a sample lacks a file of the dataset, or has an optional one that the dataset has
    not: what was trained on must not depend on who packed the shards. Other files are left alone, as webdataset does.
    """
    lacking = [file.member(key) for file in files if file.ending not in found]
    if lacking:
        raise DamagedTarError(f"sample {key} lacks {', '.join(lacking)}: it has {', '.join(found)}")
    for file in OPTIONAL_FILES:
        if file.ending in found and file not in files:
            raise DamagedTarError(
                f"sample {key} holds {file.member(key)}: {MANIFEST_PATH} does not declare {file.ending}"
            )


def _decode_image(member: Member, shape: ImageShape) -> Pixels:
    pixels = np.frombuffer(member.data, np.uint8)
    # Of gray images also where the format had no gray and lossy compression coloured them by a level.
    flag, conversion = cv2.IMREAD_COLOR_RGB, None
    if shape.channels == 1:
        flag, conversion = cv2.IMREAD_GRAYSCALE, cv2.COLOR_GRAY2RGB
    decoded = cv2.imdecode(pixels, flag) if pixels.size else None
    if decoded is None:
        raise DamagedTarError(f"{member.name} is not a readable image")
    return np.asarray(decoded if conversion is None else cv2.cvtColor(decoded, conversion), np.uint8)


def _decode_gray(member: Member, size: tuple[int, ...]) -> Pixels:
    try:
        gray_HW = decode_shard_mask(bytes(member.data))
    except MaskError as error:
        raise MaskError(f"{member.name}: {error}") from error
    if gray_HW.shape != size:
        raise MaskError(f"{member.name}: is {gray_HW.shape}, by its image it should be {size} (height, width)")
    return gray_HW


def _decode_maps(member: Member, size: tuple[int, ...], num_classes: int) -> Pixels:
    """The levels [K, H, W] of all classes."""
    height, width = size
    levels_KHW = unstacked(_decode_gray(member, (num_classes * height, width)), num_classes)
    problem = sum_problem(levels_KHW)
    if problem is not None:
        raise MaskError(f"{member.name}: its {num_classes} maps {problem}")
    return levels_KHW


class TrainingBatches:
    """The batches of one rank with the given numbers, augmented.

    A batch depends on its number and the seed alone, also on how often it is read, but not on what was read before.
    """

    def __init__(
        self,
        split: Split,
        order: EpochOrder,
        *,
        batches: range,
        seed: int,
        rank: int,
        shuffle_shards: int,
        augment: Augment | None,
    ) -> None:
        self._split, self._order, self._batches, self._seed, self._rank = split, order, batches, seed, rank
        self._shuffle_shards, self._augment = shuffle_shards, augment

    def __call__(self, worker: int, num_workers: int) -> Iterator[PairBatch]:
        """Those that one of several processes makes."""
        # One core a process.
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        return self.of(self._batches[worker::num_workers])

    def of(self, numbers: range) -> Generator[PairBatch, None, None]:
        """The batches with these numbers."""
        reader = ShardReader(self._split, self._shuffle_shards)
        for number in numbers:
            yield self._make(reader, number)

    def _make(self, reader: ShardReader, number: int) -> PairBatch:
        samples = [reader.read(place) for place in self._order.batch(number)]
        if self._augment is not None:
            identity = [self._seed, _AUGMENT_PURPOSE, self._rank, number]
            samples = [self._augment(s, np.random.default_rng([*identity, i])) for i, s in enumerate(samples)]
        return collate(samples)


def collate(samples: list[LabeledImage]) -> PairBatch:
    """Stack samples of one size; what one of them has, all have."""
    columns = {
        "masks_BHW": [sample.mask_HW for sample in samples],
        "alphas_BHW": [sample.alpha_HW for sample in samples if sample.alpha_HW is not None],
        "probabilities_BKHW": [sample.probabilities_KHW for sample in samples if sample.probabilities_KHW is not None],
    }
    assert all(len(column) in (0, len(samples)) for column in columns.values())
    return _batch_of_arrays(
        keys=tuple(sample.key for sample in samples),
        metadata=tuple(sample.metadata for sample in samples),
        images_BHWC=np.stack([sample.image_HWC for sample in samples]),
        others={name: np.stack(column) for name, column in columns.items() if column},
    )


def training_loader(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    batches: range,
    shuffle_shards: int,
    workers: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    augment: Augment | None = None,
    pin_memory: bool = False,
    patience: Patience = FOREVER,
) -> Generator[PairBatch, None, None]:
    """Batches number batches.start, ... of an endless stream of shuffled epochs, in order; close it when done early.

    workers: processes that read; their number changes the order of samples, as seed, ranks and batch_size do.
    batches: a resumed run asks for those that are left and gets what it would have got.
    augment: applied to each sample in the worker, with random numbers that follow from batch and seed; it must be
    picklable where there are workers.
    patience: with workers, how long to wait for a batch. Raises StalledError when it ends, or when a worker dies.
    """
    order = EpochOrder(
        [shard.nsamples for shard in split.shards],
        batch_size=batch_size,
        seed=seed,
        shuffle_shards=shuffle_shards,
        rank=rank,
        num_ranks=num_ranks,
        num_workers=max(1, workers),
    )
    data = TrainingBatches(
        split, order, batches=batches, seed=seed, rank=rank, shuffle_shards=shuffle_shards, augment=augment
    )
    made = items_of_processes(data, workers, patience) if workers else data.of(batches)
    with closing(made):
        for batch in made:
            yield batch.pin_memory() if pin_memory else batch
