"""The heads: from a generator's features to the probability of each class, by one or several members.

Shape suffixes: M members, B batch, K classes, Q = M * K, D features of a pixel over all layers, H W resolution of the
maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.few_shot.features import (
    LinearMap,
    layer_resolutions,
    layer_widths,
    layers_of,
    map_size,
    num_doublings,
    split_by_layer,
)
from labelmill.pipeline.labelers.few_shot.networks import CnnNetwork, DecoderNetwork, MlpNetwork
from labelmill.schemas.labelers.few_shot import FewShotConfig

HeadNetwork = MlpNetwork | CnnNetwork | DecoderNetwork


class Head(Protocol):
    """What was learned, ready to label."""

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """Probabilities [M, B, K, H, W] float32. features: [B, C, h, w] by layer."""

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, for the file."""


@dataclass(frozen=True)
class LinearHead:
    """Logits that are linear in a pixel's features."""

    logits: LinearMap
    num_members: int

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        logits_BQHW = self.logits(features)
        return logits_BQHW.unflatten(1, (self.num_members, -1)).transpose(0, 1).softmax(dim=2)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.logits.weights, "bias": self.logits.bias_Q}


@dataclass(frozen=True)
class NetworkHead:
    """Networks in evaluation mode, each a member."""

    networks: tuple[HeadNetwork, ...]

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        # One after the other: their inner maps are the largest of all.
        return torch.stack([network(features).softmax(dim=1) for network in self.networks])

    def to(self, device: torch.device) -> "NetworkHead":
        """The same on a device."""
        return NetworkHead(tuple(network.to(device) for network in self.networks))

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{member}.{name}": tensor
            for member, network in enumerate(self.networks)
            for name, tensor in _weights(network).items()
        }


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """All but the counters of batch normalisation."""
    return {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


def new_network(config: FewShotConfig, spec: GeneratorSpec, num_classes: int) -> HeadNetwork:
    """A member as it is before training, from PyTorch's random numbers. Raises ValueError for a linear head."""
    layers = layers_of(config, spec)
    widths, size, head = layer_widths(spec, layers), map_size(spec, layers), config.head
    if head.type == "mlp":
        return MlpNetwork(widths, size, head.hidden, num_classes)
    if head.type == "cnn":
        return CnnNetwork(widths, size, head.size, num_classes)
    if head.type == "decoder":
        resolutions = layer_resolutions(spec)
        by_resolution = {resolutions[name]: (name, width) for name, width in widths.items()}
        return DecoderNetwork(by_resolution, head.width, head.dropout, num_doublings(spec, layers), num_classes)
    raise ValueError(f"a {head.type} head is no network")


def linear_head(config: FewShotConfig, spec: GeneratorSpec, weights_DQ: Tensor, bias_Q: Tensor) -> LinearHead:
    """From coefficients over all features."""
    layers = layers_of(config, spec)
    weights = split_by_layer(weights_DQ, layer_widths(spec, layers))
    return LinearHead(LinearMap(weights, bias_Q, map_size(spec, layers)), config.head.members)


def head_shapes(config: FewShotConfig, spec: GeneratorSpec, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a head's tensors by name."""
    if config.head.type == "linear":
        num_outputs = config.head.members * num_classes
        widths = layer_widths(spec, layers_of(config, spec))
        return {**{name: (width, num_outputs) for name, width in widths.items()}, "bias": (num_outputs,)}
    with torch.device("meta"):
        weights = _weights(new_network(config, spec, num_classes))
    members = range(config.head.members)
    return {f"{member}.{name}": tuple(tensor.shape) for member in members for name, tensor in weights.items()}


def head_of_tensors(
    config: FewShotConfig, spec: GeneratorSpec, tensors: Mapping[str, Tensor], num_classes: int
) -> Head:
    """The head that `Head.tensors` came from. tensors: of `head_shapes`, on its device."""
    layers = layers_of(config, spec)
    if config.head.type == "linear":
        weights = {name: tensors[name] for name in layers}
        return LinearHead(LinearMap(weights, tensors["bias"], map_size(spec, layers)), config.head.members)
    members = []
    with torch.random.fork_rng(devices=[]):
        for member in range(config.head.members):
            network = new_network(config, spec, num_classes)
            own = {name.removeprefix(f"{member}."): tensor for name, tensor in tensors.items()
                   if name.startswith(f"{member}.")}  # fmt: skip
            network.load_state_dict(own, strict=False)  # without counters
            members.append(network.to(tensors[next(iter(tensors))].device).eval().requires_grad_(False))
    return NetworkHead(tuple(members))
