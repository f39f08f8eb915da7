"""SIGKILL at every write of a night: what is live is whole at each moment, and the next run finishes the night."""

import shutil
import signal
from datetime import date
from pathlib import Path

import pytest
from helpers.nightly_runs import ANYTHING_PASSES, Trap, check_live, finish, nightly_config, start_night
from helpers.s3_server import S3Server

from labelmill.pipeline.dataset.manifest import MANIFEST_PATH
from labelmill.pipeline.nightly.latest import read_latest
from labelmill.pipeline.nightly.lock import read_lock
from labelmill.pipeline.nightly.snapshots import list_snapshots, open_snapshot
from labelmill.pipeline.store.store import Store
from labelmill.schemas.nightly import NightlyConfig
from labelmill.workers.nightly import run_night

NOON = 1_800_000_000.0
LATER = NOON + 61
SECOND_NIGHT = "2026-11-02"


def config_of(checkpoint: Path, root: str, first_seed: int) -> NightlyConfig:
    return nightly_config(
        checkpoint,
        root,
        gates=ANYTHING_PASSES,
        retention={"keep_last": 1, "keep_rejected": 0},
        run={"dataset": {"first_seed": first_seed}},
    )


@pytest.fixture(scope="module")
def template(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose first night is live."""
    root = tmp_path_factory.mktemp("template") / "root"
    run_night(config_of(tiny_checkpoint, str(root), 0), date(2026, 11, 1), lambda: NOON)
    return root


@pytest.fixture(scope="module")
def made(template: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and a second night that was killed when its snapshot was whole, before it was judged."""
    root = tmp_path_factory.mktemp("made") / "root"
    shutil.copytree(template, root)
    config = config_of(tiny_checkpoint, str(root), 500)
    trap = Trap(0, path=r"replace .*gates\.html")
    assert finish(start_night(config, SECOND_NIGHT, NOON, trap=trap)) == -signal.SIGKILL
    return root


@pytest.fixture(scope="module")
def writes(made: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The writes of the run that publishes what is made, in order."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(made, folder / "root")
    config = config_of(tiny_checkpoint, str(folder / "root"), 500)
    assert finish(start_night(config, SECOND_NIGHT, LATER, log=folder / "log")) == 0
    return (folder / "log").read_text().splitlines()


def check_finished(root: Store, first: str, second: str) -> None:
    """The end of an undisturbed second night."""
    assert check_live(root, deep=True) == second
    latest, lock = read_latest(root), read_lock(root)[0]
    assert (latest.history, latest.withdrawn, latest.retiring) == ((), (), ())
    assert lock.owner is None and lock.generation == latest.generation
    assert [snapshot.name for snapshot in list_snapshots(root)] == [second]
    assert root.list(f"snapshots/{first}") == []


def test_the_writes_of_a_night_are_in_the_right_order(writes: list[str], made: Path) -> None:
    first, second = (snapshot.name for snapshot in list_snapshots(Store.open(str(made))))
    order = [
        "compare_and_swap lock.json",
        "compare_and_swap latest.json",  # the fence
        f"replace snapshots/{second}/gates.html",
        f"replace snapshots/{second}/gates.json",
        "compare_and_swap latest.json",  # publication
        "compare_and_swap latest.json",  # what is to be deleted
        f"delete snapshots/{first}/{MANIFEST_PATH}",
        f"delete snapshots/{first}/run.json",
        "compare_and_swap latest.json",  # that it is
        "compare_and_swap lock.json",
    ]
    remaining = iter(writes)
    assert all(write in remaining for write in order)
    deleted = [write for write in writes if write.startswith("delete")]
    assert deleted[0].endswith(MANIFEST_PATH) and deleted[-1].endswith("run.json")
    assert all(f"snapshots/{first}/" in write for write in deleted)


# More than the run makes, so that none is left out.
@pytest.mark.parametrize("number", range(34))
def test_killed_at_every_write_of_publication(
    number: int, writes: list[str], made: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert len(writes) <= 33
    shutil.copytree(made, tmp_path / "root")
    config, root = config_of(tiny_checkpoint, str(tmp_path / "root"), 500), Store.open(str(tmp_path / "root"))
    first, second = (snapshot.name for snapshot in list_snapshots(root))
    status = finish(start_night(config, SECOND_NIGHT, LATER, trap=Trap(number)))
    assert status == (-signal.SIGKILL if number < len(writes) else 0)
    published = [index for index, write in enumerate(writes) if write == "compare_and_swap latest.json"][1]
    assert check_live(root) == (second if number > published else first)
    for snapshot in list_snapshots(root):  # a folder with a manifest is a whole dataset
        if snapshot.state != "unfinished":
            assert len(open_snapshot(root, snapshot.name).list("shards")) == 4
    run_night(config, date.fromisoformat(SECOND_NIGHT), lambda: LATER + 61)
    check_finished(root, first, second)


def copy_of(template: Path, place: str, tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    if place == "disk":
        shutil.copytree(template, tmp_path / "root")
        return Store.open(str(tmp_path / "root"))
    server: S3Server = request.getfixturevalue("s3")
    copy = Store.open(f"{server.create_bucket()}/nightly")
    original = Store.open(str(template))
    for file in original.list():
        copy.create(file.path, original.read(file.path))
    return copy


def test_what_was_half_deleted_is_made_again_when_it_is_wanted_again(
    made: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The configuration is changed back to that of the snapshot whose deletion was killed."""
    shutil.copytree(made, tmp_path / "root")
    config, root = config_of(tiny_checkpoint, str(tmp_path / "root"), 500), Store.open(str(tmp_path / "root"))
    first, second = (snapshot.name for snapshot in list_snapshots(root))
    trap = Trap(5, path="delete ")
    assert finish(start_night(config, SECOND_NIGHT, LATER, trap=trap)) == -signal.SIGKILL
    assert read_latest(root).retiring == (first,)
    back = config_of(tiny_checkpoint, config.root, 0)
    third = run_night(back, date(2026, 11, 3), lambda: LATER + 61).snapshot
    assert third == first.replace("2026-11-01", "2026-11-03")
    check_finished(root, second, third)


@pytest.mark.parametrize(
    ("place", "trap"),
    [
        ("disk", Trap(0, path="lock.json", after=True)),
        ("disk", Trap(0, path="create .*run.json", after=True)),
        ("s3", Trap(1, path=r"create .*\.tar")),
        ("disk", Trap(1, path=r"create .*\.tar", after=True)),
        ("disk", Trap(0, path=rf"swap .*{MANIFEST_PATH}")),
        ("s3", Trap(0, path=rf"swap .*{MANIFEST_PATH}", after=True)),
        ("s3", Trap(1, path="swap latest.json")),
        ("s3", Trap(1, path="swap latest.json", after=True)),
        ("s3", Trap(3, path="delete ")),
    ],
    ids=str,
)
def test_killed_in_a_night_from_its_beginning(
    place: str, trap: Trap, template: Path, tiny_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = copy_of(template, place, tmp_path, request)
    environment = {} if place == "disk" else request.getfixturevalue("s3").environment
    config = config_of(tiny_checkpoint, root.url, 500)
    first = read_latest(root).snapshot
    killed = start_night(config, SECOND_NIGHT, NOON, trap=trap, environment=environment)
    assert finish(killed) == -signal.SIGKILL
    live = check_live(root)
    is_published = trap.path == "delete " or ("latest" in trap.path and trap.after)
    assert (live != first) == is_published
    run_night(config, date.fromisoformat(SECOND_NIGHT), lambda: LATER)
    second = check_live(root)
    assert first is not None and second is not None and first != second
    check_finished(root, first, second)
