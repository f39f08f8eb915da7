"""A trained network's weights as float16, half as large, as bundled networks are kept."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def half_weights(network: nn.Module) -> dict[str, Tensor]:
    """What `load_half_weights` needs, float16 on the CPU: batch normalisation's counts of batches, which nothing reads,
    are left out."""
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point()
    }
    for name, tensor in weights.items():
        assert bool(torch.isfinite(tensor).all()), f"{name} does not fit float16"
    return weights


def load_half_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put stored weights into a float32 network. Raises ValueError where they are not this network's."""
    counts = {name: tensor for name, tensor in network.state_dict().items() if not tensor.is_floating_point()}
    try:
        network.load_state_dict({**counts, **{name: tensor.float() for name, tensor in weights.items()}})
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
