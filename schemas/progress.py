"""`progress.json`: a run's progress, for other shells. The shards themselves are the proof."""

from pydantic import BaseModel, ConfigDict


class RunState(BaseModel):
    """State of a run at one moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: int
    """Samples in published shards, including those of earlier runs."""
    total: int
    """Samples that the dataset will have."""
    shards: int
    """Published shards, including those of earlier runs."""
    images_per_second: float
    """Mean since this run started."""
    eta_seconds: float | None
    dropped_by_reason: dict[str, int]
    seconds_by_stage: dict[str, float]
    """Sums over the shards that this run made."""
    workers: int
    """Workers making shards now."""
    retries: int
    """Shards sent out again after a worker died or the store refused."""
    failures: dict[str, str]
    """Reason of failure per shard that was given up, by shard name."""
    state: str
    """running, finished, interrupted or failed."""
    host: str
    process: int
    unix_time: float
    """Time of writing: every 10 to 30 s while the run is alive."""
