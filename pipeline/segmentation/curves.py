"""A training as a picture: loss and scores over steps."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from labelmill.schemas.segmentation import Evaluation


def draw_curves(log: Path, evaluations: Sequence[Evaluation]) -> bytes:
    """PNG of the log's losses and, where there are scores, of mIoU and trimap mIoU."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    figure = Figure(figsize=(9, 3.5) if evaluations else (5, 3.5), layout="constrained")
    loss_axes = figure.add_subplot(1, 2 if evaluations else 1, 1)
    loss_axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], color="#36648b")
    loss_axes.set(title="Training loss", xlabel="step", ylabel="cross-entropy")
    loss_axes.set_ylim(bottom=0)
    if evaluations:
        axes = figure.add_subplot(1, 2, 2)
        steps = [evaluation.step for evaluation in evaluations]
        whole = [_percent(evaluation.scores.miou) for evaluation in evaluations]
        near = [_percent(evaluation.scores.trimap_3px.miou) for evaluation in evaluations]
        axes.plot(steps, whole, marker="o", color="#36648b", label="mIoU")
        axes.plot(steps, near, marker="o", color="#c1693c", label="mIoU within 3 px of edges")
        axes.set(title="Held out", xlabel="step", ylabel="percent", ylim=(0, 100))
        axes.legend(loc="lower right")
    picture = io.BytesIO()
    # Without the version in it, equal curves are equal files.
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    return picture.getvalue()


def _percent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
