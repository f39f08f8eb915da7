"""The tar is the commit: first one wins, and parquet and record follow from it, whatever happened between."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from helpers.small_dataset import (
    CLASSES,
    DROP_REASON,
    config_of,
    dropped,
    paint,
    publish,
    records_of,
    sample_of,
    samples_of,
    tar_of,
)

from labelmill.pipeline.shards.publisher import derive_sidecars, read_record, repair_shard, same_content
from labelmill.pipeline.shards.reader import DamagedTarError
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.shard import ShardRecord, ShardTask

TASKS = [
    ShardTask(index=index, name=f"painted-{index:06d}", num_samples=4, first_seed=16 * index, num_seeds=16)
    for index in range(3)
]
TAR, PARQUET, RECORD = "shards/painted-000001.tar", "shards/painted-000001.parquet", "records/000001.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


@pytest.fixture(scope="module")
def tars() -> Iterator[list[bytes]]:
    with ThreadPoolExecutor(2) as threads:
        yield [tar_of(samples_of(task), threads) for task in TASKS]


@pytest.fixture(scope="module")
def other_tar() -> bytes:
    """The second shard as another GPU might make it: the same seeds, a bit elsewhere."""
    with ThreadPoolExecutor(2) as threads:
        samples = [
            sample_of(seed, paint(seed)[0] ^ 1, paint(seed)[1], sample.metadata.dropped_before)
            for sample in samples_of(TASKS[1])
            for seed in [sample.metadata.candidate.seed]
        ]
        return tar_of(iter(samples), threads)


def test_a_tar_of_gray_and_rgb_samples_is_none_of_ours() -> None:
    samples = list(samples_of(TASKS[0]))
    gray = {"channel_means": (0.5,), "channel_square_means": (0.3,)}
    image_HWC = samples[1].image_HWC[:, :, :1]
    samples[1] = replace(samples[1], image_HWC=image_HWC, metadata=samples[1].metadata.model_copy(update=gray))
    with ThreadPoolExecutor(2) as threads:
        mixed = tar_of(iter(samples), threads)
    with pytest.raises(DamagedTarError, match="some of its samples are gray and some RGB"):
        derive_sidecars(mixed, 0, TASKS[0].name)


def _load(store: Store) -> list[ShardRecord]:
    config = config_of(store.url, samples=12)
    dataset = config.dataset.model_copy(update={"first_seed": 0})
    return records_of(store, config.model_copy(update={"dataset": dataset}), "f" * 64)


def test_a_record_says_what_the_shard_holds(store: Store, tars: list[bytes]) -> None:
    record = publish(store, TASKS[1], tars[1])
    # Seeds from 16 on, of which 1 and 2 of every five are dropped.
    kept, tried = [18, 19, 20, 23], range(16, 24)
    painted = {seed: paint(seed) for seed in tried}
    assert (record.index, record.name, record.num_samples, record.num_candidates) == (1, "painted-000001", 4, 8)
    assert record.dropped_by_reason == {DROP_REASON: 4}
    assert (record.sha256, record.num_bytes) == (hashlib.sha256(tars[1]).hexdigest(), len(tars[1]))
    masks_BHW = np.stack([painted[seed][1] for seed in kept])
    pixels = {name: int((masks_BHW == value).sum()) for value, name in enumerate(CLASSES)}
    assert record.class_pixels == {**pixels, "ignore": 4}
    images_BHWC = np.stack([painted[seed][0] for seed in kept]) / 255
    assert record.channel_means == pytest.approx(images_BHWC.mean((0, 1, 2)))
    assert record.channel_square_means == pytest.approx(np.square(images_BHWC).mean((0, 1, 2)))
    assert (record.host, record.device, record.attempts) == ("here", "cpu", 1)
    assert record.seconds_by_stage == {"synthesise": 1.5}
    assert record.created is not None
    assert datetime.now(UTC) - datetime.fromisoformat(record.created) < timedelta(minutes=1)
    assert read_record(store, 1) == record
    assert store.read(TAR) == tars[1]


def test_parquet_has_a_row_a_candidate(store: Store, tars: list[bytes]) -> None:
    publish(store, TASKS[1], tars[1])
    table = pq.read_table(pyarrow.BufferReader(store.read(PARQUET)))
    assert table.column_names[:6] == ["seed", "kept", "drop_reason", "class_id", "confidence", "largest_component"]
    assert table.column_names[6:] == [f"fraction_{name}" for name in (*CLASSES, "ignore")]
    rows = table.to_pylist()
    assert [row["seed"] for row in rows] == list(range(16, 24))
    for row in rows:
        seed, (_, mask_HW) = row["seed"], paint(row["seed"])
        assert row["kept"] is not dropped(seed)
        assert row["drop_reason"] == (DROP_REASON if dropped(seed) else None)
        assert row["class_id"] is None
        assert (row["confidence"], row["largest_component"]) == (round(0.25 + (seed % 7) / 10, 6), 0.75)
        assert [row[f"fraction_{name}"] for name in CLASSES] == [(mask_HW == k).mean() for k in range(3)]
        assert row["fraction_ignore"] == 1 / mask_HW.size


def test_the_loser_of_a_race_discards_its_tar(store: Store, tars: list[bytes], other_tar: bytes) -> None:
    winner = publish(store, TASKS[1], tars[1], host="winner")
    for file in (PARQUET, RECORD):
        store.delete(file)
    assert other_tar != tars[1]
    record = publish(store, TASKS[1], other_tar, host="loser")
    assert store.read(TAR) == tars[1]
    # It tells what is in the winner's tar, and nothing of how that was made.
    assert same_content(record, winner)
    assert (record.host, record.seconds_by_stage, record.attempts, record.device, record.created) == (None,) * 5
    assert read_record(store, 1) == record
    assert store.exists(PARQUET)


def test_the_loser_keeps_the_winners_record(store: Store, tars: list[bytes], other_tar: bytes) -> None:
    winner = publish(store, TASKS[1], tars[1], host="winner")
    assert publish(store, TASKS[1], other_tar, host="loser") == winner
    assert publish(store, TASKS[1], tars[1], host="equal bytes") == winner
    assert read_record(store, 1) == winner


def test_equal_bytes_are_as_much_the_losers(store: Store, tars: list[bytes]) -> None:
    store.create(TAR, tars[1])
    assert publish(store, TASKS[1], tars[1], host="loser").host == "loser"


def test_a_race_of_drivers_ends_in_one_shard(store: Store, tars: list[bytes], other_tar: bytes) -> None:
    with ThreadPoolExecutor(4) as threads:
        records = list(
            threads.map(lambda n: publish(store, TASKS[1], [tars[1], other_tar][n % 2], host=str(n)), range(4))
        )
    assert store.read(TAR) in (tars[1], other_tar)
    assert all(same_content(record, records[0]) for record in records)
    assert read_record(store, 1) in records
    assert records[0].sha256 == hashlib.sha256(store.read(TAR)).hexdigest()
    assert [file.path for file in store.list()] == [RECORD, PARQUET, TAR]


def test_a_winner_of_another_run_is_refused(store: Store, tars: list[bytes]) -> None:
    store.create(TAR, tars[1])
    with pytest.raises(OutputError, match=r"painted-000001\.tar: belongs to another run, of fingerprint ffffffffffff"):
        publish(store, TASKS[1], tars[1], run="e" * 64)
    assert [file.path for file in store.list()] == [TAR]


def test_a_damaged_winner_is_refused(store: Store, tars: list[bytes]) -> None:
    store.create(TAR, tars[1][:20_000])
    explained = r"painted-000001\.tar: is damaged: .* Delete it and run `labelmill generate` again"
    with pytest.raises(OutputError, match=explained):
        publish(store, TASKS[1], tars[1])
    with pytest.raises(OutputError, match=explained):
        _load(store)


def test_repair_gives_back_the_same_parquet_bytes_and_content(store: Store, tars: list[bytes]) -> None:
    record, parquet = publish(store, TASKS[1], tars[1]), store.read(PARQUET)
    assert repair_shard(store, 1, "painted-000001") == record
    for lost in ([PARQUET], [RECORD], [PARQUET, RECORD]):
        for path in lost:
            store.delete(path)
        repaired = repair_shard(store, 1, "painted-000001")
        assert store.read(PARQUET) == parquet
        assert same_content(repaired, record)
    assert repaired.host is None
    store.replace(PARQUET, b"not parquet")
    store.replace(RECORD, b"{}")
    assert repair_shard(store, 1, "painted-000001") == repaired == read_record(store, 1)
    assert store.read(PARQUET) == parquet
    with pytest.raises(FileNotFoundError):
        repair_shard(store, 2, "painted-000002")


def test_load_records_repairs_what_a_crash_left(store: Store, tars: list[bytes]) -> None:
    assert _load(store) == []
    records = [publish(store, task, tar) for task, tar in zip(TASKS, tars, strict=True)]
    assert _load(store) == records
    parquet = store.read(PARQUET)
    store.delete(PARQUET)
    assert _load(store) == records and store.read(PARQUET) == parquet
    store.delete(RECORD)
    loaded = _load(store)
    assert [record.index for record in loaded] == [0, 1, 2]
    assert loaded[1].host is None and same_content(loaded[1], records[1])
    # A record in another's place, and one of a tar that is gone.
    store.replace(RECORD, store.read("records/000002.json"))
    assert same_content(_load(store)[1], records[1])
    store.delete("shards/painted-000002.tar")
    assert [record.index for record in _load(store)] == [0, 1]


def test_a_remade_shard_replaces_the_record_of_the_deleted_one(
    store: Store, tars: list[bytes], other_tar: bytes
) -> None:
    publish(store, TASKS[1], tars[1])
    store.delete(TAR)
    record = publish(store, TASKS[1], other_tar, host="again")
    assert (record.sha256, record.host) == (hashlib.sha256(other_tar).hexdigest(), "again")
    assert read_record(store, 1) == record and _load(store) == [record]


def test_a_foreign_tar_among_the_shards_is_refused(store: Store, tars: list[bytes]) -> None:
    publish(store, TASKS[1], tars[1])
    store.create("shards/holiday.tar", tars[0])
    with pytest.raises(OutputError, match=r"not this dataset's; move them elsewhere:\n  shards/holiday\.tar$"):
        _load(store)


def test_a_tar_of_two_runs_is_refused(store: Store) -> None:
    with ThreadPoolExecutor(1) as threads:
        tar = tar_of(iter([sample_of(0, *paint(0)), sample_of(3, *paint(3), run="e" * 64)]), threads)
    with pytest.raises(OutputError, match="its samples name 2 fingerprints instead of one"):
        publish(store, TASKS[0], tar)
    with ThreadPoolExecutor(1) as threads:
        empty = tar_of(iter([]), threads)
    with pytest.raises(OutputError, match="0 fingerprints"):
        publish(store, TASKS[1], empty)
