"""The store on a real disk: all or nothing, whatever kills it, and clear words for what cannot be."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labelmill.pipeline.store import local_folder
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


def visible(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_folder_is_known(store: Store, tmp_path: Path) -> None:
    store.create("a.json", b"")
    assert store.folder == tmp_path / "out"
    assert Store.open(f"file://{tmp_path}/out").read("a.json") == b""


_ENDLESS_WRITER = """
import sys
from labelmill.pipeline.store.store import Store
store = Store.open(sys.argv[1])
for number in range(10**9):
    content = bytes([number % 251]) * 20_000_000
    store.create(f"shards/{number:06d}", content)
    store.replace("latest", content)
    print(number, flush=True)
"""


def test_sigkill_leaves_no_file_half_written(tmp_path: Path) -> None:
    output = tmp_path / "out"
    moments = random.Random(3)
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS_WRITER, str(output)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None and writer.stdout.readline()  # it is at work
        time.sleep(moments.uniform(0, 0.08))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        store = Store.open(str(output))
        for file in store.list():
            content = store.read(file.path)
            assert len(content) == 20_000_000 and content == content[:1] * len(content), file.path
        for file in store.list("shards"):
            store.delete(file.path)
    # A killed put leaves its staging file, which no listing shows; it goes once it is old.
    (output / "shards" / "a#1").write_bytes(b"staged")
    num_orphans = sum("#" in name for name in visible(output))
    assert store.list("shards") == []
    assert store.sweep_orphans(3600) == 0
    assert store.sweep_orphans(-1) == num_orphans
    assert visible(output) == ["latest"]


def test_sweep_takes_only_old_staging_files(store: Store, tmp_path: Path) -> None:
    store.create("shards/a", b"a")
    shards, old = tmp_path / "out" / "shards", time.time() - 100
    for name in ("a#1", "a#22", "a#1b", "#7", "b"):
        (shards / name).write_bytes(b"")
        os.utime(shards / name, (old, old))
    (shards / "young#1").write_bytes(b"")
    assert store.sweep_orphans(50) == 2
    assert visible(shards) == ["#7", "a", "a#1b", "b", "young#1"]


def test_a_driver_whose_clock_is_ahead_sweeps_nothing_young(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own clock dates files, wherever the driver is."""
    store.create("shards/a", b"a")
    staging = tmp_path / "out" / "shards" / "b#1"
    staging.write_bytes(b"in progress")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert store.sweep_orphans(3600) == 0
    assert visible(tmp_path / "out") == ["shards/a", "shards/b#1"]
    assert store.sweep_orphans(0) == 1 and not staging.exists()


def test_what_is_written_is_pushed_to_the_disk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", watched)
    output = tmp_path / "out"
    store.create("shards/a", b"a")
    assert flushed == [str(output / "shards" / "a"), str(output / "shards"), str(output)]
    store.replace("b", b"b")
    assert flushed[3:] == [str(output / "b"), str(output)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_explained_and_leaves_nothing_behind(small_disk: Path) -> None:
    store = Store.open(str(small_disk / "out"))
    store.create("old", b"old")
    explained = r"out/{}: cannot be written: the disk is full\. Free some space and rerun the same command to resume"
    with pytest.raises(OutputError, match=explained.format("shards/a.tar")):
        store.create("shards/a.tar", b"x" * 3_000_000)
    with pytest.raises(OutputError, match=explained.format("old")):
        store.replace("old", b"x" * 3_000_000)
    assert visible(small_disk) == ["out/old"]
    assert store.read("old") == b"old"
    assert store.create("shards/a.tar", b"x" * 300_000)


def test_a_read_only_file_system_is_explained(small_disk: Path) -> None:
    store = Store.open(str(small_disk / "out"))
    store.create("old", b"old")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OutputError, match="out/new: cannot be written: the file system is read-only"):
        store.create("new", b"")
    with pytest.raises(OutputError, match="out/old: cannot be deleted: the file system is read-only"):
        store.delete("old")
    with pytest.raises(OutputError, match="cannot be written: the file system is read-only"):
        Store.open(str(small_disk / "other")).create("new", b"")
    assert store.read("old") == b"old"


_LIMITED_WRITER = """
import resource, sys
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Store.open(sys.argv[1]).create("shards/a.tar", b"x" * 300_000)
except OutputError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_explained(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED_WRITER, str(tmp_path / "out")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "out/shards/a.tar: cannot be written: it would pass the system's limit on file sizes" in said
    assert visible(tmp_path) == []


@pytest.fixture
def forbidden_folder() -> Iterator[Path]:
    """A folder that may be read, not written, by this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        folder.mkdir()
        (folder / "old").write_bytes(b"old")
        (folder / "secret").mkdir(0o700)
        Path(name).chmod(0o755)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        try:
            if is_root:
                os.seteuid(NOBODY)
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_missing_permission_is_explained(forbidden_folder: Path) -> None:
    store = Store.open(str(forbidden_folder))
    explained = "cannot be written: no permission. Make the folder writable for this user, or choose another output"
    for path in ("new", "old", "shards/new"):
        with pytest.raises(OutputError, match=f"out/{path}: {explained}"):
            store.replace(path, b"")
    with pytest.raises(OutputError, match=explained):
        store.create("new", b"")
    with pytest.raises(OutputError, match="other/new: cannot be written: no permission"):
        Store.open(str(forbidden_folder / "other")).create("new", b"")
    assert store.read("old") == b"old"
    if os.getuid() == 0:
        with pytest.raises(OutputError, match="inner: cannot be read: no permission"):
            Store.open(str(forbidden_folder / "secret" / "inner"))


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OutputError, match="file: is a file; the output must be a folder"):
        Store.open(str(tmp_path / "file"))
    with pytest.raises(OutputError, match="a part of the path is a file"):
        Store.open(str(tmp_path / "file" / "below")).create("a", b"")
    assert visible(tmp_path) == ["file"]


_STOPPED_SWAPPER = """
import os, signal, sys
from labelmill.pipeline.store.local_folder import LocalFolder
from labelmill.pipeline.store.store import Store
store = Store.open(sys.argv[1])
version = store.read_versioned("latest").version
LocalFolder.replace = lambda *args: os.kill(os.getpid(), int(sys.argv[2]))
store.compare_and_swap("latest", b"theirs", version)
"""


def test_a_process_that_ends_in_the_middle_of_a_swap_leaves_the_way_free(store: Store) -> None:
    store.create("latest", b"old")
    command = [sys.executable, "-c", _STOPPED_SWAPPER, store.url, str(int(signal.SIGKILL))]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert store.compare_and_swap("latest", b"ours", store.read_versioned("latest").version)


def test_a_process_that_is_stopped_in_the_middle_of_a_swap_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("latest", b"old")
    monkeypatch.setattr(local_folder, "_SWAP_SECONDS", 0.2)
    stopped = subprocess.Popen([sys.executable, "-c", _STOPPED_SWAPPER, store.url, str(int(signal.SIGSTOP))], cwd=ROOT)
    try:
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)
        with pytest.raises(OutputError, match="out/latest: cannot be written: another process has kept it locked"):
            store.compare_and_swap("latest", b"ours", store.read_versioned("latest").version)
    finally:
        stopped.kill()
        stopped.wait()
    assert store.read("latest") == b"old"
