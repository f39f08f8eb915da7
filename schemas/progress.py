"""`progress.json`: how far a run is, for other shells. Says nothing that the shards do not prove in the end."""

from pydantic import BaseModel, ConfigDict


class RunState(BaseModel):
    """A run at a moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: int
    """Samples in published shards, those of earlier runs too."""
    total: int
    """Samples asked for."""
    shards: int
    """Published ones, those of earlier runs too."""
    images_per_second: float
    """Mean since this run started."""
    eta_seconds: float | None
    dropped_by_reason: dict[str, int]
    seconds_by_stage: dict[str, float]
    """Sums over the shards that this run made."""
    workers: int
    """Workers that make shards now."""
    retries: int
    """Shards sent out again after a worker died or the store refused."""
    failures: dict[str, str]
    """Why each shard that was given up failed, by its name."""
    state: str
    """running, finished, interrupted or failed."""
    host: str
    process: int
    unix_time: float
    """When this was written: every 10 to 30 s while the run lives."""
