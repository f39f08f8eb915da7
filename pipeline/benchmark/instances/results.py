"""What `labelmill benchmark --instances` measures."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from labelmill.schemas.instances import InstanceSettings

Subject = Literal["two people", "three people", "two overlapping people", "hat", "glasses", "clothes", "eyes"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InstancesBenchmarkSettings(_Record):
    """What all rows share."""

    checkpoint: str
    checkpoint_sha256: str
    resolution: int
    truncation_psi: float
    parts_psi: float
    settings: InstanceSettings
    jitter: float
    device: str
    threads: int
    versions: dict[str, str]


class InstanceScores(_Record):
    """Over all pictures of a subject; None where there is nothing to score."""

    iou_of_instances: float | None
    """Mean over all instances of their own IoU."""
    iou_of_things: float | None
    """Of all pixels with an instance, from one confusion matrix, as Table 2 of Feng et al. has it."""
    iou_of_rest: float | None
    miou: float | None
    """Mean of the latter two."""
    num_pictures: int
    num_instances: int


class InstanceRow(_Record):
    """One way to instances, on one subject."""

    subject: Subject
    method: str
    is_control: bool
    boxes: Literal["exact", "jittered"]
    box_error: float
    scores: InstanceScores


class CrossoverPoint(_Record):
    """A row of w to mix from, on dev pictures of two people."""

    row: int
    kept: float
    """What the detector saw, on variants of portraits."""
    miou: float | None
    iou_of_instances: float | None


class InstancesBenchmark(_Record):
    """Everything."""

    settings: InstancesBenchmarkSettings
    crossover: int
    kept: dict[int, float]
    dev: tuple[CrossoverPoint, ...]
    parts_crossover: dict[str, int]
    rows: tuple[InstanceRow, ...]
    cpu_seconds: float
