"""Photos of a folder: which there are, which of them nobody can read, and their pixels.

Shape suffixes: H height, W width, C channels.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.schemas.errors import LabelmillError

Pixels = NDArray[np.uint8]

PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class PhotoError(LabelmillError):
    """Photos that cannot be used. The message names the file."""


class UnreadablePhotosError(PhotoError):
    """Some photos cannot be read; all others were used. The message lists them."""

    exit_code = 3


@dataclass(frozen=True)
class Photos:
    """What a folder and its subfolders hold."""

    files: dict[str, Path]
    """Photos by their path below the folder, without ending, sorted. Their first bytes are an image's."""
    unreadable: tuple[str, ...]
    """Files that are called like photos but are none, or whose name another photo has, each with its reason."""
    skipped: dict[str, int]
    """Files of other endings, counted by ending."""

    @property
    def skipped_text(self) -> str:
        """What was left out, for people; empty if nothing."""
        counts = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in self.skipped.items())
        return f"skipped files that are not {', '.join(PHOTO_ENDINGS)}: {counts}" if counts else ""


def find_photos(folder: Path, leave_out: Path | None = None) -> Photos:
    """Photos of a folder and its subfolders. No pixel is decoded.

    leave_out: a folder below it that is not looked into. Raises PhotoError for a folder that cannot be read or holds no
    photo.
    """
    named: dict[str, list[Path]] = {}
    unreadable: list[str] = []
    skipped: Counter[str] = Counter()
    for path in files_below(folder, leave_out):
        if path.suffix.lower() not in PHOTO_ENDINGS:
            skipped[path.suffix.lower()] += 1
            continue
        problem = _problem(path)
        if problem is not None:
            unreadable.append(f"{path}: {problem}")
            continue
        named.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    if not named and not unreadable:
        raise PhotoError(f"{folder}: holds no photo; looked for {', '.join(PHOTO_ENDINGS)}")
    for paths in named.values():
        if len(paths) > 1:
            unreadable += [f"{path}: {paths[path == paths[0]].name} has the same name; rename one" for path in paths]
    files = {name: paths[0] for name, paths in sorted(named.items()) if len(paths) == 1}
    return Photos(files, tuple(unreadable), dict(sorted(skipped.items())))


def files_below(folder: Path, leave_out: Path | None = None) -> Iterator[Path]:
    """What is no folder, in a folder and its subfolders, sorted folder by folder; links are followed, each folder is
    looked into once. Hidden files, such as the `._photo.jpg` of macOS, and hidden folders are left out.

    Raises PhotoError for a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise PhotoError(f"{error.filename}: cannot be read: {error.strerror or error}") from error

    seen = set() if leave_out is None else {leave_out.resolve()}
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here = Path(place).resolve()
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def read_photo(path: Path) -> Pixels:
    """RGB [H, W, C] uint8, turned upright as its EXIF says. Raises PhotoError."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        image_HWC = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if content.size else None
    except cv2.error as error:
        raise PhotoError(f"{path}: has more pixels than OpenCV can read; shrink or remove it") from error
    if image_HWC is None:
        raise PhotoError(f"{path}: is not a readable image; repair or remove it")
    return np.asarray(image_HWC, np.uint8)


def _problem(path: Path) -> str | None:
    """Why a file is no photo, as far as its first bytes tell; None if they are an image's."""
    if not path.exists():
        return "is a link that leads nowhere"
    if not path.is_file():
        return "is not a file"
    try:
        with path.open("rb") as file:
            if not file.read(1):
                return "is empty"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return None if cv2.haveImageReader(str(path)) else "does not begin like an image; repair or remove it"
