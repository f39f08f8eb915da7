"""Findings of `fit` in words, and whether masks made with them mean anything."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class LabelerFindings(BaseModel):
    """Judged without a true mask, from what `fit` measured on images of the generator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["sound", "doubtful", "weak"]
    """weak: nothing was found that a mask could show, as in an untrained generator; `generate` refuses it unless
    `quality.allow_weak_labeler` is true."""
    words: list[str]
    """Sentences for a person, one per line: what was found, how sure that is, and what to try."""
