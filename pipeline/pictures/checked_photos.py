"""Photos that can be used, and all others with their reasons, before any work."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labelmill.pipeline.pictures.photos import PhotoError, UnreadablePhotosError, find_photos, read_photo


@dataclass(frozen=True)
class CheckedPhoto:
    """A photo that was decoded once."""

    name: str
    """Its path below the folder, without ending."""
    file: Path
    sha256: str
    size: tuple[int, int]
    """Height and width, upright."""


@dataclass(frozen=True)
class CheckedPhotos:
    """A folder's photos."""

    folder: Path
    good: tuple[CheckedPhoto, ...]
    problems: tuple[str, ...]

    def raise_problems(self, done: str, failed: tuple[str, ...] = ()) -> None:
        """Raises UnreadablePhotosError if there are any, once the others are done. done: what is where now, as the
        end of a sentence about the others; failed: what went wrong meanwhile."""
        problems = [*self.problems, *failed]
        if problems:
            count = len(self.good) + len(self.problems)
            head = f"{self.folder}: {len(problems)} of {count} photos cannot be used; {done}:"
            raise UnreadablePhotosError("\n  ".join([head, *problems]))


ShapeProblem = Callable[[int, int], str | None]
"""Why a photo of this height and width cannot be used; None if it can."""


def any_shape(height: int, width: int) -> None:
    """No shape is a problem."""


def check_photos(
    folder: Path, leave_out: Path, tell: Callable[[str], None], shape_problem: ShapeProblem = any_shape
) -> CheckedPhotos:
    """Decode every photo of a folder. leave_out: a folder that is not looked into. tell: gets a line for each file
    that cannot be used, and for files of other endings.

    Raises PhotoError where there is no photo at all, and UnreadablePhotosError where none can be used.
    """
    if leave_out.resolve() == folder.resolve():
        raise PhotoError(f"{leave_out}: is the folder of the photos, whose files it could replace; choose another one")
    found = find_photos(folder, leave_out=leave_out)
    good, problems = [], list(found.unreadable)
    for name, file in found.files.items():
        try:
            good.append(_checked(name, file, shape_problem))
        except PhotoError as error:
            problems.append(str(error))
    for line in (*([found.skipped_text] if found.skipped else []), *problems):
        tell(line)
    photos = CheckedPhotos(folder, tuple(good), tuple(problems))
    if not good:
        photos.raise_problems("there are no others")
    return photos


def _checked(name: str, file: Path, shape_problem: ShapeProblem) -> CheckedPhoto:
    height, width = read_photo(file).shape[:2]
    problem = shape_problem(height, width)
    if problem is not None:
        raise PhotoError(f"{file}: {problem}")
    return CheckedPhoto(name, file, hashlib.sha256(file.read_bytes()).hexdigest(), (height, width))
