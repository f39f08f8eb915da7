"""What `labelmill benchmark --network` measured, and as a table for people."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.schemas.scores import Scores


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkBenchmark(_Record):
    """`network.json`."""

    format: Literal["labelmill-network-benchmark"] = "labelmill-network-benchmark"
    version: Literal[1] = 1
    checkpoint: str
    checkpoint_sha256: str
    resolution: int
    device: str
    threads: int
    architecture: str
    num_masks: int
    """Exact masks of drawings that the network learned from."""
    steps: int
    num_test: int
    training_seconds: float
    of_network: dict[str, Scores]
    """The network's masks of generated images, by truncation psi, judged by oracle B."""
    of_style_mixing: dict[str, Scores]
    """Style mixing's, on the same images."""
    rank_correlation: dict[str, dict[str, float]]
    """By psi, Spearman's of what ranks style mixing's masks with each mask's own mIoU by oracle B."""


def markdown(benchmark: NetworkBenchmark) -> str:
    """The page."""
    learned = f"{benchmark.architecture}, {benchmark.num_masks:,} exact masks"
    rows = []
    for psi, scores in benchmark.of_network.items():
        rows += [(learned, *_cells(psi, scores)), ("style mixing", *_cells(psi, benchmark.of_style_mixing[psi]))]
    ranks = [(name, *_ranks(benchmark, name)) for name in next(iter(benchmark.rank_correlation.values()))]
    return (
        "\n\n".join(
            [
                "# A network as labeler and as judge",
                f"A {benchmark.architecture} learned from {benchmark.num_masks:,} drawings with exact masks "
                f"({benchmark.steps} steps, {benchmark.training_seconds:.0f} s), was exported to ONNX, and labels "
                f"{benchmark.num_test} images of `{benchmark.checkpoint}` per psi as `method: network` does. "
                f"Foreground against background, judged by oracle B, in percent. {benchmark.device}, "
                f"{benchmark.threads} threads.",
                markdown_table(("masks by", "psi", "mIoU", "fg", "bg", "3 px trimap"), rows),
                "What ranks style mixing's masks: Spearman's correlation with each mask's own mIoU by oracle B. "
                "Agreement is the mIoU of style mixing's mask with the network's.",
                markdown_table(("score", *(f"psi {psi}" for psi in benchmark.rank_correlation)), ranks),
            ]
        )
        + "\n"
    )


def _cells(psi: str, scores: Scores) -> tuple[str, ...]:
    figures = (scores.miou, scores.iou["foreground"], scores.iou["background"], scores.trimap_3px.miou)
    return (psi, *("" if value is None else f"{100 * value:.1f}" for value in figures))


def _ranks(benchmark: NetworkBenchmark, name: str) -> tuple[str, ...]:
    return tuple(f"{values[name]:.2f}" for values in benchmark.rank_correlation.values())
