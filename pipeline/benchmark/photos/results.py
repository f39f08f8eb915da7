"""What `labelmill benchmark --photos` measures."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from labelmill.schemas.inversion import InversionSettings, Space
from labelmill.schemas.scores import Scores


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhotosSettings(_Record):
    """What all rows share."""

    checkpoint: str
    checkpoint_sha256: str
    resolution: int
    num_dev: int
    num_test: int
    inversion: InversionSettings
    device: str
    threads: int
    versions: dict[str, str]


class Costs(_Record):
    """CPU seconds of this process."""

    key: str
    encoder_seconds: float
    seconds_per_photo: float
    """Of both inversions, without labeling."""


class PhotoRow(_Record):
    """Masks of the test photos by one way."""

    name: str
    title: str
    kind: Literal["inversion", "control", "network", "supervised"]
    scores: Scores


class NetworkRow(_Record):
    """A network that took minutes to train."""

    key: str
    scores: Scores


class DevPoint(_Record):
    """Masks of the dev photos, snapped with one radius."""

    space: Space
    radius: int
    miou: float


class QualityResult(_Record):
    """How quality ranks the test photos' masks."""

    rank_correlation: dict[str, float]
    """Spearman's, with the mask's own mean IoU of foreground and background: of quality and what it is made of."""
    miou_of_all: float
    miou_of_best: float
    """Without the worst fifth by quality."""


class PhotosBenchmark(_Record):
    """Everything."""

    settings: PhotosSettings
    costs: Costs
    psnr_db: dict[str, float]
    """Mean over the test photos, by space."""
    generated_miou: float
    """The labeler's on generated images, judged by oracle B."""
    rows: tuple[PhotoRow, ...]
    dev: tuple[DevPoint, ...]
    quality: QualityResult
