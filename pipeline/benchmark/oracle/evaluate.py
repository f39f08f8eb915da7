"""How far oracles can be trusted, as tables for their cards: `python -m labelmill.pipeline.benchmark.oracle.evaluate`.

Three questions: how close their masks come to exact ones on renders that nobody trained on, how far the two agree on
generated images (the ceiling of any comparison with one of them), and how close they come to labels drawn by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.avatars.renders import HELD_OUT_SEEDS, RESOLUTION
from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.benchmark.oracle.images import (
    HandLabel,
    as_images,
    generated_images,
    hand_labels,
    rendered_images,
)
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, OracleName, open_oracle
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.scores import Scores

FOREGROUND_CLASSES = ("background", "foreground")
GENERATED_SEEDS = range(2_000)
"""Generated images on which the oracles are compared with each other."""


def compare(guesses_NHW: NDArray[Any], truths_NHW: NDArray[Any], classes: Sequence[str]) -> Scores:
    """Scores of class ids uint8 [N, H, W] against others."""
    evaluator = MaskEvaluator(classes)
    for guess_HW, truth_HW in zip(guesses_NHW, truths_NHW, strict=True):
        evaluator.add(guess_HW, truth_HW)
    return evaluator.scores()


def foreground(masks: NDArray[Any]) -> NDArray[np.uint8]:
    """0 background, 1 any other class, 255 ignore."""
    return np.where(masks == IGNORE, IGNORE, masks != 0).astype(np.uint8)


def compare_foreground(guesses_NHW: NDArray[Any], truths_NHW: NDArray[Any]) -> Scores:
    """Scores of background and of all other classes taken as one."""
    return compare(foreground(guesses_NHW), foreground(truths_NHW), FOREGROUND_CLASSES)


def score_on_hand_labels(oracle: Oracle, labels: Sequence[HandLabel]) -> Scores:
    """Background and foreground of an oracle against what a person has drawn."""
    guesses_NHW = oracle.segment(as_images(np.stack([label.image_HWC for label in labels]))).numpy()
    return compare_foreground(guesses_NHW, np.stack([label.mask_HW for label in labels]))


def oracle_tables(render_seeds: Sequence[int], generated_seeds: Sequence[int], checkpoint: str, resolution: int) -> str:
    """The tables, as Markdown, of the oracles for a resolution, which a generator makes images of."""
    oracles = {name: open_oracle(name, resolution) for name in get_args(OracleName)}
    classes = oracles["a"].classes
    images_BCHW, truths_NHW = rendered_images(render_seeds, resolution)
    exact = {name: (masks_of(oracle, images_BCHW), truths_NHW) for name, oracle in oracles.items()}
    seen_BCHW = generated_images(generated_seeds, checkpoint)
    first_NHW, second_NHW = (masks_of(oracle, seen_BCHW) for oracle in oracles.values())
    labels = hand_labels(resolution)
    columns = {f"{name}, renders": compare(*pair, classes) for name, pair in exact.items()}
    columns["a and b, generated"] = compare(second_NHW, first_NHW, classes)
    pairs = {f"{name}, renders": compare_foreground(*pair) for name, pair in exact.items()}
    pairs["a and b, generated"] = compare_foreground(second_NHW, first_NHW)
    if labels:
        pairs |= {f"{name}, hand labels": score_on_hand_labels(oracle, labels) for name, oracle in oracles.items()}
    return "\n\n".join((table("IoU", columns), table("IoU", pairs)))


def masks_of(oracle: Oracle, images_BCHW: Tensor) -> NDArray[np.uint8]:
    """Class ids uint8 [N, H, W]."""
    return np.asarray(oracle.segment(images_BCHW).cpu().numpy())


def table(corner: str, columns: dict[str, Scores]) -> str:
    """A Markdown table: a class a row, then means; a comparison a column."""
    scores = list(columns.values())
    rows = [[name, *(_figure(score.iou[name]) for score in scores)] for name in scores[0].iou]
    rows.append(["mean", *(_figure(score.miou) for score in scores)])
    rows.append(["mean within 3 px of boundaries", *(_figure(score.trimap_3px.miou) for score in scores)])
    rows.append(["images", *(f"{score.num_images:,}" for score in scores)])
    return markdown_table([corner, *columns], rows)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m labelmill.pipeline.benchmark.oracle.evaluate")
    parser.add_argument("--resolution", type=int, default=RESOLUTION, help="of the images that the oracles judge")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(oracle_tables(HELD_OUT_SEEDS, GENERATED_SEEDS, f"bundled:avatars-{given.resolution}", given.resolution))


if __name__ == "__main__":
    main()
