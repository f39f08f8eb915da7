"""Heads that are networks, taught by annotated images: perceptrons on pixels, convolutions on whole images.

Shape suffixes: S pixels, D features of a pixel, P directions, F outputs of the first layer, H height, W width.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.few_shot.features import layers_of
from labelmill.pipeline.labelers.few_shot.heads import HeadNetwork, NetworkHead, new_network
from labelmill.pipeline.labelers.few_shot.networks import MLP_DEVIATION, MlpNetwork
from labelmill.pipeline.labelers.few_shot.pixels import LabeledPixels
from labelmill.pipeline.labelers.few_shot.shots import Shots
from labelmill.pipeline.labelers.few_shot.statistics import Projection
from labelmill.pipeline.labelers.few_shot.training import Example, Loop, train_on_images, train_on_pixels
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.few_shot import CnnHeadConfig, DecoderHeadConfig, FewShotConfig, MlpHeadConfig

# RepurposeGAN's code: the rate falls by a tenth every 50 epochs.
_FALL, _EPOCHS_BETWEEN_FALLS = 0.9, 50


def networks_of_pixels(
    config: FewShotConfig, spec: GeneratorSpec, pixels: LabeledPixels, projection: Projection | None, work: Path
) -> NetworkHead:
    """Perceptrons, each taught by all labeled pixels from other random weights. Raises ConfigError for one pixel."""
    head = config.head
    assert isinstance(head, MlpHeadConfig)
    if len(pixels.labels_S) < 2:
        raise ConfigError(
            "labeler.annotations: they label a single pixel, and an mlp head needs two or more; label more of them"
        )
    members = []
    for member in range(head.members):
        network = _seeded(config, spec, pixels.num_classes, member)
        assert isinstance(network, MlpNetwork)
        first = _first_layer(network, pixels.x_SP.shape[1], member)
        learner = nn.ModuleDict({"first": first, "tail": network.tail})
        loop = Loop(f"member-{member}", learner, torch.optim.Adam(learner.parameters(), head.learning_rate))

        def logits(x_SP: Tensor, first: nn.Linear = first, network: MlpNetwork = network) -> Tensor:
            return network.tail.pixels(first(x_SP))

        loop.run(head.epochs, train_on_pixels(logits, pixels, head.batch_pixels), work, member)
        _put_back(network, first, projection)
        members.append(network.eval().requires_grad_(False))
    return NetworkHead(tuple(members))


def _first_layer(network: MlpNetwork, num_inputs: int, seed: int) -> nn.Linear:
    """The layer that is taught: the network's own, or one on directions instead of features."""
    own = network.first.pixel
    if own.in_features == num_inputs:
        return own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Linear(num_inputs, own.out_features)
        nn.init.normal_(first.weight, std=MLP_DEVIATION)
        nn.init.zeros_(first.bias)
    return first


def _put_back(network: MlpNetwork, first: nn.Linear, projection: Projection | None) -> None:
    """Make the network's own first layer do what the taught one does on projected features."""
    if projection is None:
        return
    weight_FP, bias_F = first.weight.detach().double(), first.bias.detach().double()
    weight_FD = weight_FP @ projection.matrix_DP.T
    network.first.pixel.weight.data.copy_(weight_FD)
    network.first.pixel.bias.data.copy_(bias_F - weight_FD @ projection.mean_D)


def network_of_images(config: FewShotConfig, spec: GeneratorSpec, shots: Shots, work: Path) -> NetworkHead:
    """Networks that see whole images, each taught from other random weights; features of all images are in memory."""
    examples, head, members = _examples(config, spec, shots), config.head, []
    assert isinstance(head, (CnnHeadConfig, DecoderHeadConfig))
    for member in range(head.members):
        network = _seeded(config, spec, len(shots.classes), member)
        decay = head.weight_decay if isinstance(head, CnnHeadConfig) else 0.0
        optimiser = torch.optim.Adam(network.parameters(), head.learning_rate, weight_decay=decay)
        at_least = head.images_per_epoch if isinstance(head, DecoderHeadConfig) else 1
        loop = Loop(f"member-{member}", network, optimiser)
        loop.run(head.epochs, train_on_images(network, examples, at_least, _schedule(head)), work, member)
        members.append(network.eval().requires_grad_(False))
    return NetworkHead(tuple(members))


def _schedule(head: CnnHeadConfig | DecoderHeadConfig):  # type: ignore[no-untyped-def]
    """The learning rate by epoch."""
    if isinstance(head, DecoderHeadConfig):
        return lambda epoch: head.learning_rate
    return lambda epoch: head.learning_rate * _FALL ** (epoch // _EPOCHS_BETWEEN_FALLS)


def _examples(config: FewShotConfig, spec: GeneratorSpec, shots: Shots) -> list[Example]:
    layers, examples = layers_of(config, spec), list[Example]()
    for batch in shots.batches(layers):
        for index in range(len(batch)):
            features: Mapping[str, Tensor] = {name: batch.features[name][[index]].float().cpu() for name in layers}
            labels_HW = torch.from_numpy(shots.masks_NHW[len(examples)].astype(np.int64))
            examples.append(Example(features, labels_HW))
    return examples


def _seeded(config: FewShotConfig, spec: GeneratorSpec, num_classes: int, seed: int) -> HeadNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_network(config, spec, num_classes)
