"""What the store promises, the same on a disk and in buckets of two services."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.s3_server import Fault, S3Server

from labelmill.pipeline.store.store import Store, StoredFile, Version


@pytest.fixture(params=["disk", "s3", "gs"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output that does not exist yet, in a place that does."""
    if request.param == "disk":
        return str(tmp_path / "out")
    server: S3Server = request.getfixturevalue("s3")
    server.speaks_google = request.param == "gs"
    monkeypatch.setenv("GOOGLE_BASE_URL", server.endpoint)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "unchecked")
    return f"{request.param}{server.create_bucket().removeprefix('s3')}/a folder/out"


@pytest.fixture
def store(url: str) -> Store:
    return Store.open(url)


def test_open_and_read_create_nothing(store: Store, url: str) -> None:
    assert store.list() == [] and store.first_file() is None and not store.exists("a")
    store.delete("a")
    assert store.sweep_orphans(0) == 0
    with pytest.raises(FileNotFoundError, match=r"out/a$"):
        store.read("a")
    assert not Path(url).parent.exists() or list(Path(url).parent.iterdir()) == []
    assert Store.open(url.removesuffix("/out")).first_file() is None


def test_files_come_back(store: Store, url: str) -> None:
    assert store.create("shards/b.tar", b"first")
    assert not store.create("shards/b.tar", b"second")
    assert store.read("shards/b.tar") == b"first"
    store.replace("shards/b.tar", b"third!")
    store.replace("a.json", b"")
    store.create("shards/deep/c", b"c")
    store.create("shards-too/d", b"d")
    assert store.read("shards/b.tar") == b"third!"
    assert (
        store.list("shards") == store.list("shards/") == [StoredFile("shards/b.tar", 6), StoredFile("shards/deep/c", 1)]
    )
    assert [file.path for file in store.list()] == ["a.json", "shards-too/d", "shards/b.tar", "shards/deep/c"]
    assert store.first_file() in {file.path for file in store.list()}
    assert [file.path for file in Store.open(f"{url}/shards").list()] == ["b.tar", "deep/c"]
    store.delete("shards/b.tar")
    assert not store.exists("shards/b.tar") and store.exists("a.json") and not store.exists("shards")
    for missing in ("shards/b.tar", "shards"):
        with pytest.raises(FileNotFoundError):
            store.read(missing)
        with pytest.raises(FileNotFoundError):
            store.sha256(missing)


def test_a_large_file_comes_back(store: Store) -> None:
    content = bytes(range(251)) * 100_000
    assert store.create("shards/a.tar", content)
    store.replace("b", content[1:])
    assert store.read("shards/a.tar") == content and store.read("b") == content[1:]
    assert store.sha256("b") == hashlib.sha256(content[1:]).hexdigest()
    assert store.list() == [StoredFile("b", len(content) - 1), StoredFile("shards/a.tar", len(content))]


def test_a_race_to_create_has_one_winner(url: str) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    stores = [Store.open(url) for _ in contents]
    barrier = threading.Barrier(len(contents))

    def race(number: int, path: str) -> bool:
        barrier.wait()
        return stores[number].create(path, contents[number])

    with ThreadPoolExecutor(len(contents)) as threads:
        for path in [f"shards/{number}" for number in range(25)]:
            won = list(threads.map(race, range(len(contents)), [path] * len(contents)))
            assert won.count(True) == 1
            assert stores[0].read(path) == contents[won.index(True)]
    assert len(stores[0].list()) == 25


def test_a_claim_is_made_once(store: Store) -> None:
    assert store.claim("run.json", b"ours")
    assert not store.claim("run.json", b"theirs")
    assert [store.read(file.path) for file in store.list()] == [b"ours"]


def test_a_race_to_claim_has_one_winner(url: str) -> None:
    contents = [str(number).encode() for number in range(8)]
    with ThreadPoolExecutor(len(contents)) as threads:
        for path in [f"locks/{number}" for number in range(10)]:
            won = list(threads.map(Store.claim, [Store.open(url) for _ in contents], [path] * 8, contents))
            assert won.count(True) == 1
            assert Store.open(url).read(path) == contents[won.index(True)]
    assert len(Store.open(url).list()) == 10


def test_a_create_whose_answer_is_lost_is_still_the_winner(url: str, request: pytest.FixtureRequest) -> None:
    for fault in (Fault("answer", stored=True), Fault("cut", stored=True)):
        if "://" in url:  # a disk's answers are not lost
            request.getfixturevalue("s3").inject(fault, method="PUT")
        assert Store.open(url).create(fault.kind, b"ours")
        assert not Store.open(url).create(fault.kind, b"ours")


def test_a_swap_needs_the_version_that_it_replaces(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_versioned("latest")
    assert not store.compare_and_swap("latest", b"1", Version("0" * 32, "17"))
    assert store.compare_and_swap("latest", b"1", None)
    assert not store.compare_and_swap("latest", b"2", None)
    first = store.read_versioned("latest")
    assert first.data == b"1"
    assert store.compare_and_swap("latest", b"2", first.version)
    assert not store.compare_and_swap("latest", b"3", first.version)
    assert store.read("latest") == b"2"
    second = store.read_versioned("latest").version
    store.delete("latest")
    assert not store.compare_and_swap("latest", b"3", second)
    assert [file.path for file in store.list()] == [] and store.first_file() is None


def test_no_swap_is_lost(url: str) -> None:
    """Counting up from many threads: every number is given out once."""
    Store.open(url).create("count", b"0")

    def count(store: Store, times: int) -> list[int]:
        mine = []
        while len(mine) < times:
            found = store.read_versioned("count")
            number = int(found.data) + 1
            if store.compare_and_swap("count", str(number).encode(), found.version):
                mine.append(number)
        return mine

    with ThreadPoolExecutor(4) as threads:
        counted = list(threads.map(count, [Store.open(url) for _ in range(4)], [10] * 4))
    assert sorted(number for mine in counted for number in mine) == list(range(1, 41))
    assert Store.open(url).read("count") == b"40"


def test_a_swap_whose_answer_is_lost_is_still_the_winner(url: str, request: pytest.FixtureRequest) -> None:
    if "://" not in url:
        pytest.skip("a disk's answers are not lost")
    server: S3Server = request.getfixturevalue("s3")
    for fault in (Fault("answer", stored=True), Fault("cut", stored=True)):
        store = Store.open(url)
        store.replace(fault.kind, b"old")
        version = store.read_versioned(fault.kind).version
        server.inject(fault, method="PUT")
        assert store.compare_and_swap(fault.kind, b"ours", version)
        assert not store.compare_and_swap(fault.kind, b"theirs", version)


def test_folders_are_named_without_what_is_in_them(store: Store) -> None:
    assert store.folders() == store.folders("snapshots") == []
    for number in range(7):
        store.create(f"snapshots/night-{number}/shards/a", b"")
    store.create("snapshots/file", b"")
    store.create("snapshots-too/a", b"")
    assert store.folders("snapshots") == [f"night-{number}" for number in range(7)]
    assert store.folders() == ["snapshots", "snapshots-too"]
