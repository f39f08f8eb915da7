"""What the store promises, the same on a disk and in a bucket."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.store import Store, StoredFile


@pytest.fixture(params=["disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An output that does not exist yet, in a place that does."""
    if request.param == "disk":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('s3').create_bucket()}/a folder/out"


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


def test_a_large_file_comes_back(store: Store) -> None:
    content = bytes(range(251)) * 100_000
    assert store.create("shards/a.tar", content)
    store.replace("b", content[1:])
    assert store.read("shards/a.tar") == content and store.read("b") == content[1:]
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
