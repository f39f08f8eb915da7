"""The file that keeps a network labeler: the network's own file, as bytes, with what it sees as JSON metadata."""

import json
from dataclasses import dataclass

import numpy as np
import torch

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.fitted_file import (
    REMEDY,
    FileProvenance,
    FittedLabelerError,
    read_fitted_for,
)
from labelmill.pipeline.networks.trained import content_sha256
from labelmill.pipeline.process.safetensors_json import save_with_json
from labelmill.schemas.labelers.network import NetworkLabelerConfig

_CONTENT = "network"


class NetworkProvenance(FileProvenance):
    """The JSON in the file."""

    format: str = "labelmill-network-labeler"
    version: int = 1
    config: NetworkLabelerConfig
    """Its `model` is `sha256:` and the hash of the network's file: where that lay does not matter."""
    classes: tuple[str, ...]
    class_pixels: tuple[int, ...]
    """Pixels of each class in the images of `fit`, then those to be ignored."""
    class_images: tuple[int, ...]
    """Images of `fit` that show each class."""
    confidence: float
    """Mean over these images."""


@dataclass(frozen=True)
class FittedNetwork:
    """All that labeling needs beside the generator."""

    provenance: NetworkProvenance
    content: bytes
    """The network's file."""

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        text = json.dumps(self.provenance.model_dump(mode="json"), sort_keys=True, allow_nan=False)
        return save_with_json({_CONTENT: torch.from_numpy(np.frombuffer(self.content, np.uint8).copy())}, text)

    @staticmethod
    def from_bytes(
        fitted: bytes, config: NetworkLabelerConfig, spec: GeneratorSpec, checkpoint_sha256: str | None = None
    ) -> "FittedNetwork":
        """Read a file for this configuration and generator. Raises FittedLabelerError; executes nothing."""
        provenance, tensors = read_fitted_for(
            fitted, NetworkProvenance, config, spec, checkpoint_sha256, ignoring={"model"}
        )
        stored = tensors.get(_CONTENT)
        if list(tensors) != [_CONTENT] or stored is None or stored.dtype != torch.uint8 or stored.dim() != 1:
            raise FittedLabelerError(f"fitted labeler: holds no network. {REMEDY}")
        content = stored.numpy().tobytes()
        if content_reference(content) != provenance.config.model:
            raise FittedLabelerError(f"fitted labeler: its network is not the one that it was fitted with. {REMEDY}")
        return FittedNetwork(provenance, content)


def content_reference(content: bytes) -> str:
    """What stands for the path of a network's file."""
    return f"sha256:{content_sha256(content)}"
