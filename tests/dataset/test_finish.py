"""The end of a run beside other drivers: no dataset shrinks, and its files never tell of different sizes."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.small_dataset import KIND, claim, config_of, context_of, publish, samples_of, tar_of

from labelmill.pipeline.dataset.claim import FINGERPRINT_PATH
from labelmill.pipeline.dataset.finish import finish_dataset
from labelmill.pipeline.dataset.manifest import read_index, read_manifest
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.store.store import Store, Version
from labelmill.schemas.errors import OutputError
from labelmill.schemas.shard import ShardRecord

SMALL, LARGE = 8, 24


@pytest.fixture(scope="module")
def tars() -> list[bytes]:
    config = config_of("anywhere", samples=LARGE)
    with ThreadPoolExecutor(2) as threads:
        return [tar_of(samples_of(task, context_of(config).fingerprint), threads) for task in shard_tasks(config)]


def make_shards(store: Store, tars: list[bytes], samples: int) -> list[ShardRecord]:
    config = config_of(store.url, samples=samples)
    claim(store, config)
    fingerprint = context_of(config).fingerprint
    return [publish(store, task, tars[task.index], fingerprint) for task in shard_tasks(config)]


def finish(store: Store, records: list[ShardRecord], samples: int) -> None:
    finish_dataset(store, records, context_of(config_of(store.url, samples=samples)))


class _Meanwhile(Store):
    """The real store; something happens before its so manieth compare-and-swap."""

    def happens(self, what: Callable[[], None], before_swap: int) -> None:
        self.__dict__.update(what=what, swap=before_swap, swaps=0)

    def compare_and_swap(self, path: str, data: bytes, version: Version | None) -> bool:
        values = self.__dict__
        values["swaps"] += 1
        if values["swaps"] - 1 == values["swap"]:
            values["what"]()
        return super().compare_and_swap(path, data, version)


def is_the_large_dataset(store: Store) -> bool:
    index, manifest = read_index(store), read_manifest(store)
    return (manifest.num_samples, len(index.shardlist)) == (LARGE, 6) and verify(store).problems == ()


@pytest.mark.parametrize("number", range(5))
def test_a_driver_that_was_frozen_does_not_shrink_a_larger_dataset(
    tmp_path: Path, tars: list[bytes], number: int
) -> None:
    """The larger run finishes before the frozen one looks, or between any two of its writes."""
    store = _Meanwhile.open(str(tmp_path / "out"))
    records = make_shards(store, tars, SMALL)
    other = Store.open(store.url)

    def finish_the_larger() -> None:
        finish(other, make_shards(other, tars, LARGE), LARGE)

    store.happens(finish_the_larger, before_swap=number - 1)
    if number == 0:
        finish_the_larger()
    with pytest.raises(OutputError, match=r"dataset\.samples: 8 is less than the output holds: another driver"):
        finish(store, records, SMALL)
    assert is_the_large_dataset(other)


def test_a_run_ends_beside_a_larger_one_that_goes_on(tmp_path: Path, tars: list[bytes]) -> None:
    store = Store.open(str(tmp_path / "out"))
    records = make_shards(store, tars, SMALL)
    make_shards(store, tars, SMALL + 4)
    with pytest.raises(OutputError, match="9 or more works, or a new output"):
        finish(store, records, SMALL)
    assert not store.exists("manifest.json")


def test_a_smaller_dataset_grows(tmp_path: Path, tars: list[bytes]) -> None:
    store = Store.open(str(tmp_path / "out"))
    finish(store, make_shards(store, tars, SMALL), SMALL)
    finish(store, make_shards(store, tars, LARGE), LARGE)
    assert is_the_large_dataset(store)


@pytest.mark.parametrize("seed", range(6))
def test_drivers_of_different_sizes_that_finish_at_once_agree(tmp_path: Path, tars: list[bytes], seed: int) -> None:
    output, order = str(tmp_path / "out"), random.Random(seed)

    def drive(samples: int) -> str:
        store = Store.open(output)
        try:
            finish(store, make_shards(store, tars, samples), samples)
        except OutputError as error:
            return str(error)
        return ""

    sizes = [SMALL, SMALL + 8, LARGE, LARGE]
    order.shuffle(sizes)
    with ThreadPoolExecutor(len(sizes)) as threads:
        said = dict(zip(sizes, threads.map(drive, sizes), strict=True))
    assert said[LARGE] == ""
    assert all("is less than the output holds" in words or not words for words in said.values())
    assert is_the_large_dataset(Store.open(output))


def test_kinds_of_machines_are_told_once_each(tmp_path: Path, tars: list[bytes]) -> None:
    store = Store.open(str(tmp_path / "out"))
    records = make_shards(store, tars, SMALL)
    other = KIND.model_copy(update={"settings": {"MKL_CBWR": "COMPATIBLE"}})
    repaired = records[0].model_copy(update={"kind": None})
    finish(store, [repaired, records[1]], SMALL)
    assert read_manifest(store).kinds == [KIND]
    card = store.read("README.md").decode()
    finish(store, [records[0].model_copy(update={"kind": other}), records[1]], SMALL)
    assert sorted(map(str, read_manifest(store).kinds)) == sorted(map(str, [KIND, other]))
    assert "MKL_CBWR=COMPATIBLE" in store.read("README.md").decode() and "MKL_CBWR" not in card
    store.delete(FINGERPRINT_PATH)
    finish(store, [repaired, records[1].model_copy(update={"kind": None})], SMALL)
    assert read_manifest(store).kinds == []
