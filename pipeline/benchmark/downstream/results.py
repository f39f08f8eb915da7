"""What the downstream benchmark keeps: a result for each row and training seed, each in a file of its own."""

from statistics import fmean, stdev

from pydantic import BaseModel, ConfigDict

from labelmill.schemas.scores import Scores


class DownstreamSettings(BaseModel):
    """What results depend on beside the row, the seed and the code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str
    checkpoint_sha256: str
    resolution: int
    """Of images and masks, in pixels."""
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


class DownstreamRowResult(BaseModel):
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

    circumstances: DownstreamSettings
    rows: tuple[DownstreamRowResult, ...]


def result_path(row: str, seed: int) -> str:
    return f"downstream/{row}-{seed}.json"
