"""Weights as float16: all that a network needs, and nothing of another one."""

import pytest
import torch
from torch import nn

from labelmill.pipeline.training.half_weights import half_weights, load_half_weights


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))


def test_they_are_kept_to_three_digits() -> None:
    first, second = network(4), network(4)
    first(torch.randn(2, 3, 4, 4))  # statistics and their count are not as they begin
    with torch.no_grad():
        second[0].weight.zero_()
    weights = half_weights(first)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert "1.num_batches_tracked" not in weights and "1.running_mean" in weights
    load_half_weights(second, weights)
    assert second[0].weight.dtype == torch.float32
    torch.testing.assert_close(second.eval()(torch.ones(1, 3, 2, 2)), first.eval()(torch.ones(1, 3, 2, 2)), rtol=1e-2,
                               atol=1e-2)  # fmt: skip


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match="Error"):
        load_half_weights(network(4), half_weights(network(5)))


def test_what_float16_cannot_hold_is_not_written() -> None:
    large = network(4)
    with torch.no_grad():
        large[0].weight.fill_(1e6)
    with pytest.raises(AssertionError, match=r"0\.weight does not fit float16"):
        half_weights(large)
