"""Probabilities as bytes: they sum to 255, none is off by a level, the likeliest class stays the likeliest."""

import numpy as np
import pytest
import torch

from labelmill.pipeline.pictures.class_maps import stacked, sum_problem, sum_to_one, to_levels, unstacked


@pytest.mark.parametrize("num_classes", [2, 3, 11, 200])
def test_levels_sum_to_255_and_follow_the_probabilities(num_classes: int) -> None:
    torch.manual_seed(num_classes)
    probabilities_KHW = torch.softmax(4 * torch.randn(num_classes, 24, 32), dim=0)
    levels_KHW = to_levels(probabilities_KHW).numpy()
    assert sum_to_one(probabilities_KHW[None]).tolist() == [True]
    assert levels_KHW.dtype == np.uint8 and levels_KHW.shape == (num_classes, 24, 32)
    assert sum_problem(levels_KHW) is None
    exact_KHW = 255 * probabilities_KHW.double().numpy()
    assert np.abs(levels_KHW - exact_KHW).max() < 1.001
    order_KHW = exact_KHW.argsort(axis=0)
    assert (np.diff(np.take_along_axis(levels_KHW, order_KHW, axis=0).astype(int), axis=0) >= 0).all()


def test_the_rest_of_255_goes_to_the_largest_remainders_and_among_equals_to_the_first() -> None:
    def levels(*probabilities: float) -> list[int]:
        return to_levels(torch.tensor(probabilities)[:, None, None])[:, 0, 0].tolist()  # type: ignore[no-any-return]

    assert levels(0, 1, 0) == [0, 255, 0]
    assert levels(0.5, 0.5) == [128, 127]
    assert levels(0.25, 0.25, 0.25, 0.25) == [64, 64, 64, 63]
    assert levels(0.001, 0.003, 0.996) == [0, 1, 254]  # .255, .765 and 253.98


@pytest.mark.parametrize("wrong", [[0.5, 0.498], [1.1, -0.1], [float("nan"), 1.0]])
def test_images_without_probabilities_are_told(wrong: list[float]) -> None:
    probabilities_BKHW = torch.full((3, 2, 4, 4), 0.5)
    probabilities_BKHW[1, :, 2, 3] = torch.tensor(wrong)
    assert sum_to_one(probabilities_BKHW).tolist() == [True, False, True]


def test_maps_lie_one_below_the_other() -> None:
    levels_KHW = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    pixels_HW = stacked(levels_KHW)
    assert np.array_equal(pixels_HW, np.concatenate([*levels_KHW]))
    assert np.array_equal(unstacked(pixels_HW, 3), levels_KHW)
    assert sum_problem(levels_KHW) == "sum to 24 instead of 255 in row 0, column 0"
