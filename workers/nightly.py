"""A night from its configuration to latest.json: lock, make, verify, compare, publish, tidy up."""

import hashlib
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import date
from typing import Literal

from labelmill.pipeline.check_run import check_opened_run, check_settings
from labelmill.pipeline.generator.checkpoints.source import located_reference, read_bytes
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.instances.run_labeler import instance_inputs
from labelmill.pipeline.labelers.methods import method_of
from labelmill.pipeline.nightly.clock import check_has_come, check_live_has_come, those_that_have_come
from labelmill.pipeline.nightly.judge import failures, judge_snapshot
from labelmill.pipeline.nightly.latest import LiveMovedError, change_latest, fence, publish, read_latest, succeed
from labelmill.pipeline.nightly.lease import Clock, Lease
from labelmill.pipeline.nightly.lock import iso_time
from labelmill.pipeline.nightly.retention import SnapshotDecision, clear_remains, fates, finish_retiring, prune
from labelmill.pipeline.nightly.seeds import nights_left, run_of
from labelmill.pipeline.nightly.snapshots import (
    GATES_PAGE_PATH,
    Snapshot,
    list_snapshots,
    night_of,
    snapshot_digest,
    snapshot_url,
    tonights_name,
)
from labelmill.pipeline.nightly.webhook import Notice, Webhook
from labelmill.pipeline.process.interruption import Interrupted
from labelmill.pipeline.process.log import log, log_context
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import (
    EXIT_RESUMABLE,
    GateError,
    LabelmillError,
    LockedError,
    OutputError,
    VerificationError,
)
from labelmill.schemas.nightly import NightlyConfig
from labelmill.schemas.nightly_files import GateReport, Latest
from labelmill.schemas.secrets import without_secrets
from labelmill.workers.generate import generate
from labelmill.workers.watchdog import Watchdog

# A live snapshot that changes while tonight's is compared with it has been changed by hand.
_MOST_COMPARISONS = 5
_FEW_NIGHTS = 30
# To let the lock go when the night is interrupted.
_RELEASE_SECONDS = 5.0
_LAST_WORDS = (
    "interrupted, and the root does not answer; rerun the same command to resume once the lock (lock.ttl_s) is free"
)

Kind = Literal["published", "unchanged", "withdrawn", "superseded"]
"""unchanged: the snapshot is live already. withdrawn: it was, and a rollback left it. superseded: with seeds that are
fresh each night, the snapshot of a later night is live."""


@dataclass(frozen=True)
class Outcome:
    """What a night that went well has done."""

    kind: Kind
    snapshot: str
    fates: tuple[SnapshotDecision, ...]

    def __str__(self) -> str:
        deleted = [fate.snapshot.name for fate in self.fates if not fate.is_kept]
        tidied = f"; deleted: {', '.join(deleted)}" if deleted else ""
        words = {
            "published": f"{self.snapshot} is live",
            "unchanged": f"{self.snapshot} is live already and nothing that it follows from has changed",
            "withdrawn": f"{self.snapshot} was made before and withdrawn by a rollback; nothing else was asked for. "
            f"`labelmill nightly rollback` with its name makes it live again",
            "superseded": f"{self.snapshot} is of an earlier night than the snapshot that is live; nothing was made",
        }
        return words[self.kind] + tidied


def run_night(config: NightlyConfig, night: date, clock: Clock = time.time) -> Outcome:
    """Make tonight's snapshot, or what is missing of it, and publish it if it may be.

    Whatever happens meanwhile, latest.json names a whole snapshot that passed the gates, or none. Any interruption
    leaves a root on which the same call goes on.

    Raises LockedError while another run works here, GateError or VerificationError when the snapshot must not be
    live, ConfigError where the night has no seeds or lies ahead of the clock, OutputError where the live snapshot lies
    ahead of the clock, and what `generate` raises. The webhook is told of all but the first, when the lock is free
    again.
    """
    root, webhook = Store.open(config.root), Webhook(config.webhook)
    tonight = _Night(config, night, root, clock)
    try:
        return tonight.go()
    except LockedError:
        raise
    except Exception as error:
        problem = webhook.post(tonight.notice(error))
        if problem is not None:
            log(problem, level="warning")
        raise


def prune_root(config: NightlyConfig, night: date, dry_run: bool, clock: Clock = time.time) -> list[SnapshotDecision]:
    """Delete what retention does not keep, under the lock; with `dry_run`, without it, only say what that would be.

    The snapshot of `night` is kept, finished or not. Raises LockedError, OutputError, and ConfigError where the night
    has no seeds or lies ahead of the clock.
    """
    check_has_come(night, clock())
    root, run = Store.open(config.root), run_of(config, night)
    if dry_run:
        snapshots = list_snapshots(root)
        return fates(snapshots, read_latest(root), _name_of(run, night, snapshots, _sha256(run)), config.retention)
    with Lease(root, config.lock, clock) as lease:
        fence(root, lease.generation)
        finish_retiring(root, lease)
        return prune(root, lease, _name_of(run, night, list_snapshots(root), _sha256(run)), config.retention)


def check_night(config: NightlyConfig, night: date, clock: Clock = time.time) -> list[str]:
    """Lines that say what a night would make, without making it. Raises what `run_night` would raise before work."""
    check_has_come(night, clock())
    root, run = Store.open(config.root), run_of(config, night)
    Webhook(config.webhook)
    check_live_has_come(root, read_latest(root), clock())
    check_settings(run)
    sampler, checkpoint = open_sampler(run)
    method_of(run.labeler).check(run.labeler, sampler)
    name = _name_of(run, night, those_that_have_come(list_snapshots(root), clock()), checkpoint.sha256)
    check_opened_run(run.model_copy(update={"output": snapshot_url(root, name)}), sampler, checkpoint)
    dataset = run.dataset
    last = dataset.first_seed + dataset.num_shards * dataset.seeds_per_shard - 1
    lines = [
        f"{snapshot_url(root, name)}: {dataset.samples} samples of the seeds {dataset.first_seed} to {last}",
        f"live is {read_latest(root).snapshot or 'nothing'}",
    ]
    if config.seeds == "fresh":
        lines.append(f"seeds are left for {nights_left(config, night)} nights, this one included")
    return lines


def _name_of(run: RunConfig, night: date, snapshots: list[Snapshot], checkpoint_sha256: str) -> str:
    """The snapshot that a night makes, or goes on with."""
    inputs = {**method_of(run.labeler).inputs(run.labeler), **instance_inputs(run)}
    return tonights_name(snapshots, night, snapshot_digest(run, checkpoint_sha256, inputs))


def _sha256(run: RunConfig) -> str:
    """Of the run's checkpoint."""
    reference = located_reference(run.generator.checkpoint, run.generator.folder)
    return hashlib.sha256(read_bytes(reference)).hexdigest()


class _Night:
    """One night, and what is known of it when it ends early."""

    def __init__(self, config: NightlyConfig, night: date, root: Store, clock: Clock) -> None:
        self._config, self._night, self._root, self._clock = config, night, root, clock
        self._lease = Lease(root, config.lock, clock)
        self._name: str | None = None
        self._live: str | None = None
        self._report: GateReport | None = None

    def go(self) -> Outcome:
        try:
            return self._go()
        except Interrupted:
            if self._lease.is_lost:  # which is what interrupted it, or would have ended it anyway
                self._lease.check()
            raise

    def _go(self) -> Outcome:
        check_has_come(self._night, self._clock())
        run = run_of(self._config, self._night)
        with ExitStack() as end, log_context(f"{run.name} {self._night}"), self._lease:
            try:
                return self._go_locked(run)
            except Interrupted:
                # A root that is down would take minutes to say so, and who interrupts does not wait for so long.
                end.enter_context(Watchdog().limit(_RELEASE_SECONDS, exit_code=EXIT_RESUMABLE, last_words=_LAST_WORDS))
                raise
            except (GateError, VerificationError):
                raise
            except Exception:
                # A night that has taken the lock meanwhile may have taken away what this one relied on.
                with suppress(OutputError):
                    self._lease.confirm()
                raise

    def _go_locked(self, run: RunConfig) -> Outcome:
        latest = self._fence()
        check_live_has_come(self._root, latest, self._clock())
        self._finish_retiring()
        self._warn_of_seeds()
        snapshots = those_that_have_come(list_snapshots(self._root), self._clock())
        check_settings(run)
        name = self._name = _name_of(run, self._night, snapshots, _sha256(run))
        if name in read_latest(self._root).retiring:  # what could not be deleted is wanted again
            finish_retiring(self._root, self._lease)
        nothing_new = self._nothing_new(name, snapshots, latest)
        if nothing_new is not None:
            if nothing_new != "superseded":  # which says nothing of the night that it is now
                change_latest(self._root, succeed(iso_time(self._clock())), self._lease.generation)
            return Outcome(nothing_new, name, self._tidy(name))
        clear_remains(self._root, name, self._lease.check)
        log(f"tonight's snapshot: {snapshot_url(self._root, name)}")
        generate(run.model_copy(update={"output": snapshot_url(self._root, name)}))
        try:
            self._publish(name, latest)
        except (GateError, VerificationError):
            self._tidy(name)
            raise
        return Outcome("published", name, self._tidy(name))

    def notice(self, error: Exception) -> Notice:
        """What somebody should know of an error that ended the night."""
        known = isinstance(error, LabelmillError)
        words = str(error) if known else f"{type(error).__name__}: {error}"
        results = () if self._report is None else self._report.results
        return Notice(
            text=without_secrets(f"labelmill nightly {self._night}: {words}"),
            root=self._root.url,
            night=self._night.isoformat(),
            snapshot=self._name,
            live=self._live,
            exit_status=error.exit_code if isinstance(error, LabelmillError) else 1,
            failed_gates={result.name: result.value for result in results if result.verdict == "failed"},
        )

    def _nothing_new(self, name: str, snapshots: list[Snapshot], latest: Latest) -> Kind | None:
        """Why there is nothing to make or to publish; None if there is."""
        state = next((snapshot.state for snapshot in snapshots if snapshot.name == name), "unfinished")
        if state == "passed" and name == latest.snapshot:
            return "unchanged"
        if state == "passed" and name in latest.withdrawn:
            return "withdrawn"
        live_night = "" if latest.snapshot is None else night_of(latest.snapshot)
        return "superseded" if self._config.seeds == "fresh" and self._night.isoformat() < live_night else None

    def _publish(self, name: str, latest: Latest) -> None:
        """Publish a whole snapshot if verification and gates let it pass. Raises GateError or VerificationError."""
        for _ in range(_MOST_COMPARISONS):
            log(f"verifying {name} and comparing it with {latest.snapshot or 'nothing: no snapshot is live'}")
            self._report = judge_snapshot(
                self._root, name, latest.snapshot, self._config, self._clock, self._lease.confirm
            )
            _refuse(self._root, self._report)
            self._lease.confirm()
            try:
                change = publish(name, latest.snapshot, iso_time(self._clock()))
                self._live = change_latest(self._root, change, self._lease.generation).snapshot
                return
            except LiveMovedError:
                latest = self._fence()
        raise LockedError(f"{self._root.url}: the live snapshot keeps changing; run it again when that is over")

    def _fence(self) -> Latest:
        latest = fence(self._root, self._lease.generation)
        self._live = latest.snapshot
        return latest

    def _finish_retiring(self) -> None:
        """What cannot be deleted keeps no night from being made."""
        try:
            finish_retiring(self._root, self._lease)
        except OutputError as error:
            _warn_of_remains(error)

    def _tidy(self, name: str) -> tuple[SnapshotDecision, ...]:
        """Retention. How the night went matters more, so that what is wrong here is only said."""
        try:
            return tuple(prune(self._root, self._lease, name, self._config.retention))
        except LabelmillError as error:
            _warn_of_remains(error)
            return ()

    def _warn_of_seeds(self) -> None:
        left = nights_left(self._config, self._night)
        if self._config.seeds == "fresh" and left <= _FEW_NIGHTS:
            log(f"fresh_seeds: seeds are left for {left} nights, this one included; see fresh_seeds.since")


def _warn_of_remains(error: LabelmillError) -> None:
    log(f"old snapshots are not deleted, and the next night tries again: {error}", level="warning")


def _refuse(root: Store, report: GateReport) -> None:
    """Raises unless the snapshot passed."""
    url = snapshot_url(root, report.snapshot)
    stays = f"{report.live} stays live" if report.live else "nothing is live"
    if report.problems:
        lines = [f"{url}: is damaged; {stays}:", *(f"  {problem}" for problem in report.problems)]
        raise VerificationError("\n".join(lines))
    if not report.passed:
        lines = [f"{url}: is not published; {stays}. {url}/{GATES_PAGE_PATH} shows both:"]
        raise GateError("\n  ".join([*lines, *failures(report)]))
