"""Files of a nightly root besides its snapshots: latest.json and lock.json; and gates.json in each snapshot."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from labelmill.schemas.sample import OptionalFile


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latest(_File):
    """`latest.json`: the live snapshot, and everything that must be decided together with it.

    Every change is one compare-and-swap of this file, so none is ever based on an older state of it.
    """

    format: Literal["labelmill-latest"] = "labelmill-latest"
    generation: int = 0
    """The lock's number at the last write. It never falls: a write with a lower number is refused."""
    snapshot: str | None = None
    """The live snapshot, a folder under snapshots/; null before the first one."""
    published: str | None = None
    """Time when it became live, UTC, ISO 8601."""
    succeeded: str | None = None
    """Time when a night last ended well, whether it published a snapshot or had nothing new to make; not renewed by a
    night before the live one, which makes nothing."""
    history: tuple[str, ...] = ()
    """Snapshots that were live before, the latest first: a rollback returns to these."""
    withdrawn: tuple[str, ...] = ()
    """Snapshots that a rollback left. No night publishes them again."""
    pins: tuple[str, ...] = ()
    """Snapshots that are never deleted."""
    retiring: tuple[str, ...] = ()
    """Snapshots that are being deleted and must no longer be used."""


class LockFile(_File):
    """`lock.json`: the run that works on this root. Never deleted, so that its number keeps rising."""

    format: Literal["labelmill-lock"] = "labelmill-lock"
    generation: int = 0
    """Number of runs that have had the lock: the fencing token that latest.json checks."""
    owner: str | None = None
    """The run that has the lock, by machine, process and a random number; null when it is free."""
    heartbeat: float = 0.0
    """Time when the owner last renewed the lock, in seconds since 1970."""
    expires: float = 0.0
    """Time from which another run may take the lock, in seconds since 1970."""


class Measures(_File):
    """Measures of a snapshot. All except near duplicates cover all samples."""

    num_samples: int
    optional_files: tuple[OptionalFile, ...] = ()
    """Optional files of every sample, such as alpha.png."""
    class_pixels: dict[str, int]
    """Pixels per class, and for `ignore`."""
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
    """Share of the sampled images that look like another of them."""
    num_sampled: int
    image_bytes: float
    """Bytes per sample: image, mask and metadata with their tar headers."""
    throughput: float | None
    """Samples per second of work, summed over workers and stages; null if no shard has times."""


class GateResult(_File):
    """One gate's verdict."""

    name: str
    verdict: Literal["passed", "failed", "skipped", "off"]
    tonight: float | None
    """Tonight's measure, if it is one number."""
    live: float | None
    value: float | None
    """The gate's value: higher is worse. null if there is nothing to compare, or no finite value."""
    limit: float | None
    """The highest value that passes."""
    meaning: str
    """Description of the value, and the reason if a gate was skipped."""


class GateReport(_File):
    """`gates.json` of a snapshot: whether it may become live, and why."""

    format: Literal["labelmill-gates"] = "labelmill-gates"
    snapshot: str
    live: str | None
    """The snapshot that it was compared with."""
    passed: bool
    problems: tuple[str, ...]
    """Problems found by verification; the gates are not checked then."""
    results: tuple[GateResult, ...]
    tonight: Measures | None
    live_measures: Measures | None
    judged: str
    """Time of the verdict, UTC, ISO 8601."""
