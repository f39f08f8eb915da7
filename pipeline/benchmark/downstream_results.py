"""What the downstream benchmark keeps: a result for each row and training seed, each in a file of its own."""

import hashlib
from functools import cache
from pathlib import Path
from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.store import Store
from schemas.config import LabelerConfig
from schemas.fingerprint import canonical_json
from schemas.scores import Scores

_PIPELINE = Path(__file__).resolve().parents[1]
# Whatever decides a result: when one of these files changes, networks are trained anew.
_DECISIVE = (
    "benchmark/avatar*.py",
    "benchmark/classes_results.py",
    "benchmark/downstream_data.py",
    "benchmark/downstream_training.py",
    "benchmark/masks_methods.py",
    "convolution_blocks.py",
    "generator/layers.py",
    "generator/networks.py",
    "generator/sampling.py",
    "labelers/*.py",
    "prompt_models/*.py",
    "segmentation/augment.py",
    "segmentation/loss.py",
    "segmentation/metrics.py",
    "segmentation/models.py",
)


class Circumstances(BaseModel):
    """What results depend on beside the row, the seed and the code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    checkpoint_sha256: str
    truncation_psi: float
    architecture: str
    upscale: int
    steps: int
    batch_size: int
    num_synthetic: int
    num_supervised: int
    num_test: int
    device: str
    threads: int
    versions: dict[str, str]

    def key(self, labeler: LabelerConfig | None) -> str:
        """A hash of these, of the code that decides results, and of the labeler that made a row's masks, whose settings
        may be another version's defaults. None: masks are exact."""
        values = self.model_dump(mode="json")
        if labeler is not None:
            values["labeler"] = labeler.model_dump(mode="json")
        return hashlib.sha256(canonical_json(values) + _code()).hexdigest()


@cache
def _code() -> bytes:
    """As it is at the start: whoever edits it meanwhile changes nothing of what runs."""
    paths = [path for pattern in _DECISIVE for path in sorted(_PIPELINE.glob(pattern))]
    return b"".join(path.name.encode() + path.read_bytes() for path in paths)


class SeedResult(BaseModel):
    """One network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    row: str
    seed: int
    label_seconds: float | None
    """That the row's synthetic pairs took, fit included; null for pairs that were drawn."""
    training_seconds: float
    scores: Scores


class RowResult(BaseModel):
    """The networks of a row; they differ in the training's seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    title: str
    num_pairs: int
    """That each network learns from; 0 for the answer that needs no network."""
    networks: tuple[SeedResult, ...]

    def figures(self) -> dict[str, tuple[float, float | None]]:
        """Mean and standard deviation over the networks, by column; no deviation for fewer than two."""
        columns = {
            "fg": [result.scores.iou["foreground"] for result in self.networks],
            "bg": [result.scores.iou["background"] for result in self.networks],
            "mIoU": [result.scores.miou for result in self.networks],
            "trimap fg": [result.scores.trimap_3px.iou["foreground"] for result in self.networks],
            "trimap bg": [result.scores.trimap_3px.iou["background"] for result in self.networks],
            "trimap mIoU": [result.scores.trimap_3px.miou for result in self.networks],
        }
        present = {name: [value for value in values if value is not None] for name, values in columns.items()}
        return {
            name: (fmean(values), stdev(values) if len(values) > 1 else None)
            for name, values in present.items()
            if values
        }


class DownstreamBenchmark(BaseModel):
    """`downstream.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    circumstances: Circumstances
    rows: tuple[RowResult, ...]


def result_path(row: str, seed: int) -> str:
    return f"downstream/{row}-{seed}.json"


def stored_result(store: Store, row: str, seed: int, key: str) -> SeedResult | None:
    """A network that this very benchmark has trained already; None if there is none."""
    try:
        result = SeedResult.model_validate_json(store.read(result_path(row, seed)))
    except (FileNotFoundError, ValidationError):
        return None
    return result if (result.row, result.seed, result.key) == (row, seed, key) else None
