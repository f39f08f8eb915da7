"""Where a fit keeps what it resumes from."""

import os
from pathlib import Path

import pytest
from helpers.s3_server import S3Server

from labelmill.pipeline.store.store import Store
from labelmill.workers.fit_folder import fit_folder, forget_fit

IDENTITY = {"name": "a"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


class _KilledError(Exception):
    pass


def _interrupted(store: Store, identity: dict[str, str], text: str) -> Path:
    """The folder of a fit that leaves a file there and does not come to its end."""
    with pytest.raises(_KilledError), fit_folder(store, identity) as work:
        (work / "state").write_text(text)
        raise _KilledError
    return work


def test_what_an_interrupted_fit_left_is_there_again_until_one_ends(store: Store, tmp_path: Path) -> None:
    _interrupted(store, IDENTITY, "half")
    with fit_folder(store, IDENTITY) as work:
        assert (work / "state").read_text() == "half"
    assert not work.exists() and list((tmp_path / "out").iterdir()) == []


def test_a_fit_that_keeps_nothing_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(_KilledError), fit_folder(store, IDENTITY):
        raise _KilledError
    assert list((tmp_path / "out").iterdir()) == []


def test_two_at_once_do_not_share_a_folder(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with fit_folder(store, IDENTITY) as first, fit_folder(store, IDENTITY) as second:
        assert first != second and not list(second.iterdir())
        assert "is in use or cannot be written; this fit could not be resumed" in capsys.readouterr().err
        forget_fit(store, IDENTITY)
        assert first.exists()
    assert not first.exists() and not second.exists()


def test_a_user_without_a_home_folder_or_cache_fits_for_a_bucket_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open("s3://bucket/prefix")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with fit_folder(store, IDENTITY) as work:
        assert work.is_dir()
    assert "cannot be written" in capsys.readouterr().err
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it gives where no home is known
    forget_fit(store, IDENTITY)
    with fit_folder(store, IDENTITY) as work:
        assert work.is_dir()
    assert "no home folder is known; this fit could not be resumed" in capsys.readouterr().err


def test_a_cache_that_cannot_be_looked_into_holds_nothing_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/" + 300 * "n")  # longer than a name may be
    forget_fit(Store.open("s3://bucket/prefix"), IDENTITY)


def test_what_is_left_of_a_published_fit_is_deleted(store: Store) -> None:
    work = _interrupted(store, IDENTITY, "whole")
    forget_fit(store, IDENTITY)
    assert not work.exists()
    forget_fit(store, IDENTITY)
    assert not work.exists()


def test_of_a_bucket_it_is_the_users_cache_that_has_a_folder_for_each_run(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = Store.open(f"{s3.create_bucket()}/out")
    one, other = (_interrupted(bucket, {"name": name}, name) for name in "ab")
    assert one != other and one.parent == other.parent == tmp_path / "cache" / "labelmill"
    with fit_folder(bucket, {"name": "b"}) as work:
        assert (work / "state").read_text() == "b"
    assert one.exists() and not other.exists() and bucket.list() == []


def test_a_cache_that_cannot_be_written_is_no_reason_not_to_fit(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fit_folder(Store.open(f"{s3.create_bucket()}/out"), IDENTITY) as work:
        (work / "state").write_text("here")
    assert not work.exists()
