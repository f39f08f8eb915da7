"""How well the avatars prompt model knows what it is asked: `python -m labelmill.pipeline.benchmark.prompts.evaluate`.

Two questions: do prompts tell the images that have an accessory from those that do not; and does the mean of the dense
features over a region lie nearest the prompt of the region's class.

Shape suffixes: B images, C channels, H, W height and width, E embedding, N classes, P prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.avatars import draw_figure
from labelmill.pipeline.avatars.figure import CLASSES, HATS
from labelmill.pipeline.avatars.renders import HELD_OUT_SEEDS
from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.benchmark.oracle.images import GENERATOR, generated_images, rendered_images
from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.prompt_models import bundled_weights
from labelmill.pipeline.prompt_models.avatars import AvatarsPrompts, load_avatars_prompts
from labelmill.pipeline.prompt_models.base import PromptModel

GENERATED_SEEDS = range(100_000, 101_000)
_BATCH_SIZE = 256
TEMPLATES = ("{}", "a photo of {}", "this is a photo of a {}")
"""Each question about regions is asked in these words."""
MIN_PIXELS = 3
"""Smaller regions of an image are not asked for."""


@dataclass(frozen=True)
class RegionNaming:
    """Of regions, each an image's pixels of one class: how many are named right."""

    right: dict[str, float]
    """The share, by class; absent where no image has the class."""
    counts: dict[str, int]
    """Regions by class."""
    pooled: dict[str, str]
    """The name of the mean of all images' regions, by class: what a cluster that is the class would be called."""

    @property
    def mean(self) -> float:
        """The mean over classes."""
        return float(np.mean(list(self.right.values())))


@dataclass(frozen=True)
class AccessoryScores:
    """How well "a person with ..." against "a person without ..." tells images."""

    balanced_accuracy: float
    """Of the sign of the difference of cosines; the mean of the share right among images with and without."""
    auc: float
    """Of the cosine with "a person with ..." alone: the chance that an image with it scores above one without."""


def name_regions(
    model: PromptModel, images_BCHW: Tensor, masks_BHW: NDArray[np.integer], template: str = "{}"
) -> RegionNaming:
    """Name every class's region in every image by the nearest of the prompts of CLASSES.

    Dense maps are brought to the masks' size. Masks hold class ids; regions below MIN_PIXELS are left out.
    """
    prompts_NE = model.embed_prompts([template.format(name) for name in CLASSES]).cpu()
    right, counts = np.zeros(len(CLASSES)), np.zeros(len(CLASSES), int)
    sums_NE = torch.zeros(len(CLASSES), prompts_NE.shape[1])
    for start in range(0, len(images_BCHW), _BATCH_SIZE):
        masks = torch.from_numpy(np.asarray(masks_BHW[start : start + _BATCH_SIZE], np.int64))
        dense_BEHW = model.dense(images_BCHW[start : start + _BATCH_SIZE]).cpu()
        dense_BEHW = functional.interpolate(dense_BEHW, masks.shape[1:], mode="bilinear")
        inside_BNHW = functional.one_hot(masks, len(CLASSES)).permute(0, 3, 1, 2).float()
        pixels_BN = inside_BNHW.sum(dim=(2, 3))
        means_BNE = torch.einsum("bnhw,behw->bne", inside_BNHW, dense_BEHW) / pixels_BN.clamp_min(1)[..., None]
        asked_BN = pixels_BN >= MIN_PIXELS
        named_BN = (functional.normalize(means_BNE, dim=2) @ prompts_NE.T).argmax(dim=2)
        correct_BN = (named_BN == torch.arange(len(CLASSES))) & asked_BN
        right += correct_BN.sum(dim=0).numpy()
        counts += asked_BN.sum(dim=0).numpy()
        sums_NE += (means_BNE * asked_BN[..., None]).sum(dim=0)
    overall_N = (functional.normalize(sums_NE, dim=1) @ prompts_NE.T).argmax(dim=1)
    asked = [index for index in range(len(CLASSES)) if counts[index]]
    return RegionNaming(
        {CLASSES[index]: float(right[index] / counts[index]) for index in asked},
        {CLASSES[index]: int(counts[index]) for index in asked},
        {CLASSES[index]: CLASSES[int(overall_N[index])] for index in asked},
    )


def score_accessory(model: PromptModel, images_BE: Tensor, has_B: NDArray[np.bool_], words: str) -> AccessoryScores:
    """How well prompts tell who has "a hat", "glasses", "a beard", from image embeddings."""
    prompts_2E = model.embed_prompts([f"a person with {words}", f"a person without {words}"]).cpu()
    cosines_B2 = (images_BE @ prompts_2E.T).numpy()
    guessed_B = cosines_B2[:, 0] > cosines_B2[:, 1]
    accuracy = (guessed_B[has_B].mean() + (~guessed_B[~has_B]).mean()) / 2
    with_it, without_it = cosines_B2[has_B, 0], cosines_B2[~has_B, 0]
    above = (with_it[:, None] > without_it[None, :]).mean() + 0.5 * (with_it[:, None] == without_it[None, :]).mean()
    return AccessoryScores(float(accuracy), float(above))


def accessories_of(seeds: Sequence[int]) -> dict[str, NDArray[np.bool_]]:
    """Which renders have what, by the words of a prompt."""
    figures = [draw_figure(seed) for seed in seeds]
    return {
        "a hat": np.asarray([figure.top in HATS for figure in figures]),
        "glasses": np.asarray([figure.accessories is not None for figure in figures]),
        "a beard": np.asarray([figure.facial_hair is not None for figure in figures]),
    }


def prompt_tables(
    model: AvatarsPrompts, checkpoint: str, render_seeds: Sequence[int], generated_seeds: Sequence[int]
) -> str:
    """The card's tables, as Markdown. checkpoint: a generator of portraits, whose size the renders have, too."""
    seen_BCHW = generated_images(generated_seeds, checkpoint)
    resolution = seen_BCHW.shape[-1]
    images_BCHW, masks_BHW = rendered_images(render_seeds, resolution)
    images_BE = model.embed_images(images_BCHW).cpu()
    head, rows = ("prompt", "renders with it", "balanced accuracy, with against without", "AUC of with"), []
    for words, has_B in accessories_of(render_seeds).items():
        scores = score_accessory(model, images_BE, has_B, words)
        figures = (f"{scores.balanced_accuracy:.3f}", f"{scores.auc:.3f}")
        rows.append((f"a person with {words}", f"{int(has_B.sum())} of {len(has_B):,}", *figures))
    renders = [name_regions(model, images_BCHW, masks_BHW, template) for template in TEMPLATES]
    judged_BHW = open_oracle("b", resolution).segment(seen_BCHW).numpy()
    generated = [name_regions(model, seen_BCHW, judged_BHW, template) for template in TEMPLATES]
    return "\n\n".join((markdown_table(head, rows), _naming_table(renders, generated)))


def _naming_table(renders: list[RegionNaming], generated: list[RegionNaming]) -> str:
    head = ("class", *(f'renders, "{t}"' for t in TEMPLATES), "regions",
            *(f'generated, "{t}"' for t in TEMPLATES), "regions", "named together")  # fmt: skip
    rows = []
    for name in CLASSES:
        row = [name]
        for namings in (renders, generated):
            row += [f"{naming.right[name]:.3f}" if name in naming.right else "none" for naming in namings]
            row.append(f"{namings[0].counts.get(name, 0):,}")
        row.append(generated[0].pooled.get(name, "none"))
        rows.append(tuple(row))
    means = [[f"{naming.mean:.3f}" for naming in namings] for namings in (renders, generated)]
    rows.append(("mean", *means[0], "", *means[1], "", ""))
    return markdown_table(head, rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m labelmill.pipeline.benchmark.prompts.evaluate")
    parser.add_argument("--weights", type=Path, help="the model's file; the bundled one unless given")
    parser.add_argument("--generator", default=GENERATOR, help="bundled:NAME, a path or a URL")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    prompt_model = load_avatars_prompts(given.weights or bundled_weights("avatars-prompts"))
    print(prompt_tables(prompt_model, given.generator, HELD_OUT_SEEDS, GENERATED_SEEDS))


if __name__ == "__main__":
    main()
