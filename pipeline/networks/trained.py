"""A network that users have, from a file: images in, classes out. What a network labeler and a judge run.

Shape suffixes: B batch, C channels, H height, W width, O outputs, K classes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.checkpoints.source import located_reference, read_bytes
from labelmill.pipeline.networks.onnx_network import OnnxNetwork
from labelmill.pipeline.networks.segmenter import Segmenter, parse_segmenter
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.errors import CheckpointError, ConfigError
from labelmill.schemas.network import IGNORED, NetworkConfig
from labelmill.schemas.sample import IGNORE

Size = tuple[int, int]
# The longer side in the network is at most this many times the shorter one: memory.
_MOST_ELONGATED = 8


class _Network(Protocol):
    """What a file holds."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the outputs; None where the file does not state them."""

    @property
    def fixed_size(self) -> Size | None:
        """The only height and width that it takes."""

    @property
    def side(self) -> int | None:
        """The shorter side that suits it."""

    @property
    def gives_indices(self) -> bool:
        """Its scores are 0 and 1, whatever the configuration says."""

    def scores(self, images_BCHW: Tensor, num_outputs: int) -> Tensor:
        """[B, O, h, w] of RGB images in [0, 1]."""


class _TrainedSegmenter:
    """A network of `labelmill train`."""

    fixed_size, gives_indices = None, False

    def __init__(self, content: bytes, name: str, config: NetworkConfig, device: torch.device) -> None:
        if config.own_normalisation:
            raise ConfigError(
                f"{name}: a network of `labelmill train` normalises by itself; leave out "
                f"{', '.join(config.own_normalisation)}"
            )
        self._segmenter: Segmenter
        self._segmenter, card = parse_segmenter(content, name, device)
        self.classes, self.side = card.classes, min(card.image_shape.size)
        self._device = device

    def scores(self, images_BCHW: Tensor, num_outputs: int) -> Tensor:
        with repeatable_kernels():
            scores_BOHW: Tensor = self._segmenter(images_BCHW.to(self._device))
        return scores_BOHW


@dataclass(frozen=True)
class Verdict:
    """What a network says of images, at their resolution."""

    masks_BHW: Tensor
    """uint8: class of the likeliest output; 255 where that is `ignore`."""
    probabilities_BKHW: Tensor
    """float32 in [0, 1]: sums over the outputs of a class. Without `ignore`, so their sum over K may be less than 1."""


class TrainedNetwork:
    """A network and the classes that it tells apart."""

    def __init__(self, network: _Network, name: str, config: NetworkConfig) -> None:
        """Raises ConfigError where file and configuration do not go together."""
        self._network, self._name = network, name
        self._are_logits = config.scores == "logits" and not network.gives_indices
        self._size = _size(network, name, config)
        named = tuple(config.classes) if config.classes is not None else network.classes
        if named is None:
            raise ConfigError(f"{name}: does not state its classes; give classes: [background, ...], one per output")
        if config.classes is not None and network.classes is not None and len(network.classes) != len(named):
            raise ConfigError(
                f"{name}: has {len(network.classes)} outputs ({', '.join(network.classes)}), classes names {len(named)}"
            )
        self._outputs = named
        self.classes: tuple[str, ...] = tuple(dict.fromkeys(each for each in named if each != IGNORED))
        """Names of the mask values 0, 1, ..."""
        if len(self.classes) < 2 or "" in self.classes:
            raise ConfigError(f"{name}: needs two different classes at least, got {', '.join(named)}")

    @torch.no_grad()
    def segment(self, images_BHWC: Tensor) -> Verdict:
        """Classes of each pixel of images, uint8 [B, H, W, 3 or 1]. Raises CheckpointError."""
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float() / 255
        height, width = images_BCHW.shape[-2:]
        size = network_size(self._size, (height, width))
        if size != (height, width):
            images_BCHW = functional.interpolate(images_BCHW, size=size, mode="bilinear", antialias=True).clamp(0, 1)
        scores_BOHW = self._network.scores(images_BCHW, len(self._outputs))
        if scores_BOHW.shape[-2:] != (height, width):
            scores_BOHW = functional.interpolate(scores_BOHW, size=(height, width), mode="bilinear")
        return self._verdict(self._probabilities(scores_BOHW))

    def _probabilities(self, scores_BOHW: Tensor) -> Tensor:
        """[B, O, H, W]; they sum to 1 over O, or are 0 where nothing is said."""
        if scores_BOHW.shape[1] == 1 and len(self._outputs) == 2:
            one_B1HW = scores_BOHW.sigmoid() if self._are_logits else scores_BOHW.clamp(0, 1)
            return torch.cat((1 - one_B1HW, one_B1HW), dim=1)
        if scores_BOHW.shape[1] != len(self._outputs):
            raise CheckpointError(
                f"{self._name}: has {scores_BOHW.shape[1]} outputs, but {len(self._outputs)} classes are named "
                f"({', '.join(self._outputs)})"
            )
        if self._are_logits:
            return scores_BOHW.softmax(dim=1)
        return scores_BOHW.clamp_min(0) / scores_BOHW.clamp_min(0).sum(dim=1, keepdim=True).clamp_min(1e-6)

    def _verdict(self, probabilities_BOHW: Tensor) -> Verdict:
        said_BHW = probabilities_BOHW.sum(dim=1) > 0
        values_O = torch.tensor([self._value(name) for name in self._outputs], dtype=torch.uint8)
        masks_BHW = values_O.to(probabilities_BOHW.device)[probabilities_BOHW.argmax(dim=1)]
        merged = [probabilities_BOHW[:, self._called(name)].sum(dim=1) for name in self.classes]
        return Verdict(masks_BHW.masked_fill(~said_BHW, IGNORE), torch.stack(merged, dim=1))

    def _value(self, name: str) -> int:
        return IGNORE if name == IGNORED else self.classes.index(name)

    def _called(self, name: str) -> list[int]:
        return [index for index, each in enumerate(self._outputs) if each == name]


def read_network(config: NetworkConfig) -> bytes:
    """The network's file. Raises CheckpointError."""
    return read_bytes(located_reference(config.model, config.folder))


def parse_network(content: bytes, config: NetworkConfig, device: torch.device) -> TrainedNetwork:
    """The network of a file's content. Raises CheckpointError for what is none, ConfigError where the configuration
    does not fit it, or the extra that it needs is not installed. Executes nothing of the file."""
    name = config.model
    if content[:4] == b"PK\x03\x04" or content[:1] == b"\x80":
        raise CheckpointError(
            f"{name}: is a PyTorch file, which may hold code and is never loaded; export the network to ONNX "
            f"(torch.onnx.export)"
        )
    is_safetensors = content[8:9] == b"{"
    network = _TrainedSegmenter(content, name, config, device) if is_safetensors else OnnxNetwork(content, name, config)
    return TrainedNetwork(network, name, config)


def open_network(config: NetworkConfig, device: torch.device) -> tuple[TrainedNetwork, str]:
    """A network and the SHA-256 (hex) of its file. Raises what `read_network` and `parse_network` raise."""
    content = read_network(config)
    return parse_network(content, config, device), content_sha256(content)


def content_sha256(content: bytes) -> str:
    """SHA-256 of a network's file, hex."""
    return hashlib.sha256(content).hexdigest()


def _size(network: _Network, name: str, config: NetworkConfig) -> int | Size | None:
    if network.fixed_size is None:
        return config.size or network.side
    if config.size not in (None, network.fixed_size):
        raise ConfigError(f"{name}: takes images of {_words(network.fixed_size)} alone, but size is {config.size}")
    return network.fixed_size


def network_size(asked: int | Size | None, size: Size) -> Size:
    """Height and width in the network of images of a size."""
    if isinstance(asked, tuple) or asked is None:
        return asked or size
    scale = min(asked / min(size), _MOST_ELONGATED * asked / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _words(size: Sequence[int]) -> str:
    return f"{size[1]} x {size[0]} pixels"
