"""What a nightly root holds beside its snapshots: latest.json and lock.json; and gates.json in each snapshot."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latest(_File):
    """`latest.json`: the snapshot that is live, and what else must be decided together with it.

    Every change is one compare-and-swap of this file, so none is ever based on an older state of it.
    """

    format: Literal["labelmill-latest"] = "labelmill-latest"
    generation: int = 0
    """The lock's number when this was last written. It never falls: what carries a lower one is refused."""
    snapshot: str | None = None
    """The live snapshot, a folder under snapshots/; null before the first one."""
    published: str | None = None
    """When it became so, UTC, ISO 8601."""
    succeeded: str | None = None
    """When a night last ended well, be it that it published a snapshot or that there was nothing new to make; not
    renewed by a night before the live one, which makes nothing."""
    history: tuple[str, ...] = ()
    """Snapshots that were live before, the last one first: what a rollback goes back to."""
    withdrawn: tuple[str, ...] = ()
    """Snapshots that a rollback left. They are not published again by themselves."""
    pins: tuple[str, ...] = ()
    """Snapshots that are never deleted."""
    retiring: tuple[str, ...] = ()
    """Snapshots that are being deleted: nobody may turn to them any more."""


class LockFile(_File):
    """`lock.json`: which run works on this root. Never deleted, so that its number goes on."""

    format: Literal["labelmill-lock"] = "labelmill-lock"
    generation: int = 0
    """Counts the runs that had the lock: the fencing token that latest.json asks for."""
    owner: str | None = None
    """The run that has the lock, by machine, process and a random number; null when it is free."""
    heartbeat: float = 0.0
    """When it last said that it lives, in seconds since 1970."""
    expires: float = 0.0
    """From then on another run may take the lock."""


class Measures(_File):
    """A snapshot in figures. Over all of its samples, but for near duplicates."""

    num_samples: int
    class_pixels: dict[str, int]
    """By class, and for `ignore`."""
    foreground_histogram: tuple[int, ...]
    """Samples by the foreground's share of the image, in equal bins over [0, 1]."""
    empty_masks: float
    """Share of masks without a foreground pixel."""
    confidence: float
    """Mean of the labeler's confidence."""
    brightness: float
    """Mean pixel value over all channels, in [0, 1]."""
    contrast: float
    """Root mean square over channels of the standard deviation of pixel values."""
    near_duplicates: float
    """Share of the sampled images that look like another one of them."""
    num_sampled: int
    image_bytes: float
    """Bytes a sample: image, mask and metadata with their tar headers."""
    throughput: float | None
    """Samples a second of work, summed over workers and stages; null where no shard tells its times."""


class GateResult(_File):
    """One gate's verdict."""

    name: str
    verdict: Literal["passed", "failed", "skipped", "off"]
    tonight: float | None
    """What is compared, where it is one number."""
    live: float | None
    value: float | None
    """The gate's value: higher is worse. null where there is nothing to compare, or no finite one."""
    limit: float | None
    """The highest value that passes."""
    meaning: str
    """What the value is, in words; and why a gate was skipped."""


class GateReport(_File):
    """`gates.json` of a snapshot: whether it may be live, and why."""

    format: Literal["labelmill-gates"] = "labelmill-gates"
    snapshot: str
    live: str | None
    """The snapshot that it was compared with."""
    passed: bool
    problems: tuple[str, ...]
    """What verification found; gates are not asked then."""
    results: tuple[GateResult, ...]
    tonight: Measures | None
    live_measures: Measures | None
    judged: str
    """When, UTC, ISO 8601."""
