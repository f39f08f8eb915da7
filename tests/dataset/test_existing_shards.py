"""A shard is held against its run before it counts: what follows from it is rebuilt, all else refused by name."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.small_dataset import config_of, context_of, publish, records_of, samples_of, tar_of, write_dataset

from labelmill.pipeline.dataset.existing_shards import check_listing
from labelmill.pipeline.dataset.finish import finish_dataset
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.shards.publisher import read_record
from labelmill.pipeline.shards.sealed import seal, unseal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.shard import ShardRecord

TAR, PARQUET, RECORD = "shards/painted-000001.tar", "shards/painted-000001.parquet", "records/000001.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sound") / "out"
    write_dataset(output)
    return output


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Store:
    return Store.open(str(shutil.copytree(sound, tmp_path / "out")))


def files_of(store: Store) -> dict[str, bytes]:
    return {file.path: store.read(file.path) for file in store.list()}


def edited(**changes: object) -> Callable[[bytes], bytes]:
    """A record of other values: sealed, as a program would write it that knows how."""

    def edit(data: bytes) -> bytes:
        found = unseal(data, ShardRecord)
        assert found is not None
        return seal(found.content.model_copy(update=changes))

    return edit


def typed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A record that was edited by hand."""

    def edit(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        typed(b'"num_samples": 4', b'"num_samples": 8'),
        typed(b'"num_candidates": 8', b'"num_candidates": 9'),
        typed(b'"background": ', b'"background": 1'),
        typed(b'"sha256": "', b'"sha256": "f'),
        typed(b'"fingerprint": "', b'"fingerprint": "0'),
        typed(b'"host": "here"', b'"host": "there"'),
        edited(index=0),
        edited(name="painted-000002"),
        lambda data: b"",
        lambda data: data[:100],
    ],
)
def test_a_record_that_is_not_as_it_was_written_is_rebuilt(store: Store, edit: Callable[[bytes], bytes]) -> None:
    config = config_of(store.url)
    before = read_record(store, 1)
    assert before is not None
    store.replace(RECORD, edit(store.read(RECORD)))
    records = records_of(store, config)
    forgotten = dict.fromkeys(("seconds_by_stage", "attempts", "host", "device", "created", "kind"))
    assert records[1] == before.model_copy(update=forgotten)
    finish_dataset(store, records, context_of(config))
    assert verify(store).problems == ()


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:200], lambda d: bytes([d[0] ^ 1]) + d[1:], None])
def test_a_parquet_file_is_rebuilt_from_its_tar(store: Store, damage: Callable[[bytes], bytes] | None) -> None:
    before = files_of(store)
    store.replace(PARQUET, damage(before[PARQUET]) if damage else before["shards/painted-000002.parquet"])
    records_of(store, config_of(store.url))
    assert files_of(store) == before


def test_shards_of_earlier_versions_are_taken_as_they_are_and_sealed(store: Store) -> None:
    before = files_of(store)
    for index in range(3):
        record = read_record(store, index)
        assert record is not None
        old = record.model_dump_json(indent=2, exclude={"kind", "parquet_sha256"}).encode() + b"\n"
        store.replace(f"records/{index:06d}.json", old)
    records = records_of(store, config_of(store.url))
    assert [record.host for record in records] == ["here"] * 3
    assert {path: data for path, data in files_of(store).items() if not path.startswith("records")} == {
        path: data for path, data in before.items() if not path.startswith("records")
    }
    assert [record.parquet_sha256 for record in records].count(None) == 0
    assert records == [read_record(store, index) for index in range(3)]


@pytest.mark.parametrize("record_too", [False, True])
def test_a_tar_of_other_bytes_is_refused_by_name(store: Store, record_too: bool) -> None:
    """Zeros, another shard's, another run's: of the same size, with or without the record beside it."""
    config, tar = config_of(store.url), store.read(TAR)
    with ThreadPoolExecutor(2) as threads:
        other_run = tar_of(samples_of(shard_tasks(config)[1], "e" * 64), threads)
    assert len(other_run) == len(tar)
    for content in (bytes(len(tar)), store.read("shards/painted-000000.tar").ljust(len(tar), b"\0"), other_run):
        store.replace(TAR, content)
        if record_too:
            store.delete(RECORD)
            store.delete("index.json")
        before = files_of(store)
        with pytest.raises(OutputError, match=r"painted-000001\.tar: (is not what|is damaged|belongs to another run)"):
            records_of(store, config)
        assert files_of(store) == before


def test_a_shard_copied_from_another_run_is_refused_with_its_record(store: Store, tmp_path: Path) -> None:
    config, other = config_of(store.url), Store.open(str(tmp_path / "other"))
    with ThreadPoolExecutor(2) as threads:
        publish(other, shard_tasks(config)[1], tar_of(samples_of(shard_tasks(config)[1], "e" * 64), threads), "e" * 64)
    for path in (TAR, PARQUET, RECORD):
        store.replace(path, other.read(path))
    store.delete("index.json")
    with pytest.raises(OutputError, match=r"painted-000001\.tar: belongs to another run, of fingerprint eeeeeeeeeeee"):
        records_of(store, config)


def test_pixels_count_where_nothing_knows_a_tars_hash(store: Store) -> None:
    """Between tar and record a crash leaves a tar that only its own pixels vouch for."""
    tar = bytearray(store.read(TAR))
    start = tar.index(b"IDAT", tar.index(b"mask.png"))
    tar[start + 8] ^= 1
    store.replace(TAR, bytes(tar))
    store.delete(RECORD)
    with pytest.raises(OutputError, match=r"painted-000001\.tar: is not what .* index\.json say"):
        records_of(store, config_of(store.url))
    store.delete("index.json")
    with pytest.raises(OutputError, match=r"painted-000001\.tar: is damaged: \d+\.mask\.png"):
        records_of(store, config_of(store.url))


@pytest.mark.parametrize(
    "path",
    [
        "shards/zzz-000001.tar",
        "shards/painted-0000001.tar",
        "shards/holiday.tar",
        "shards/notes.txt",
        "shards/painted-000007.parquet",
        "records/000007.json",
        "records/readme.md",
    ],
)
def test_strangers_are_named_and_left_alone(store: Store, path: str) -> None:
    store.create(path, store.read(TAR))
    before = files_of(store)
    with pytest.raises(OutputError, match=rf"not this dataset's; move them elsewhere:\n  {path}$"):
        records_of(store, config_of(store.url))
    assert files_of(store) == before


def test_a_strangers_tar_of_a_later_shards_name_is_named_and_left_alone(store: Store) -> None:
    store.create("shards/painted-000099.tar", store.read(TAR))
    before = files_of(store)
    with pytest.raises(OutputError, match=r"painted-000099\.tar: is damaged: candidate 0 is seed 116 instead of 1684"):
        records_of(store, config_of(store.url))
    assert files_of(store) == before


def test_a_short_shard_among_full_ones_is_named(store: Store) -> None:
    config = config_of(store.url)
    with ThreadPoolExecutor(2) as threads:
        task = shard_tasks(config)[1].model_copy(update={"num_samples": 3})
        store.delete(TAR)
        publish(
            store,
            task,
            tar_of(samples_of(task, context_of(config).fingerprint), threads),
            context_of(config).fingerprint,
        )
    with pytest.raises(OutputError, match=r"shards/painted-000001\.tar: holds 3 samples instead of 4"):
        records_of(store, config)


def test_several_bad_shards_are_told_at_once(store: Store) -> None:
    for index in range(3):
        store.replace(f"shards/painted-{index:06d}.tar", b"")
    with pytest.raises(OutputError, match="3 shards cannot be used:") as error:
        records_of(store, config_of(store.url))
    assert str(error.value).count("painted-00000") == 3


def test_what_changes_while_a_run_goes_on_is_noticed_at_its_end(store: Store) -> None:
    config = config_of(store.url)
    records = records_of(store, config)
    check_listing(store, config, records)
    store.create("shards/painted-000003.tar", b"")
    with pytest.raises(OutputError, match=r"11 is less than the output holds: another driver has made .*-000003\.tar"):
        check_listing(store, config, records)
    store.delete("shards/painted-000003.tar")
    store.delete(TAR)
    with pytest.raises(OutputError, match=r"painted-000001\.tar: was deleted or changed while the run went on"):
        check_listing(store, config, records)
