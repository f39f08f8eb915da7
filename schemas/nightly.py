"""The nightly file: what is made every night, where, and what it must not differ in from the night before.

Reading one takes in the run file that it names, so that all mistakes are told at once.
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
    """A run file's sections. Its output is the night's snapshot."""

    output: str = ""
    """Ignored: each snapshot is an output of its own, under `root`."""


class FreshSeedsConfig(Section):
    """Ranges of seeds, one a date, for `seeds: fresh`.

    A night's range begins at run.dataset.first_seed + per_night * (days since `since`). No two nights share a seed as
    long as these two fields and the run's first_seed stay as they are. When the seeds below 2^32 are used up the night
    is refused before any work; a later `since` then begins again with the seeds of the first nights.
    """

    since: date = date(2026, 1, 1)
    """The night of the first range. Nights before it are refused."""
    per_night: int = Field(2**20, ge=1, le=SEED_LIMIT)
    """Seeds set aside for each night, at least what the run may try: samples, rounded up to whole shards, times
    max_candidates_per_sample. 2^20 lasts for 4,096 nights."""


class GatesConfig(Section):
    """The highest value of each gate that passes; null turns a gate off.

    The defaults are measured on the bundled generator: nights of 256 samples that differ in their seeds alone stay
    about half below each of them or further, and a truncation psi of .5 or 1 instead of .7 fails.

    Gates that compare with the live snapshot are skipped while there is none. Change a limit, or override it once
    with --set, and run the same night again: nothing is made anew, the gates are asked again.
    """

    missing_samples: float | None = Field(0.1, ge=0, le=1)
    """Share by which tonight has fewer samples than the live snapshot."""
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
    """By how much the labeler's mean confidence is lower than in the live snapshot."""
    brightness_shift: float | None = Field(0.04, ge=0, le=1)
    """Difference of mean pixel values, which are in [0, 1]."""
    contrast_change: float | None = Field(0.1, ge=0)
    """Relative difference of the standard deviations of pixel values. Seeds alone gave up to .022, a truncation psi of
    .5 or 1 instead of .7 gave .14 and .13."""
    near_duplicates: float | None = Field(0.1, ge=0, le=1)
    """Share of tonight's sampled images that look like another one of them. 1024 images of the bundled generator have
    .002, .002, .032, .18 and 1 at truncation psi 1, .7, .5, .3 and 0."""
    near_duplicates_rise: float | None = Field(0.05, ge=0, le=1)
    """By how much that share is higher than in the live snapshot."""
    image_bytes_change: float | None = Field(0.25, ge=0)
    """Relative difference of bytes a sample."""
    throughput_drop: float | None = Field(0.9, ge=0, le=1)
    """Share by which workers are slower, in samples a second of one worker's work. Not the data's fault: the default
    only stops a night whose workers have lost their GPUs."""


class SamplingConfig(Section):
    """Which images the gates look at; everything else is counted over all samples."""

    images: int = Field(1024, ge=2, le=16384)
    """Images that are decoded, of each snapshot, evenly spread. The share of near duplicates grows with them."""
    shards: int = Field(8, ge=1, le=256)
    """Shards that they are taken from, evenly spread. Each is read whole, one at a time."""
    duplicate_bits: int = Field(4, ge=0, le=32)
    """Two images are near duplicates when their 64-bit perceptual hashes differ in so many bits or fewer."""


class RetentionConfig(Section):
    """Which snapshots are kept. The live one, pinned ones and tonight's are kept in any case.

    A training job that started on a snapshot can finish on it as long as it is among these.
    """

    keep_last: int = Field(7, ge=1)
    """Snapshots that passed the gates: what is live and what was, the last one first. Those that never were, and then
    those that a rollback left, stay as long as there is room."""
    keep_rejected: int = Field(2, ge=0)
    """Newest snapshots that did not, to look at."""


class LockConfig(Section):
    """How long a run may be silent before another one takes over."""

    ttl_s: float = Field(600, gt=0)
    """A lock that was not renewed for so many seconds is free. Far above the difference of the machines' clocks, and
    above the seconds that a machine is frozen while it is moved."""
    heartbeat_s: float = Field(60, gt=0)
    """It is renewed every so many seconds."""

    @model_validator(mode="after")
    def _check_heartbeat(self) -> "LockConfig":
        if 3 * self.heartbeat_s > self.ttl_s:
            raise ValueError(
                f"heartbeat_s: {self.heartbeat_s:g} leaves no room for two that fail within ttl_s {self.ttl_s:g}; "
                f"at most {self.ttl_s / 3:g} works"
            )
        return self


class WebhookConfig(Section):
    """Who is told of a night that publishes nothing new although it should."""

    url_variable: str = Field(repr=False)
    """Environment variable that holds the URL. The URL itself is a secret and has no place in a file."""
    timeout_s: float = Field(10, gt=0, le=120)
    """The webhook's answer is awaited for so many seconds."""

    @field_validator("url_variable")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError(
                "takes the name of an environment variable, such as LABELMILL_WEBHOOK, and what stands there is none "
                "(it is not shown, for it may be the URL, which is a secret). Put the URL into that variable"
            )
        return name


class NightlyConfig(Section):
    """A whole nightly file."""

    run: NightlyRun
    """The run: its sections, whose paths are relative to the nightly file then, or the path of a run file, relative to
    it too."""
    root: str = Field(pattern=PRINTABLE)
    """Folder or bucket of the snapshots, of latest.json, which names the live one, and of lock.json."""
    seeds: Literal["fixed", "fresh"] = "fixed"
    """`fixed`: every night has the run's seeds, and a night on which nothing else has changed makes nothing.
    `fresh`: every date has seeds of its own."""
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
