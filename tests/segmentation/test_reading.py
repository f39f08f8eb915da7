"""Shards to tensors: exact pixels, every sample once an epoch, equal lengths everywhere, short reads refused."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from helpers.s3_server import S3Server
from helpers.small_dataset import CLASSES, paint, write_dataset

from labelmill.pipeline.segmentation.epoch_order import EpochOrder, SampleIndex
from labelmill.pipeline.segmentation.random_access import LabeledDataset
from labelmill.pipeline.segmentation.reading import PairBatch, Split, open_split, read_samples, training_loader
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError

Members = list[tuple[str, bytes]]

# Shards of 4 samples; the last has 3: uneven.
NUM_SAMPLES = 23


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset") / "out"
    write_dataset(folder, samples=NUM_SAMPLES)
    return folder


@pytest.fixture(scope="module")
def split(dataset: Path) -> Split:
    return open_split(str(dataset), None)


def _loader(split: Split, batches: range, **settings: int) -> list[PairBatch]:
    values = {"batch_size": 2, "seed": 5, "shuffle_shards": 2, **settings}
    return list(training_loader(split, batches=batches, **values))  # type: ignore[arg-type]


def _keys(batches: list[PairBatch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_every_pixel_is_as_it_was_painted(split: Split) -> None:
    samples = list(read_samples(split))
    assert len(samples) == split.num_samples == NUM_SAMPLES
    assert split.classes == CLASSES
    for sample in samples:
        image_HWC, mask_HW = paint(int(sample.key))
        assert np.array_equal(sample.image_HWC, image_HWC)
        assert np.array_equal(sample.mask_HW, mask_HW)
        assert sample.metadata.candidate.seed == int(sample.key)
        assert sample.alpha_HW is None


def test_batches_hold_exact_class_ids(split: Split) -> None:
    (batch,) = _loader(split, range(1), batch_size=5)
    assert batch.images_BCHW.dtype == torch.uint8 and batch.masks_BHW.dtype == torch.uint8
    for key, image_CHW, mask_HW in zip(batch.keys, batch.images_BCHW, batch.masks_BHW, strict=True):
        painted_HWC, painted_HW = paint(int(key))
        assert np.array_equal(image_CHW.permute(1, 2, 0).numpy(), painted_HWC)
        assert mask_HW.tolist() == painted_HW.tolist()
    assert 255 in batch.masks_BHW
    assert [metadata.key for metadata in batch.metadata] == list(batch.keys)


def test_splits_are_those_of_the_index(dataset: Path, split: Split) -> None:
    parts = {name: open_split(str(dataset), name) for name in ("train", "val")}
    assert all({shard.split for shard in part.shards} == {name} for name, part in parts.items())
    keys = [{sample.key for sample in read_samples(part)} for part in parts.values()]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == NUM_SAMPLES


def test_an_unknown_split_is_refused(dataset: Path) -> None:
    with pytest.raises(OutputError, match=r"split 'test' holds no sample; it has train \(\d+ samples\)"):
        open_split(str(dataset), "test")


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_all_ranks_together_see_each_sample_once_an_epoch(num_ranks: int, num_workers: int) -> None:
    counts, batch_size = [7, 1, 4, 9, 3, 1, 1], 4
    orders = [
        EpochOrder(
            counts,
            batch_size=batch_size,
            seed=1,
            shuffle_shards=2,
            rank=r,
            num_ranks=num_ranks,
            num_workers=num_workers,
        )
        for r in range(num_ranks)
    ]
    length = -(-sum(counts) // (num_ranks * batch_size))
    everything = {SampleIndex(shard, sample) for shard, count in enumerate(counts) for sample in range(count)}
    for epoch in range(3):
        numbers = range(epoch * length, (epoch + 1) * length)
        seen = Counter(chain.from_iterable(order.batch(number) for order in orders for number in numbers))
        assert set(seen) == everything
        assert all(order.batches_per_epoch == length for order in orders)
        padding = num_ranks * batch_size * length - len(everything)
        assert 0 <= padding < num_ranks * batch_size
        assert seen.total() == len(everything) + padding
        assert sum(count - 1 for count in seen.values()) == padding


def test_a_worker_reads_neighbours(split: Split) -> None:
    """Of 40 shards shuffled by twos, each of 4 workers needs a quarter, and at most a group at each end more."""
    order = EpochOrder([10] * 40, batch_size=4, seed=0, shuffle_shards=2, num_workers=4)
    for worker in range(4):
        places = chain.from_iterable(order.batch(number) for number in range(worker, order.batches_per_epoch, 4))
        assert len({place.shard for place in places}) <= 10 + 4


def test_epochs_and_seeds_differ_in_order() -> None:
    def epoch(seed: int, number: int) -> list[SampleIndex]:
        order = EpochOrder([5, 5, 5, 5], batch_size=5, seed=seed, shuffle_shards=2)
        return list(chain.from_iterable(order.batch(4 * number + i) for i in range(4)))

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)
    assert [place.shard for place in epoch(0, 0)] != sorted(place.shard for place in epoch(0, 0))


def test_samples_are_shuffled_within_groups_of_shards_only() -> None:
    order = EpochOrder([6] * 6, batch_size=6, seed=2, shuffle_shards=3)
    batches = [order.batch(number) for number in range(6)]
    first, second = ({place.shard for batch in half for place in batch} for half in (batches[:3], batches[3:]))
    assert len(first) == len(second) == 3 and not first & second
    assert all(len({place.shard for place in batch}) > 1 for batch in batches)


def test_a_resumed_stream_goes_on_where_it_was(split: Split) -> None:
    whole = _loader(split, range(30))
    assert _keys(_loader(split, range(17, 30))) == _keys(whole[17:])


def test_worker_processes_deliver_in_order_and_resume(split: Split) -> None:
    """Real processes: they give what the order says, from any batch on."""
    order = EpochOrder([s.nsamples for s in split.shards], batch_size=2, seed=5, shuffle_shards=2, num_workers=2)
    stored = [sample.key for sample in read_samples(split)]
    keys = [stored[4 * place.shard + place.sample] for number in range(7, 20) for place in order.batch(number)]
    batches = _loader(split, range(7, 20), workers=2)
    assert _keys(batches) == keys


def test_a_bucket_reads_like_a_folder(s3: S3Server, split: Split) -> None:
    s3.create_bucket("bucket")
    url = "s3://bucket/data"
    write_dataset(url, samples=NUM_SAMPLES)
    there = open_split(url, None)
    assert _keys(_loader(there, range(12))) == _keys(_loader(split, range(12)))


def _rewrite(dataset: Path, shard: Path, num_members: int) -> None:
    """A whole, valid tar that holds only the first members."""
    with tarfile.open(shard) as old:
        members = [(member, old.extractfile(member).read()) for member in old.getmembers()]  # type: ignore[union-attr]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for member, data in members[:num_members]:
            new.addfile(member, io.BytesIO(data))
    shard.write_bytes(content.getvalue())


@pytest.mark.parametrize(
    ("num_members", "message"),
    [
        (9, "holds 3 samples, index.json says 4"),
        (11, r"sample 0000000123 lacks 0000000123\.json"),
    ],
)
def test_a_tar_cut_between_members_is_refused(tmp_path: Path, num_members: int, message: str) -> None:
    write_dataset(tmp_path / "out")
    shard = sorted((tmp_path / "out" / "shards").glob("*.tar"))[1]
    _rewrite(tmp_path / "out", shard, num_members)
    with pytest.raises(OutputError, match=rf"painted-000001.tar: .*{message}"):
        list(read_samples(open_split(str(tmp_path / "out"), None)))


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Anywhere in its files: the empty blocks after the last one hold nothing."""
    store, _ = write_dataset(tmp_path / "out")
    shard = sorted((tmp_path / "out" / "shards").glob("*.tar"))[0]
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        last = archive.getmembers()[-1]
    end = last.offset_data + last.size
    for size in (*range(0, end, 1000), end - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(OutputError, match="painted-000000"):
            list(read_samples(open_split(store.url, None)))


def _repack_with_long_names(members: Members) -> bytes:
    """By Python's default: pax headers, in a folder, with `./` before names and folders as entries."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        folder = tarfile.TarInfo("./" + "ä" * 60)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members:
            header = tarfile.TarInfo(f"{folder.name}/{name}")
            header.size, header.mtime = len(data), 1.5
            tar.addfile(header, io.BytesIO(data))
    return content.getvalue()


def _repack_without_an_end(members: Members) -> bytes:
    """GNU's format, files by name, no empty block after the last one, and what macOS adds."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in sorted(members):
            for header, held in ((tarfile.TarInfo(f"._{name}"), b"macOS"), (tarfile.TarInfo(f"./{name}"), data)):
                header.size = len(held)
                tar.addfile(header, io.BytesIO(held))
        return content.getvalue()  # before the archive is closed


@pytest.mark.parametrize("repack", [_repack_with_long_names, _repack_without_an_end])
def test_shards_repacked_by_other_tools_read_as_webdataset_reads_them(
    tmp_path: Path, repack: Callable[[Members], bytes]
) -> None:
    store, _ = write_dataset(tmp_path / "out")
    before = list(read_samples(open_split(store.url, None)))
    for shard in (tmp_path / "out" / "shards").glob("*.tar"):
        with tarfile.open(shard) as old:
            members = [(member.name, old.extractfile(member).read()) for member in old.getmembers()]  # type: ignore[union-attr]
        shard.write_bytes(repack(members))
    after = list(read_samples(open_split(store.url, None)))
    for ours, theirs in zip(after, before, strict=True):
        assert ours.metadata == theirs.metadata and ours.key == theirs.key
        assert np.array_equal(ours.image_HWC, theirs.image_HWC) and np.array_equal(ours.mask_HW, theirs.mask_HW)
    urls = [str(tmp_path / "out" / shard.url) for shard in open_split(store.url, None).shards]
    plain = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"].rpartition("/")[2] for sample in plain] == [sample.key for sample in after]


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out")
    sorted((tmp_path / "out" / "shards").glob("*.tar"))[0].unlink()
    with pytest.raises(OutputError, match=r"is not there, though index.json lists it"):
        _loader(open_split(store.url, None), range(20))


def test_an_unfinished_dataset_is_refused(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out")
    Store.open(store.url).delete("manifest.json")
    with pytest.raises(OutputError, match=r"manifest\.json: not a labelmill dataset, or not complete"):
        open_split(store.url, "train")


def test_samples_of_a_bucket_by_number(s3: S3Server) -> None:
    s3.create_bucket("numbered")
    write_dataset("s3://numbered/data")
    split = open_split("s3://numbered/data", None)
    keys = [sample.key for sample in read_samples(split)]
    dataset = LabeledDataset(split, lambda sample: sample.key)
    assert [dataset[index] for index in (9, 0, 5)] == [keys[9], keys[0], keys[5]]
