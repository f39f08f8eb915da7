"""The file that keeps a fitted alpha network: safetensors, and how it came about as JSON metadata."""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.alpha_network.background import SwitchFigures
from labelmill.pipeline.labelers.alpha_network.network import AlphaNetwork
from labelmill.pipeline.labelers.alpha_network.trainer import Weights
from labelmill.pipeline.labelers.alpha_network.watch import CollapseKind, Look
from labelmill.pipeline.labelers.fitted_file import (
    REMEDY,
    FileProvenance,
    FittedLabelerError,
    check_shapes,
    read_fitted_for,
    write_fitted,
)
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig


class Attempt(BaseModel):
    """One training, to its end or to its collapse."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Weights
    looks: tuple[Look, ...]
    collapse: CollapseKind | None
    words: str
    """What was seen of the collapse; empty where there was none."""


class AlphaProvenance(FileProvenance):
    """The JSON in the file."""

    format: str = "labelmill-alpha-network"
    version: int = 1
    config: AlphaNetworkConfig
    layers: tuple[str, ...]
    background: str
    """How foregrounds were switched off."""
    backgrounds: dict[str, SwitchFigures]
    """What that was chosen from."""
    attempts: tuple[Attempt, ...]
    step: int
    """Of the last attempt, whose averaged network this is."""


@dataclass(frozen=True)
class FittedAlphaNetwork:
    """All that labeling needs beside the generator."""

    provenance: AlphaProvenance
    network: AlphaNetwork

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        return write_fitted(self.provenance, self.network.state_dict())

    @staticmethod
    def from_bytes(
        content: bytes,
        config: AlphaNetworkConfig,
        spec: GeneratorSpec,
        device: str | torch.device,
        checkpoint_sha256: str | None = None,
    ) -> "FittedAlphaNetwork":
        """Read a file for this configuration and generator. Raises FittedLabelerError; executes nothing."""
        # The run's identity holds the content of `reals`, wherever it lies now.
        provenance, tensors = read_fitted_for(
            content, AlphaProvenance, config, spec, checkpoint_sha256, ignoring=("reals",)
        )
        unknown = set(provenance.layers) - set(spec.conv_names)
        if unknown or not provenance.layers or not provenance.attempts:
            raise FittedLabelerError(f"fitted labeler: layers {list(provenance.layers)}, which are not there. {REMEDY}")
        if all(look.step != provenance.step for look in provenance.attempts[-1].looks):
            raise FittedLabelerError(f"fitted labeler: nobody looked at step {provenance.step}. {REMEDY}")
        network = AlphaNetwork(spec, provenance.layers, config.width)
        check_shapes(tensors, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
        network.load_state_dict(tensors)
        return FittedAlphaNetwork(provenance, network.requires_grad_(False).to(device))
