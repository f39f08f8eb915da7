"""The run file's section of the toy labeler: what is brighter than usual is `bright`."""

from typing import Literal

from pydantic import Field

from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, Section


class ToyConfig(Section):
    """Masks by brightness."""

    method: Literal["toy"]
    """Name of the labeling method."""
    bias: str = Field(pattern=PRINTABLE)
    """Path of a text file with a number that is added to the mean brightness."""
    steps: int = Field(4, ge=1)
    """Images that `fit` looks at, one a step."""
    seconds_per_step: float = Field(0, ge=0)
    """A step takes so long."""
    first_seed: int = Field(4_000_000_000, ge=0, lt=SEED_LIMIT)
    """Seeds of those images count up from here."""
