"""Whether a training goes well, without labels: what the masks of fixed images look like from time to time.

An alpha network can fail without any sign in its losses: everything becomes foreground, or background; every image gets
the same mask; foreground and background change places, where the coverage looks healthy; or good masks drift away,
because a discriminator that is too fast rewards blobs of background. Where masks are right, their boundaries lie on
edges of the images: how strong the images' edges are there, beside all places, rises and falls with the true IoU, and
says which step to take.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig

CollapseKind = Literal["all_foreground", "all_background", "flat", "inverted", "drifting"]

MOST_COVERAGE, LEAST_COVERAGE, LEAST_OPACITY = 0.9, 0.05, 0.15
LEAST_SPREAD = 0.03
"""Of masks over images, the mean over places of their standard deviation. Good trainings of the bundled generator gave
.2 and more."""
MOST_DRIFT = 0.85
"""Share of the best edge strength below which masks have drifted away. Trainings that lost 3 points of IoU fell to
.8."""
NEAR_BEST = 0.95
"""The last step with so much of the best edge strength is taken: the edges are best a little before the masks are."""
_EARLIEST_SHARE = 0.3
"""Of the steps, before which nothing is judged: the averaged network still is what it was at random."""


class Look(BaseModel):
    """What the averaged network's masks of the watched images look like after a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    coverage: float
    """Share of foreground."""
    opacity: float
    """Mean of alpha."""
    spread: float
    """Standard deviation of masks over images, its mean over places."""
    border: float
    """Share of foreground along the border."""
    centre: float
    """Share of foreground in the middle quarter of the image."""
    softness: float
    """Mean of min(alpha, 1 - alpha)."""
    edges: float
    """Mean difference of colours across the masks' boundaries over that between all neighbours: 1 where boundaries lie
    anywhere, 0 where there are none."""


@dataclass(frozen=True)
class Collapse:
    """How a training has failed."""

    kind: CollapseKind
    words: str
    """What was seen, as the end of a sentence."""


class Looking:
    """Adds up the figures of images and their alphas, batch by batch."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, alphas_BHW: Tensor, images_BCHW: Tensor) -> None:
        """alphas: float32 in [0, 1]; images: float32."""
        masks_BHW = (alphas_BHW > 0.5).float()
        height, width = masks_BHW.shape[1:]
        frame = max(1, min(height, width) // 32)
        is_inner_HW = torch.zeros(height, width, dtype=torch.bool, device=masks_BHW.device)
        is_inner_HW[frame:-frame, frame:-frame] = True
        centre_BHW = masks_BHW[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
        self._count += len(masks_BHW)
        figures = {
            "masks_HW": masks_BHW.sum(dim=0),
            "opacity": alphas_BHW.mean(dim=(1, 2)).sum(),
            "border": masks_BHW[:, ~is_inner_HW].mean(dim=1).sum(),
            "centre": centre_BHW.mean(dim=(1, 2)).sum(),
            "softness": torch.minimum(alphas_BHW, 1 - alphas_BHW).mean(dim=(1, 2)).sum(),
            **_edges(masks_BHW, images_BCHW),
        }
        self._sums = {name: self._sums.get(name, 0) + value for name, value in figures.items()}

    def finish(self, step: int) -> Look:
        """The figures of all that was added."""
        sums, count = self._sums, self._count
        share_HW = sums["masks_HW"] / count
        along = sums["along"] / sums["boundary"].clamp_min(1)
        figures = {
            "coverage": share_HW.mean(),
            "spread": (share_HW * (1 - share_HW)).sqrt().mean(),
            "edges": along / (sums["colours"] / sums["neighbours"]).clamp_min(1e-6),
            **{name: sums[name] / count for name in ("opacity", "border", "centre", "softness")},
        }
        return Look(step=step, **{name: round(float(value), 4) for name, value in figures.items()})


def watched(config: AlphaNetworkConfig, sampler: Sampler, layers: Collection[str], count: int) -> Iterator[Batch]:
    """The first of the images that every look is at, with features. sampler: at the psi of `fit`."""
    first = config.fit_first_seed
    return sampler.batches(range(first, first + min(count, config.watch_samples)), layers)


@torch.no_grad()
def look_at(network: Callable[[Mapping[str, Tensor]], Tensor], batches: Iterable[Batch], step: int) -> Look:
    """The figures of a network's masks of some images.

    network: from features to logits [B, H, W]. batches: with the features that it reads.
    """
    looking = Looking()
    for batch in batches:
        looking.add(torch.sigmoid(network(batch.features)), batch.images_BCHW)
    return looking.finish(step)


def _edges(masks_BHW: Tensor, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Sums over pairs of neighbouring pixels: differences of colours and of masks, their products, and the pairs."""
    sums = {name: torch.zeros((), device=masks_BHW.device) for name in ("along", "boundary", "colours", "neighbours")}
    for axis in (1, 2):
        colours_BHW, crossed_BHW = images_BCHW.diff(dim=axis + 1).abs().mean(dim=1), masks_BHW.diff(dim=axis).abs()
        sums["along"] += (colours_BHW * crossed_BHW).sum()
        sums["boundary"] += crossed_BHW.sum()
        sums["colours"] += colours_BHW.sum()
        sums["neighbours"] += crossed_BHW.numel()
    return sums


def first_judged(config: AlphaNetworkConfig, binarisation_end: float) -> int:
    """The first step after which looks count: pixels have been pressed to a side."""
    return round(max(_EARLIEST_SHARE, min(binarisation_end, 0.5)) * config.steps)


def collapse_of(looks: Sequence[Look], first_step: int) -> Collapse | None:
    """How the training has failed by its last look; None where it has not, or it is too early to tell.

    looks: in order of their steps. first_step: see `first_judged`.
    """
    judged = [look for look in looks if look.step >= first_step]
    if not judged:
        return None
    last, best = judged[-1], max(look.edges for look in judged)
    if last.coverage > MOST_COVERAGE:
        return Collapse("all_foreground", f"{last.coverage:.0%} of the images is foreground")
    if last.coverage < LEAST_COVERAGE and last.opacity < LEAST_OPACITY:
        return Collapse("all_background", f"{last.coverage:.1%} of the images is foreground")
    if last.coverage < LEAST_COVERAGE or last.spread < LEAST_SPREAD:
        figures = f"{last.coverage:.0%} foreground, spread {last.spread:.3f}, mean alpha {last.opacity:.2f}"
        return Collapse("flat", f"masks of all images are the same ({figures})")
    if last.border > last.centre:
        return Collapse(
            "inverted", f"{last.border:.0%} of the border is foreground, but {last.centre:.0%} of the middle"
        )
    if last.edges < MOST_DRIFT * best:
        return Collapse(
            "drifting",
            f"masks, best at step {step_to_take(looks, first_step)}, drifted away from the images' edges, whose "
            f"strength along boundaries fell from {best:.2f} to {last.edges:.2f}",
        )
    return None


def step_to_take(looks: Sequence[Look], first_step: int) -> int | None:
    """The last judged step whose edges are nearly as strong as the best; None where nothing was judged."""
    judged = [look for look in looks if look.step >= first_step]
    best = max((look.edges for look in judged), default=0.0)
    return max((look.step for look in judged if look.edges >= NEAR_BEST * best), default=None)
