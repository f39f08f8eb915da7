"""The nightly file: what is made every night, where, and how far it may differ from the night before.

Reading a nightly file also reads the run file that it names, so that all mistakes are reported at once.
"""

import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, Section
from labelmill.schemas.user_path import expand_user
from labelmill.schemas.yaml_file import apply_overrides, read_mapping, validate


class NightlyRun(RunConfig):
    """The sections of a run file. The output is the night's snapshot."""

    output: str = ""
    """Ignored: each snapshot has its own folder under `root`."""


class FreshSeedsConfig(Section):
    """Ranges of seeds, one per date, for `seeds: fresh`.

    A night's range begins at run.dataset.first_seed + per_night * (days since `since`). No two nights share a seed as
    long as these two fields and the run's first_seed stay as they are. When the seeds below 2^32 are used up, the night
    is refused before any work; a later `since` then starts again with the seeds of the first nights.
    """

    since: date = date(2026, 1, 1)
    """The night of the first range. Nights before it are refused."""
    per_night: int = Field(2**20, ge=1, le=SEED_LIMIT)
    """Seeds reserved per night; at least as many as the run may try: samples, rounded up to whole shards, times
    max_candidates_per_sample. 2^20 lasts for 4,096 nights."""


class GatesConfig(Section):
    """The highest value of each gate that passes; null turns a gate off.

    The defaults were measured on the bundled generator: nights of 256 samples that differ only in their seeds stay at
    about half of each limit or lower, and a truncation psi of .5 or 1 instead of .7 fails.

    Gates that compare with the live snapshot are skipped while there is none. To apply another limit, change it, or
    override it once with --set, and run the same night again: no shard is made again, only the gates are checked.
    """

    missing_samples: float | None = Field(0.1, ge=0, le=1)
    """Share of samples that tonight lacks compared with the live snapshot."""
    missing_files: float | None = Field(0, ge=0)
    """Number of optional files, such as alpha.png, that the live snapshot's samples have and tonight's lack."""
    class_psi: float | None = Field(0.01, ge=0)
    """Population stability index between both snapshots' class shares of all pixels. Seeds alone gave up to
    .00025, a truncation psi of .3 instead of .7 gave .0055."""
    class_js: float | None = Field(0.002, ge=0, le=1)
    """Jensen-Shannon divergence of the same shares, in bits."""
    foreground_psi: float | None = Field(0.1, ge=0)
    """Population stability index over ten equal bins of each image's foreground share. Seeds alone gave .021 to .051
    with 256 samples, a truncation psi of .5 or 1 instead of .7 gave .15 and .12. Chance adds in proportion to
    1 / samples: raise the limit below 200."""
    empty_masks: float | None = Field(0.01, ge=0, le=1)
    """Share of tonight's masks without a foreground pixel."""
    confidence_drop: float | None = Field(0.05, ge=0, le=1)
    """Drop of the labeler's mean confidence from the live snapshot."""
    brightness_shift: float | None = Field(0.04, ge=0, le=1)
    """Difference of mean pixel values, in [0, 1]."""
    contrast_change: float | None = Field(0.1, ge=0)
    """Relative difference of the standard deviations of pixel values. Seeds alone gave up to .022, a truncation psi of
    .5 or 1 instead of .7 gave .14 and .13."""
    near_duplicates: float | None = Field(0.1, ge=0, le=1)
    """Share of tonight's sampled images that look like another of them. 1024 images of the bundled generator give
    .002, .002, .032, .18 and 1 at truncation psi 1, .7, .5, .3 and 0."""
    near_duplicates_rise: float | None = Field(0.05, ge=0, le=1)
    """Rise of that share from the live snapshot."""
    image_bytes_change: float | None = Field(0.25, ge=0)
    """Relative difference of bytes per sample."""
    throughput_drop: float | None = Field(0.9, ge=0, le=1)
    """Share by which workers are slower, in samples per second of one worker's work. Speed says nothing about the data:
    the default only stops a night whose workers have lost their GPUs."""


class SamplingConfig(Section):
    """Images that the gates decode; all other measures cover all samples."""

    images: int = Field(1024, ge=2, le=16384)
    """Images decoded per snapshot, evenly spread. The share of near duplicates grows with this number."""
    shards: int = Field(8, ge=1, le=256)
    """Shards that these images come from, evenly spread. Each is read whole, one at a time."""
    duplicate_bits: int = Field(4, ge=0, le=32)
    """Two images are near duplicates if their 64-bit perceptual hashes differ in at most this many bits."""


class RetentionConfig(Section):
    """Which snapshots are kept. The live snapshot, pinned snapshots and tonight's are always kept.

    A training job that started on a snapshot can finish on it as long as the snapshot is kept.
    """

    keep_last: int = Field(7, ge=1)
    """Number of snapshots kept that passed the gates: the live one and those that were live, the latest first.
    Snapshots that were never live, and then those that a rollback left, fill the remaining places."""
    keep_rejected: int = Field(2, ge=0)
    """Number of the newest snapshots kept that did not pass, for inspection."""


class LockConfig(Section):
    """How long a run may go without renewing its lock before another run takes over."""

    ttl_s: float = Field(600, gt=0)
    """Seconds after which a lock that was not renewed is free. Keep it far above the difference between the machines'
    clocks, and above the time that a machine is frozen during a migration."""
    heartbeat_s: float = Field(60, gt=0)
    """Seconds between renewals of the lock."""

    @model_validator(mode="after")
    def _check_heartbeat(self) -> "LockConfig":
        if 3 * self.heartbeat_s > self.ttl_s:
            raise ValueError(
                f"heartbeat_s: {self.heartbeat_s:g} leaves no room for two failed renewals within ttl_s "
                f"{self.ttl_s:g}; at most {self.ttl_s / 3:g} works"
            )
        return self


class WebhookConfig(Section):
    """Webhook that is called when a night should publish a new snapshot but does not."""

    url_variable: str = Field(repr=False)
    """Environment variable that holds the URL. The URL itself is a secret and must not stand in a file."""
    timeout_s: float = Field(10, gt=0, le=120)
    """Seconds to wait for the webhook's answer."""

    @field_validator("url_variable")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError(
                "takes the name of an environment variable, such as LABELMILL_WEBHOOK; the value is not a valid name "
                "(it is not shown, as it may be the URL, which is a secret). Put the URL into that variable"
            )
        return name


class NightlyConfig(Section):
    """A nightly file."""

    run: NightlyRun
    """The run: either a run file's sections, with paths relative to the nightly file, or the path of a run file, also
    relative to the nightly file."""
    root: str = Field(pattern=PRINTABLE)
    """Folder or bucket that holds the snapshots, latest.json, which names the live snapshot, and lock.json."""
    seeds: Literal["fixed", "fresh"] = "fixed"
    """`fixed`: every night uses the run's seeds, and a night on which nothing else has changed makes nothing.
    `fresh`: every date has its own seeds."""
    fresh_seeds: FreshSeedsConfig = FreshSeedsConfig()
    gates: GatesConfig = GatesConfig()
    sampling: SamplingConfig = SamplingConfig()
    retention: RetentionConfig = RetentionConfig()
    lock: LockConfig = LockConfig()
    webhook: WebhookConfig | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _check_seeds(self) -> "NightlyConfig":
        dataset, fresh = self.run.dataset, self.fresh_seeds
        needed = dataset.num_shards * dataset.seeds_per_shard
        if self.seeds == "fresh" and needed > fresh.per_night:
            raise ValueError(
                f"fresh_seeds.per_night: {fresh.per_night} is less than the {needed} seeds that a night of this run "
                f"may try; {needed} or more works"
            )
        return self


def load_nightly_config(path: str | Path, overrides: Iterable[str] = ()) -> NightlyConfig:
    """Read a nightly file and the run file that it names. Raises ConfigError with every mistake."""
    values = read_mapping(path)
    run, folder = values.get("run"), expand_user(path).parent
    if isinstance(run, str):
        run_file = folder / expand_user(run)
        values["run"], folder = read_mapping(run_file), run_file.parent
    apply_overrides(values, overrides)
    if isinstance(values.get("run"), str):
        raise ConfigError("--set run: name the run file in the nightly file; --set run.dataset.samples=100 works")
    return validate(values, str(path), NightlyConfig, folder)
