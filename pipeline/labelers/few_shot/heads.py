"""The heads: from a generator's features to the probability of each class, by one or several members.

Shape suffixes: M members, B batch, K classes, Q = M * K, D features of a pixel over all layers, H W resolution of the
maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.few_shot.features import (
    LinearMap,
    layer_widths,
    layers_of,
    map_size,
    split_by_layer,
)
from labelmill.schemas.labelers.few_shot import FewShotConfig


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


def linear_head(config: FewShotConfig, spec: GeneratorSpec, weights_DQ: Tensor, bias_Q: Tensor) -> LinearHead:
    """From coefficients over all features."""
    layers = layers_of(config, spec)
    weights = split_by_layer(weights_DQ, layer_widths(spec, layers))
    return LinearHead(LinearMap(weights, bias_Q, map_size(spec, layers)), config.head.members)


def head_shapes(config: FewShotConfig, spec: GeneratorSpec, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a head's tensors by name."""
    num_outputs = config.head.members * num_classes
    widths = layer_widths(spec, layers_of(config, spec))
    return {**{name: (width, num_outputs) for name, width in widths.items()}, "bias": (num_outputs,)}


def head_of_tensors(config: FewShotConfig, spec: GeneratorSpec, tensors: Mapping[str, Tensor]) -> Head:
    """The head that `Head.tensors` came from. tensors: of `head_shapes`, on its device."""
    layers = layers_of(config, spec)
    weights = {name: tensors[name] for name in layers}
    return LinearHead(LinearMap(weights, tensors["bias"], map_size(spec, layers)), config.head.members)
