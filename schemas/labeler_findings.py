"""What `fit` found, in words, and whether masks made with it mean anything."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class LabelerFindings(BaseModel):
    """Judged without a true mask, from what `fit` measured on images of the generator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["sound", "doubtful", "weak"]
    """weak: nothing was found that a mask could mean, as in an untrained generator; `generate` refuses it unless
    `quality.allow_weak_labeler` says otherwise."""
    words: list[str]
    """For a person, a line each: what was found, how sure that is, and what to try."""
