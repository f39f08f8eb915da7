"""What is changed when a training has collapsed: each kind of collapse has one known cause or two."""

from labelmill.pipeline.labelers.alpha_network.trainer import Weights
from labelmill.pipeline.labelers.alpha_network.watch import Collapse

_LEAST_COVERAGE_WEIGHT, _LEAST_ADVERSARIAL_WEIGHT, _LEAST_R1 = 6.0, 1.0, 10.0
_LEAST_START, _LEAST_LENGTH = 0.2, 0.3
_RAISED, _LATER, _FLOOR_STEP, _SLOWER = 2.0, 0.1, 0.1, 0.3


def adjusted(weights: Weights, collapse: Collapse) -> Weights:
    """The weights of the next attempt."""
    if collapse.kind in ("all_foreground", "all_background"):
        return weights.model_copy(update=_wider_floors(weights, collapse.kind == "all_foreground"))
    if collapse.kind == "drifting":
        return weights.model_copy(
            update={
                "discriminator_learning_rate": weights.discriminator_learning_rate * _SLOWER,
                "r1_gamma": max(weights.r1_gamma, _LEAST_R1),
            }
        )
    return weights.model_copy(update=_earlier_verdict(weights))


def _wider_floors(weights: Weights, of_background: bool) -> dict[str, float]:
    """A higher floor for the side that is missing, as far as the other one leaves room, and a price for it."""
    own, other = ("background_floor", "foreground_floor") if of_background else ("foreground_floor", "background_floor")
    floor = min(getattr(weights, own) + _FLOOR_STEP, max(getattr(weights, own), 0.95 - getattr(weights, other)))
    return {own: floor, "coverage_weight": max(_RAISED * weights.coverage_weight, _LEAST_COVERAGE_WEIGHT)}


def _earlier_verdict(weights: Weights) -> dict[str, float]:
    """The discriminator speaks louder, and before pixels are pressed to a side."""
    start = min(max(weights.binarisation_start + _LATER, _LEAST_START), 0.6)
    return {
        "adversarial_weight": max(_RAISED * weights.adversarial_weight, _LEAST_ADVERSARIAL_WEIGHT),
        "binarisation_start": start,
        "binarisation_end": min(max(weights.binarisation_end + _LATER, start + _LEAST_LENGTH), 0.9),
    }
