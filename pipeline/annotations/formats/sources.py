"""The files that a person names: themselves, what folders hold, and the members of zip archives, which are never
unpacked. Nothing is read whose size is not known to be small enough."""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from labelmill.pipeline.annotations.formats.drawn import BadShapeError, Findings
from labelmill.schemas.regular_file import read_regular_file

_MOST_BYTES = 128 * 2**20
"""Of one file, unpacked."""
_MOST_FILES = 50_000
_MOST_TOTAL = 4 * 2**30
"""Of an archive, unpacked."""
_INSTANCES = "SegmentationObject"
"""Folder of CVAT's and Pascal VOC's instances, whose colours are of no class."""


@dataclass(frozen=True)
class Source:
    """One file."""

    name: str
    """Its path, below the archive's where it lies in one."""
    collection: str
    """The archive or folder that it came with; empty where it was named itself."""
    read: Callable[[], bytes]
    """Raises BadShapeError where it cannot be read."""

    @property
    def stem(self) -> str:
        """Its name without folders and ending."""
        return PurePosixPath(self.name).stem

    def is_below(self, folder: Path) -> bool:
        """Whether it lies in a folder."""
        return Path(self.name).resolve().is_relative_to(folder)


def find_sources(paths: Sequence[Path], findings: Findings) -> Iterator[Source]:
    """All files, folder by folder in order, hidden ones left out. What cannot be looked into goes to `findings`."""
    for path in paths:
        with findings.of(str(path)):
            yield from _of_path(path)


def _of_path(path: Path) -> Iterator[Source]:
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file.relative_to(path))]
        if len(files) > _MOST_FILES:
            raise BadShapeError(f"holds {len(files):,} files; name those that are meant")
        for file in files:
            yield Source(str(file), str(path), partial(_read, file))
    elif not path.exists():
        raise BadShapeError("does not exist")
    elif zipfile.is_zipfile(path):
        yield from _of_archive(path)
    else:
        yield Source(str(path), "", partial(_read, path))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in ("__MACOSX", _INSTANCES) for part in path.parts)


def _read(path: Path) -> bytes:
    try:
        return read_regular_file(path, _MOST_BYTES)
    except OSError as error:
        raise BadShapeError(f"cannot be read: {error.strerror or error}") from None


def _of_archive(path: Path) -> Iterator[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BadShapeError(f"is a damaged zip archive: {error}") from None
    members = [member for member in members if not _is_hidden(Path(member.filename))]
    total = sum(member.file_size for member in members)
    if len(members) > _MOST_FILES or total > _MOST_TOTAL:
        raise BadShapeError(f"holds {len(members):,} files of {total:,} bytes in all, which is too much")
    for member in sorted(members, key=lambda each: each.filename):
        yield Source(f"{path}/{member.filename}", str(path), partial(_read_member, path, member))


def _read_member(path: Path, member: zipfile.ZipInfo) -> bytes:
    """A member's content, of which no more is unpacked than its header states."""
    if member.file_size > _MOST_BYTES:
        raise BadShapeError(f"has {member.file_size:,} bytes; at most {_MOST_BYTES:,} are read")
    if member.flag_bits & 1:
        raise BadShapeError("is encrypted")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            content = stream.read(member.file_size + 1)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise BadShapeError(f"cannot be unpacked: {error}") from None
    if len(content) != member.file_size:
        raise BadShapeError("is not as long as its archive states")
    return content
