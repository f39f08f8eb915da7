"""What the benchmark of the alpha network measured, and as a table for people."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.labelers.alpha_network.fitted import Attempt
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig
from labelmill.schemas.scores import Scores


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CurvePoint(_Record):
    """The averaged network after a step of the last training."""

    step: int
    miou: float
    """On dev images at psi 1, snapped to the images' edges."""


class AlphaResult(_Record):
    """A fit, and its masks of the test images."""

    key: str
    name: str
    config: AlphaNetworkConfig
    fit_seconds: float
    """CPU seconds of the fit, without those of the curve."""
    attempts: tuple[Attempt, ...]
    step: int | None
    """That was taken, without labels; null where every training collapsed."""
    curve: tuple[CurvePoint, ...]
    scores: dict[str, Scores]
    """By truncation psi; empty where every training collapsed."""


class AlphaBenchmark(_Record):
    """`alpha.json`."""

    format: Literal["labelmill-alpha-benchmark"] = "labelmill-alpha-benchmark"
    version: Literal[1] = 1
    checkpoint: str
    checkpoint_sha256: str
    device: str
    threads: int
    num_test: int
    num_dev: int
    results: tuple[AlphaResult, ...]


# Abdal et al. (ICCV 2021), table 1: FFHQ at 1024 px, against BiSeNet's masks.
_PUBLISHED = "Labels4Free reports an mIoU of 90 at psi .7 and 82 at psi 1 on FFHQ, 1024 px, against BiSeNet's masks."


def markdown(benchmark: AlphaBenchmark) -> str:
    """The page."""
    good = [result for result in benchmark.results if result.scores]
    bad = [result for result in benchmark.results if result.attempts[0].collapse is not None]
    head = ("fit", "psi", "mIoU", "IoU fg", "IoU bg", "F1", "precision", "recall", "accuracy", "step", "CPU s")
    rows = [_cells(result, psi, scores) for result in good for psi, scores in result.scores.items()]
    steps = sorted({point.step for result in good for point in result.curve})
    return (
        "\n\n".join(
            [
                "# Alpha network",
                f"Foreground against background on {benchmark.num_test} test images of `{benchmark.checkpoint}`, "
                f"judged by oracle B, in percent; all figures but CPU seconds are of one confusion matrix. "
                f"{benchmark.device}, {benchmark.threads} thread. {_PUBLISHED}",
                markdown_table(head, rows),
                "## Over the steps",
                f"mIoU on {benchmark.num_dev} dev images at psi 1 of the averaged network after a step, its masks "
                f"snapped to edges. In bold the step that `fit` took without labels.",
                markdown_table(("step", *(result.name for result in good)), [_at_step(step, good) for step in steps]),
                "## Trainings that collapse",
                "What the watch saw, without labels. Restarts were off where a setting was spoilt on purpose.",
                markdown_table(
                    ("fit", "seen", "step", "in words"),
                    [
                        (result.name, str(attempt.collapse), str(attempt.looks[-1].step), attempt.words)
                        for result in bad
                        for attempt in result.attempts
                        if attempt.collapse is not None
                    ],
                    num_texts=4,
                )
                if bad
                else "None.",
            ]
        )
        + "\n"
    )


def _cells(result: AlphaResult, psi: str, scores: Scores) -> tuple[str, ...]:
    iou = scores.iou
    figures = (scores.miou, iou["foreground"], iou["background"], scores.f1, scores.precision, scores.recall)
    percents = [_percent(value) for value in (*figures, scores.accuracy)]
    return (result.name, psi, *percents, str(result.step), f"{result.fit_seconds:.0f}")


def _at_step(step: int, results: list[AlphaResult]) -> tuple[str, ...]:
    cells = [str(step)]
    for result in results:
        value = next((_percent(point.miou) for point in result.curve if point.step == step), "")
        cells.append(f"**{value}**" if step == result.step else value)
    return tuple(cells)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
