"""What the promise benchmark measures, as it is kept."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromiseSettings(_Record):
    """What the results go with."""

    checkpoint: str
    checkpoint_sha256: str
    resolution: int
    labeler: str
    judge: str
    num_pool: int
    """Labeled images that calibration sets are drawn from, and the others are scored on."""
    num_redraws: int
    versions: dict[str, str]


class PromiseRow(_Record):
    """One promise at one truncation, over all redraws."""

    truncation_psi: float
    miou: float
    risk: float
    num_masks: int
    below: float
    """Share of all images whose masks are below `miou`."""
    num_refused: int
    """Redraws whose masks did not carry the promise."""
    risk_found: float
    """Mean over redraws of the share of kept images that are below; 0 for a refused one, which keeps nothing."""
    risk_of_kept: float
    """The same mean over the redraws that were not refused."""
    highest: float
    """The share that a tenth of those redraws exceed."""
    kept: float
    """Mean share of the images that would be kept without the promise which it keeps, over the same redraws."""


class PromiseBenchmark(_Record):
    """`promise.json`."""

    format: Literal["labelmill-promise-benchmark"] = "labelmill-promise-benchmark"
    settings: PromiseSettings
    rows: tuple[PromiseRow, ...]
