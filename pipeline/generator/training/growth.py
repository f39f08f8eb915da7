"""Growing a generator to twice its resolution: what learns when, how fast, and when it has failed.

The generator starts as the small one, its images enlarged by StyleGAN2's own filter (the new block's toRGB is zero).
A fresh discriminator does not see fine detail soon enough to teach the new block before the old ones drift: so it gets
detail as channels of its own (discriminator.py), the old blocks are frozen at first, and then anchored to what the
small generator shows. No paper's recipe: measured against its parts left out, at 32 to 64 px; Karras et al. 2018
(section 2) fade new blocks in instead.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from labelmill.pipeline.process.log import log
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.training import GrowthConfig

CHANCE_RANK = 0.6
"""A discriminator that ranks less than this share of pairs rightly teaches nothing; 0.5 is chance."""
RANK_STEPS = 100
"""Steps that are judged together."""
PATIENCE_IMAGES = 1_000
"""Images for which a generator that has just begun to move may fool the discriminator."""


class TrainingFailedError(LabelmillError):
    """The training cannot come to anything as it is set."""


@dataclass(frozen=True)
class Phase:
    """How the coming step treats the generator."""

    generator_learns: bool
    old_rate: float
    """Rate of the old blocks as a share of the new block's; 0: frozen."""
    anchor: float
    """Weight of the anchor."""
    path_length: bool
    """Whether path-length regularisation applies."""


def phase_at(growth: GrowthConfig, images_seen: int) -> Phase:
    """The phase of the step that begins after so many images."""
    since = images_seen - growth.head_start_images
    if since < 0:
        return Phase(False, 0.0, 0.0, False)
    if since < growth.frozen_images:
        return Phase(True, 0.0, growth.anchor, False)
    since -= growth.frozen_images
    if since < growth.anchored_images:
        share = since / growth.anchored_images
        ratio = growth.final_anchor / growth.anchor if growth.anchor > 0 else 0.0
        return Phase(True, growth.old_rate, growth.anchor * ratio**share, False)
    return Phase(True, growth.settled_old_rate, 0.0, True)


def plain_phase(head_start_images: int, images_seen: int) -> Phase:
    """The phase of a training that does not grow."""
    return Phase(images_seen >= head_start_images, 1.0, 0.0, True)


def new_parameters(names: Iterable[str], resolution: int) -> frozenset[str]:
    """Those of the block of a resolution; all others are old."""
    return frozenset(name for name in names if name.startswith(f"synthesis.b{resolution}."))


class RankWatch:
    """Fails a growth whose discriminator is at chance while the old blocks are frozen, by the mean rank of every
    RANK_STEPS steps; later, when a good generator may be what it cannot tell from data, it warns."""

    def __init__(self, growth: GrowthConfig) -> None:
        self._first_images = growth.head_start_images + PATIENCE_IMAGES
        self._last_images = growth.head_start_images + growth.frozen_images
        self.total, self.steps = 0.0, 0

    def add(self, rank: float, images_seen: int) -> None:
        """Judge after a step. Raises TrainingFailedError."""
        if images_seen < self._first_images:
            return
        self.total, self.steps = self.total + rank, self.steps + 1
        if self.steps < RANK_STEPS:
            return
        mean, self.total, self.steps = self.total / self.steps, 0.0, 0
        if mean >= CHANCE_RANK:
            return
        found = (
            f"after {images_seen:,} images the discriminator prefers real images in {mean:.0%} of pairs, which is "
            f"little better than chance ({RANK_STEPS} steps; {CHANCE_RANK:.0%} is the least)"
        )
        if images_seen > self._last_images:
            log(f"{found}: check whether the sample sheets still improve", level="warning")
            return
        raise TrainingFailedError(
            f"{found}: the generator learns nothing from it. Start again in another output with a larger "
            f"discriminator.detail, a smaller optimisation.batch_size or a lower generator_learning_rate"
        )
