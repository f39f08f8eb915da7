"""What the watch sees in masks and in the course of a training, by hand; and what a restart changes then."""

import pytest
import torch

from labelmill.pipeline.labelers.alpha_network.restarts import adjusted
from labelmill.pipeline.labelers.alpha_network.trainer import Weights
from labelmill.pipeline.labelers.alpha_network.watch import (
    Collapse,
    Look,
    Looking,
    collapse_of,
    first_judged,
    step_to_take,
)
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig

HEALTHY = {
    "coverage": 0.4, "opacity": 0.42, "spread": 0.25, "border": 0.2, "centre": 0.8, "softness": 0.05, "edges": 2.5,
}  # fmt: skip


def look(step: int, **figures: float) -> Look:
    return Look.model_validate({"step": step, **HEALTHY, **figures})


def course(*edges: float) -> list[Look]:
    """Looks at steps 10, 20, ... with edges of this strength."""
    return [look(10 * number, edges=value) for number, value in enumerate(edges, 1)]


def discs(count: int = 8, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Alphas of discs in several places, and images that are bright there."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = torch.linspace(side / 2 - 4, side / 2 + 4, count)
    inside = torch.stack([(rows - centre) ** 2 + (columns - side / 2) ** 2 < (side / 4) ** 2 for centre in centres])
    return inside.float(), inside.float()[:, None].expand(-1, 3, -1, -1) * 2 - 1


def seen(alphas_BHW: torch.Tensor, images_BCHW: torch.Tensor) -> Look:
    looking = Looking()
    for alphas_HW, images_CHW in zip(alphas_BHW, images_BCHW, strict=True):
        looking.add(alphas_HW[None], images_CHW[None])
    return looking.finish(100)


def test_figures_of_masks_by_hand() -> None:
    alphas_BHW = torch.zeros(2, 4, 4)
    alphas_BHW[:, 1:3, 1:3] = 1
    alphas_BHW[1, 0, 0] = 0.75
    images_BCHW = torch.zeros(2, 1, 4, 4)
    images_BCHW[:, :, :, 2:] = 1  # one edge of four pairs, in an image of 24 pairs
    found = seen(alphas_BHW, images_BCHW)
    assert found.coverage == pytest.approx(9 / 32, abs=1e-4)
    assert found.opacity == pytest.approx(8.75 / 32, abs=1e-4)
    assert found.spread == pytest.approx(0.5 / 16, abs=1e-4)
    assert found.border == pytest.approx((1 / 12) / 2, abs=1e-4)
    assert found.centre == 1
    assert found.softness == pytest.approx(0.25 / 32, abs=1e-4)
    # No boundary lies on the edge, which runs through the middle of the masks.
    assert found.edges == 0
    assert seen(images_BCHW[:, 0], images_BCHW).edges == pytest.approx(24 / 4, abs=1e-3)


def test_figures_are_those_of_all_images_together() -> None:
    alphas_BHW, images_BCHW = discs()
    together = Looking()
    together.add(alphas_BHW, images_BCHW)
    assert together.finish(100) == seen(alphas_BHW, images_BCHW)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("all_foreground", lambda alphas_BHW: alphas_BHW.clamp_min(0.95)),
        ("all_background", lambda alphas_BHW: alphas_BHW.clamp_max(0.05)),
        ("flat", lambda alphas_BHW: (alphas_BHW[:1]).expand_as(alphas_BHW)),
        ("flat", lambda alphas_BHW: 0.3 + 0.1 * alphas_BHW),  # pressed to no side, which no mask shows
        ("inverted", lambda alphas_BHW: 1 - alphas_BHW),
    ],
)
def test_spoilt_masks_are_a_collapse(kind: str, spoil) -> None:  # type: ignore[no-untyped-def]
    alphas_BHW, images_BCHW = discs()
    assert collapse_of([seen(alphas_BHW, images_BCHW)], 100) is None
    spoilt = seen(spoil(alphas_BHW), images_BCHW)
    assert collapse_of([spoilt], 101) is None, "too early to tell"
    collapse = collapse_of([look(90), spoilt], 80)
    assert collapse is not None and collapse.kind == kind


def test_half_clear_pixels_that_are_hardly_ever_foreground_are_flat() -> None:
    collapse = collapse_of([look(100, coverage=0.04, opacity=0.31, spread=0.06)], 100)
    assert collapse is not None and collapse.kind == "flat"


def test_masks_that_drift_away_from_their_best_are_a_collapse() -> None:
    assert collapse_of(course(2.0, 2.6, 2.5, 2.3), 20) is None
    collapse = collapse_of(course(2.0, 2.6, 2.5, 2.2), 20)
    assert collapse is not None and collapse.kind == "drifting"
    assert "best at step 30" in collapse.words and "from 2.60 to 2.20" in collapse.words
    assert collapse_of(course(3.0, 2.0, 1.9), 20) is None, "what came before is not judged"


def test_the_step_to_take_is_the_last_that_is_nearly_the_best() -> None:
    assert step_to_take(course(2.0, 2.6, 2.5, 2.3), 20) == 30
    assert step_to_take(course(2.0, 2.6, 2.5, 2.7, 2.3), 20) == 40
    assert step_to_take(course(3.0, 2.0), 20) == 20
    assert step_to_take(course(3.0), 20) is None


def test_judging_begins_when_pixels_have_been_pressed_to_a_side() -> None:
    config = AlphaNetworkConfig(method="alpha_network", steps=200)
    assert [first_judged(config, end) for end in (0.0, 0.4, 0.9)] == [60, 80, 100]


def weights(**changes: float) -> Weights:
    return Weights.of(AlphaNetworkConfig.model_validate({"method": "alpha_network", **changes}))


def test_a_restart_undoes_what_lets_a_training_collapse() -> None:
    without_floors = weights(coverage_weight=0)
    assert adjusted(without_floors, Collapse("all_foreground", "")).coverage_weight > 0
    assert adjusted(weights(), Collapse("all_foreground", "")).background_floor > weights().background_floor
    assert adjusted(weights(), Collapse("all_background", "")).foreground_floor > weights().foreground_floor
    early = weights(adversarial_weight=0.1, binarisation_start=0, binarisation_end=0)
    for kind in ("flat", "inverted"):
        later = adjusted(early, Collapse(kind, ""))
        assert later.adversarial_weight >= 1
        assert 0 < later.binarisation_start < later.binarisation_end
    fast = weights(discriminator_learning_rate=2e-3, r1_gamma=1)
    slower = adjusted(fast, Collapse("drifting", ""))
    assert slower.discriminator_learning_rate < fast.discriminator_learning_rate
    assert slower.r1_gamma > fast.r1_gamma


def test_restarts_never_leave_what_a_run_file_may_say() -> None:
    changed = weights()
    for kind in ("all_foreground", "all_background", "flat", "inverted", "drifting"):
        for _ in range(4):
            changed = adjusted(changed, Collapse(kind, ""))  # type: ignore[arg-type]
            AlphaNetworkConfig.model_validate({"method": "alpha_network", **changed.model_dump()})
