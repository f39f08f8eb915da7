"""One schedule: the real command, what befalls it, its end, and whether the dataset is right afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import psutil
from chaos import processes
from chaos.places import Place, UnavailableError, digests, open_place
from chaos.schedule import NUM_SHARDS, SAMPLES_PER_SHARD, Fault, Moment, Schedule

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("inside")

SHARD_TIMEOUT_SECONDS, START_TIMEOUT_SECONDS = 15, 60
# An undisturbed run takes 15 to 30 s on two cores that others use too, most of it to start Ray and import torch.
CALM_SECONDS = 45.0
# Beyond its deadline a run may take so much longer to end.
GRACE_SECONDS = 60.0
# What Ray's processes may take to end after the driver.
_AFTERWARDS_SECONDS = 15.0
_POLL_SECONDS = 0.03
_HOG_MEGABYTES = 2500


@dataclass(frozen=True)
class Reference:
    """An undisturbed local run, and what it needs."""

    run_file: Path
    digests: dict[str, str]
    """SHA-256 by path."""
    num_shards: int
    seeds_per_shard: int

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """What `reference.prepare` has left in a folder."""
        values = json.loads((folder / "reference.json").read_text())
        return cls(folder / "run.yaml", **values)


@dataclass
class Outcome:
    """A line of the results. `problems` is empty when all went right."""

    seed: int
    schedule: str
    hit: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    exits: list[int | None] = field(default_factory=list)
    """Of the disturbed run, and of the rerun if there was one."""
    seconds: list[float] = field(default_factory=list)
    seconds_to_end: float | None = None
    """From the last fault, or from when the driver could go on, to the end of the disturbed run."""
    left_behind: list[str] = field(default_factory=list)
    """Processes that lived on, stopped ones apart."""
    looks_per_second: float = 0.0
    """How often the observer looked at everything."""
    problems: list[str] = field(default_factory=list)
    skipped: str | None = None


def run_schedule(schedule: Schedule, reference: Reference, logs: Path) -> Outcome:
    """Run it, and leave no process. What the commands said goes to the folder `logs`."""
    processes.adopt_orphans()
    outcome = Outcome(schedule.seed, str(schedule))
    try:
        with open_place(schedule.where, schedule.seed) as place:
            spared = [process.pid for process in processes.descendants()]
            try:
                _run_and_rerun(schedule, reference, place, spared, outcome, logs)
            finally:
                processes.kill_all(spared)
    except UnavailableError as error:
        outcome.skipped = str(error)
    return outcome


def _run_and_rerun(
    schedule: Schedule, reference: Reference, place: Place, spared: Sequence[int], outcome: Outcome, logs: Path
) -> None:
    start = time.monotonic()
    with place.observer() as observer:
        storm = _Storm(schedule, reference, place, outcome)
        _one_run(storm, reference, place, spared, outcome, logs / "1", schedule.exit_statuses)
        if outcome.exits[0] != 0:
            place.heal()
            # Workers that were stopped wake up beside the next run, and may go on writing.
            processes.resume_all(processes.descendants(spared))
            _one_run(_Calm(), reference, place, spared, outcome, logs / "2", {0})
    outcome.looks_per_second = round(observer.num_rounds / (time.monotonic() - start), 1)
    outcome.problems += observer.problems
    outcome.problems += differences(place.files(), reference)


def differences(files: dict[str, bytes], reference: Reference) -> list[str]:
    """Between an output's files and the undisturbed run: what is lost, too much, or of other bytes."""
    found = digests(files)
    lost, more = reference.digests.keys() - found.keys(), found.keys() - reference.digests.keys()
    other = [path for path, digest in reference.digests.items() if found.get(path, digest) != digest]
    num_records = sum(path.startswith("records/") for path in files)
    problems = [f"lost: {path}" for path in sorted(lost)] + [f"too much: {path}" for path in sorted(more)]
    problems += [f"other bytes: {path}" for path in other]
    if num_records != reference.num_shards:
        problems.append(f"{num_records} records of {reference.num_shards} shards")
    return problems


class _Calm:
    """Nothing befalls this run."""

    environment: dict[str, str] = {}  # noqa: RUF012
    deadline_seconds = CALM_SECONDS + START_TIMEOUT_SECONDS

    def blow(self, driver: int, stderr: Path, ray_folder: Path) -> None:
        """Called again and again while the driver lives."""

    def end(self, ended: float) -> None:
        """The driver has ended."""


class _Storm:
    """What befalls a run, and when."""

    def __init__(self, schedule: Schedule, reference: Reference, place: Place, outcome: Outcome) -> None:
        self._place, self._outcome = place, outcome
        self._random = Random(schedule.seed)
        self._faults = schedule.faults
        self._waiting = [(fault, fault.when) for fault in schedule.faults if fault.when is not None]
        self._since: dict[Fault, float] = {}
        """When the moment of a fault came."""
        self._to_resume: list[tuple[float, psutil.Process | None]] = []
        """Processes to resume, None for the store, and when."""
        self._last = time.monotonic()
        self._markers = Path(tempfile.mkdtemp(prefix="storm-markers-"))
        for fault in schedule.faults:
            if fault.share:
                place.strike(fault)
        self.environment = self._inside(schedule, reference)
        frozen = sum(fault.seconds or 0 for fault in schedule.faults)
        # Two workers with two threads; after a loss perhaps one alone.
        dragged = schedule.drag * NUM_SHARDS * SAMPLES_PER_SHARD / 2
        each = max(SHARD_TIMEOUT_SECONDS, START_TIMEOUT_SECONDS)
        self.deadline_seconds = CALM_SECONDS + dragged + frozen + each * len(schedule.faults)

    def _inside(self, schedule: Schedule, reference: Reference) -> dict[str, str]:
        faults = [
            {
                "what": fault.what,
                "where": "stored" if fault.what == "exit after the tar" else "encode",
                "seed": fault.shard * reference.seeds_per_shard,
                "tar": f"tiny-{fault.shard:06d}",
                "marker": str(self._markers / str(number)),
            }
            for number, fault in enumerate(schedule.faults)
            if fault.shard is not None
        ]
        environment = {
            "PYTHONPATH": f"{INSIDE}{os.pathsep}{ROOT}",
            "STORM_INSIDE": json.dumps(faults),
            "STORM_DRAG": str(schedule.drag),
        }
        if any(fault["what"] == "hog memory" for fault in faults):
            memory = psutil.virtual_memory()
            used = 1 - memory.available / memory.total
            threshold = used + 0.7 * _HOG_MEGABYTES * 2**20 / memory.total
            environment |= {
                "RAY_memory_usage_threshold": f"{threshold:.3f}",
                "RAY_memory_monitor_refresh_ms": "100",
                "STORM_HOG_MEGABYTES": str(_HOG_MEGABYTES),
            }
        return environment

    def blow(self, driver: int, stderr: Path, ray_folder: Path) -> None:
        """Let happen what is due."""
        now = time.monotonic()
        for due, process in [item for item in self._to_resume if item[0] <= now]:
            self._to_resume.remove((due, process))
            self._last = now
            if process is None:
                self._place.heal()
            else:
                processes.send(process, signal.SIGCONT)
        for fault, moment in list(self._waiting):
            if fault not in self._since and self._has_come(moment, stderr, ray_folder):
                self._since[fault] = now
            if fault in self._since and now >= self._since[fault] + moment.delay and self._strike(fault, driver):
                self._waiting.remove((fault, moment))
                self._outcome.hit.append(str(fault))
                self._last = time.monotonic()

    def end(self, ended: float) -> None:
        """Whether faults inside workers hit is told by what they leave."""
        inside = [(number, fault) for number, fault in enumerate(self._faults) if fault.shard is not None]
        for number, fault in inside:
            marker = self._markers / str(number)
            if marker.exists():
                self._outcome.hit.append(str(fault))
                self._last = max(self._last, ended - (time.time() - marker.stat().st_mtime))
            else:
                self._outcome.missed.append(str(fault))
        self._outcome.hit += [str(fault) for fault in self._faults if fault.share]
        self._outcome.missed += [str(fault) for fault, _ in self._waiting]
        if self._outcome.hit:
            self._outcome.seconds_to_end = round(ended - self._last, 1)
        shutil.rmtree(self._markers)

    def _has_come(self, moment: Moment, stderr: Path, ray_folder: Path) -> bool:
        match moment.phase:
            case "connecting":
                return (ray_folder / "ray" / "session_latest").exists()
            case "preparing":
                return "preparing: " in stderr.read_text()
            case "loading":
                return ", process " in stderr.read_text()
            case "making":
                return self._place.num_shards() >= moment.num_shards
            case "finishing":
                return self._place.num_shards() == NUM_SHARDS

    def _strike(self, fault: Fault, driver: int) -> bool:
        """Whether it hit."""
        if fault.whom == "store":
            self._place.strike(fault)
            victim = None
        else:
            victim = processes.find(fault.whom, driver, self._random)
            numbers = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "terminate": signal.SIGTERM}
            if victim is None or not processes.send(victim, numbers[fault.what]):
                return False
        if fault.seconds is not None:
            self._to_resume.append((time.monotonic() + fault.seconds, victim))
        return True


def _one_run(
    storm: _Storm | _Calm,
    reference: Reference,
    place: Place,
    spared: Sequence[int],
    outcome: Outcome,
    logs: Path,
    exit_statuses: Collection[int],
) -> None:
    """From the command's start to the end of its last process, or the moment when that is not awaited any more."""
    logs.mkdir(parents=True, exist_ok=True)
    stdout, stderr = logs / "stdout", logs / "stderr"
    with tempfile.TemporaryDirectory(prefix="storm-ray-", ignore_cleanup_errors=True) as ray_folder:
        start = time.monotonic()
        with stdout.open("w") as out, stderr.open("w") as err:
            driver = subprocess.Popen(
                generate_command(reference.run_file, place.url, "ray"),
                cwd=ROOT,
                env=_environment({**place.environment, **storm.environment, "RAY_TMPDIR": ray_folder}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            while driver.poll() is None and time.monotonic() - start < storm.deadline_seconds + GRACE_SECONDS:
                storm.blow(driver.pid, stderr, Path(ray_folder))
                time.sleep(_POLL_SECONDS)
            if driver.poll() is None:
                outcome.problems.append(f"has not ended after {time.monotonic() - start:.0f} s")
                driver.send_signal(signal.SIGUSR1)  # tells where it hangs
                time.sleep(1)
        finally:
            ended = time.monotonic()
            is_late = driver.poll() is None
            driver.kill()
            driver.wait()
        outcome.exits.append(None if is_late else driver.returncode)
        if is_late or driver.returncode not in exit_statuses:
            outcome.problems.append(f"exit status {outcome.exits[-1]} instead of {sorted(exit_statuses)}")
        outcome.seconds.append(round(ended - start, 1))
        storm.end(ended)
        rest = processes.await_end(_AFTERWARDS_SECONDS, [*spared])
        outcome.left_behind += processes.describe_running(rest)
        for session in Path(ray_folder, "ray").glob("session_2*") if outcome.problems else ():
            shutil.copytree(session / "logs", logs / "ray", dirs_exist_ok=True)


def generate_command(run_file: Path, output: str, executor: str) -> list[str]:
    """The command line under test."""
    settings = {
        "output": output,
        "execution.executor": executor,
        "execution.device": "cpu",
        "execution.workers": 2,
        "execution.cpus_per_worker": 1,
        "execution.shard_timeout_s": SHARD_TIMEOUT_SECONDS,
        "execution.start_timeout_s": START_TIMEOUT_SECONDS,
    }
    options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "labelmill.pipeline.cli", "generate", str(run_file), *options]


def _environment(more: dict[str, str]) -> dict[str, str]:
    """This process's own, but for Ray a fresh one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    return {**kept, **own, **more}


def append(outcome: Outcome, results: Path) -> None:
    """One line, in one write: several processes append to the same file."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(asdict(outcome)) + "\n")
