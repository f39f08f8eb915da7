"""What is half-written is never seen."""

from pathlib import Path

import pytest

from labelmill.pipeline.process.files import made_whole, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_into_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        write_atomically(tmp_path / "a" / "file", content)
        assert (tmp_path / "a" / "file").read_bytes() == content
    assert names(tmp_path / "a") == ["file"]


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with made_whole(tmp_path / "cache" / "folder") as unfinished:
        unfinished.mkdir()
        (unfinished / "part").write_bytes(b"1")
        assert not (tmp_path / "cache" / "folder").exists()
    assert names(tmp_path / "cache") == ["folder"] and names(tmp_path / "cache" / "folder") == ["part"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_fails_half_way_leaves_nothing(is_folder: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(KeyError), made_whole(tmp_path / ("folder" if is_folder else "file")) as unfinished:
        if is_folder:
            unfinished.mkdir()
        (unfinished / "part" if is_folder else unfinished).write_bytes(b"new")
        raise KeyError
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"old"
