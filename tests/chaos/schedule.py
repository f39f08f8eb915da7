"""What befalls a run: a seed gives a few faults, each with its victim and its moment."""

from dataclasses import dataclass
from random import Random
from typing import Literal

from labelmill.schemas.errors import EXIT_RESUMABLE, OutputError, ShardError

Where = Literal["folder", "disk", "bucket"]
"""Where the dataset goes: a folder, one on a small file system of its own, a bucket."""
Phase = Literal["connecting", "preparing", "loading", "making", "finishing"]
What = Literal[
    "kill", "stop", "terminate",  # signals to a process
    "exit", "exit after the tar", "poison", "exhaust memory", "hog memory", "freeze", "raise",  # inside a worker
    "fill", "refuse", "cut", "shut",  # the store
]  # fmt: skip
Whom = Literal["driver", "worker", "raylet", "gcs", "shard", "store"]

NUM_SHARDS, SAMPLES_PER_SHARD = 32, 6
SIGKILLED = -9


@dataclass(frozen=True)
class Moment:
    """When something happens to a run."""

    phase: Phase
    num_shards: int = 0
    """While shards are made: how many are there."""
    delay: float = 0.0
    """Seconds after that."""

    def __str__(self) -> str:
        since = f"{self.num_shards} shards" if self.phase == "making" else self.phase
        return f"{since} +{self.delay:.2f} s"


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once; poison and raise again and again."""

    what: What
    whom: Whom
    """`shard` is the worker that makes it."""
    when: Moment | None = None
    """None for what lasts from the start, or waits for a shard."""
    seconds: float | None = None
    """How long a stop lasts, or the store stays shut; None for good."""
    shard: int | None = None
    """The index of the shard that is being made."""
    share: float = 0.0
    """Of the requests that the store refuses or cuts."""

    @property
    def exit_statuses(self) -> frozenset[int]:
        """Statuses other than 0 that a run may end with for this."""
        if (self.what, self.whom) == ("kill", "driver"):
            return frozenset({SIGKILLED})
        if self.what == "fill":
            return frozenset({OutputError.exit_code})
        if self.what in ("poison", "raise"):
            return frozenset({ShardError.exit_code})
        if self.what == "hog memory":  # how much others use decides whom else Ray ends
            return frozenset({ShardError.exit_code, EXIT_RESUMABLE})
        is_early = self.when is not None and self.when.phase in ("connecting", "preparing")
        stops_preparation = is_early and (self.what, self.whom, self.seconds) == ("stop", "worker", None)
        # Ray's driver waits for ever for a worker that died while it started.
        kills_start = self.when is not None and (self.when.phase, self.what, self.whom) == (
            "connecting", "kill", "worker"
        )  # fmt: skip
        is_resumable = self.whom in ("raylet", "gcs") or self.what == "terminate" or stops_preparation or kills_start
        return frozenset({EXIT_RESUMABLE} if is_resumable else ())

    def __str__(self) -> str:
        if self.shard is not None:
            return f"{self.what} in shard {self.shard}"
        if self.share:
            return f"{self.what} {self.share:.0%} of requests"
        lasts = f" for {self.seconds:.1f} s" if self.seconds is not None else " for good" * (self.what == "stop")
        return f"{self.what} {self.whom}{lasts} at {self.when}"


@dataclass(frozen=True)
class Schedule:
    """A disturbed run."""

    seed: int
    where: Where
    faults: tuple[Fault, ...]
    drag: float
    """Seconds that each sample takes longer, so that faults fall among shards in the making."""

    @property
    def exit_statuses(self) -> frozenset[int]:
        """What the command may end with."""
        return frozenset({0}).union(*(fault.exit_statuses for fault in self.faults))

    def __str__(self) -> str:
        slow = f", {self.drag:.2f} s a sample" if self.drag else ""
        return f"{self.seed}: {self.where}{slow}: {'; '.join(map(str, self.faults))}"


# How often each is drawn, relatively.
_SIGNALS: dict[tuple[What, Whom], int] = {
    ("kill", "driver"): 3,
    ("stop", "driver"): 2,
    ("terminate", "driver"): 2,
    ("kill", "worker"): 4,
    ("stop", "worker"): 4,
    ("kill", "raylet"): 2,
    ("stop", "raylet"): 2,
    ("kill", "gcs"): 2,
    ("stop", "gcs"): 2,
}
_INSIDE: dict[What, int] = {
    "exit": 3,
    "exit after the tar": 3,
    "poison": 2,
    "exhaust memory": 3,
    "hog memory": 1,
    "freeze": 2,
    "raise": 2,
}
_PLACES: dict[Where, int] = {"folder": 10, "disk": 4, "bucket": 6}
_PHASES: dict[Phase, int] = {"connecting": 2, "preparing": 2, "loading": 2, "making": 8, "finishing": 1}
# Seconds that a phase takes, about; from one shard to the next while they are made.
_SECONDS: dict[Phase, float] = {"connecting": 4.0, "preparing": 6.0, "loading": 3.0, "making": 0.3, "finishing": 0.1}


def schedule_of(seed: int) -> Schedule:
    """Always the same for a seed."""
    random = Random(f"storm {seed}")
    where = random.choices(list(_PLACES), list(_PLACES.values()))[0]
    faults = [] if where == "folder" else [_store_fault(where, random)]
    for _ in range(random.choices((1, 2, 3), (5, 4, 2))[0] - len(faults)):
        faults.append(random.choices((_signal, _inside), (3, 2))[0](random))
    drag = random.uniform(0.1, 0.4) if random.random() < 0.4 else 0.0
    return Schedule(seed, where, tuple(faults), drag)


def _store_fault(where: Where, random: Random) -> Fault:
    if where == "disk":
        return Fault("fill", "store", Moment("making", random.randrange(NUM_SHARDS), random.uniform(0, 0.3)))
    what: What = random.choice(("refuse", "cut", "shut"))
    if what == "shut":
        return Fault(what, "store", _moment(random), seconds=random.uniform(1, 25))
    return Fault(what, "store", share=random.uniform(0.05, 0.3))


def _signal(random: Random) -> Fault:
    what, whom = random.choices(list(_SIGNALS), list(_SIGNALS.values()))[0]
    seconds = None
    if what == "stop" and (whom == "driver" or random.random() < 0.3):
        seconds = random.uniform(1, 12)
    return Fault(what, whom, _moment(random), seconds)


def _inside(random: Random) -> Fault:
    what = random.choices(list(_INSIDE), list(_INSIDE.values()))[0]
    return Fault(what, "shard", shard=random.randrange(NUM_SHARDS))


def _moment(random: Random) -> Moment:
    phase = random.choices(list(_PHASES), list(_PHASES.values()))[0]
    num_shards = random.randrange(NUM_SHARDS) if phase == "making" else 0
    return Moment(phase, num_shards, random.uniform(0, _SECONDS[phase]))
