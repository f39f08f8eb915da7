"""What every part of a run file has in common: the base class of its sections, and limits that several of them have."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationInfo, model_validator

# NumPy's RandomState, which NVIDIA's tools draw latents from, takes seeds below 2^32.
SEED_LIMIT = 2**32

# A path or URL: not empty, no control characters.
PRINTABLE = r"^[^\x00-\x1f]+$"


def check_seed_range(name: str, first: int, count: int) -> None:
    """Raises ValueError where seeds that count up from `first` would pass the limit. name: of the field."""
    if first + count > SEED_LIMIT:
        raise ValueError(
            f"{name} {first} plus {count} seeds passes 2^32, the limit of seeds; "
            f"{name} may be at most {max(0, SEED_LIMIT - count)}"
        )


class Section(BaseModel):
    """A part of a run file: frozen, strict about its keys, fields documented beneath them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LocatedSection(Section):
    """A section with paths of files to read, which begin in the folder of the file that the section stands in.

    They stay as they are written: where a run file lies is no part of its run.
    """

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _keep_folder(self, info: ValidationInfo) -> Self:
        self._folder = folder_of(info)
        return self

    @property
    def folder(self) -> Path:
        """Where relative paths begin."""
        return self._folder

    def absolute(self) -> Self:
        """The same section for a process that stands in another folder."""
        moved = self.model_copy()
        moved._folder = self._folder.absolute()
        return moved


def folder_of(info: ValidationInfo) -> Path:
    """The folder of the file that is being read; the working directory where none is."""
    context = info.context or {}
    return Path(context.get("folder", ""))
