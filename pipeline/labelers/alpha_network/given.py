"""An alpha network that was trained before: looked at once, and kept in a fitted file like one that `fit` trained."""

from dataclasses import dataclass

import torch

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.alpha_network.labels4free_file import parse_weights, read_weights, weights_sha256
from labelmill.pipeline.labelers.alpha_network.labels4free_network import Labels4FreeNetwork
from labelmill.pipeline.labelers.alpha_network.watch import Look, look_at, watched
from labelmill.pipeline.labelers.fitted_file import FileProvenance, check_shapes, read_fitted_for, write_fitted
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig


class GivenProvenance(FileProvenance):
    """The JSON in the file."""

    format: str = "labelmill-given-alpha-network"
    version: int = 1
    config: AlphaNetworkConfig
    weights_sha256: str
    """Of the file that the network was read from."""
    part: str
    """Its place there."""
    look: Look
    """What its masks look like; its step is 0."""


@dataclass(frozen=True)
class FittedGivenNetwork:
    """All that labeling needs beside the generator."""

    provenance: GivenProvenance
    network: Labels4FreeNetwork

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
    ) -> "FittedGivenNetwork":
        """Read a file for this configuration and generator. Raises FittedLabelerError; executes nothing."""
        # The run's identity holds the content of `weights`, wherever it lies now.
        provenance, tensors = read_fitted_for(
            content, GivenProvenance, config, spec, checkpoint_sha256, ignoring=("weights",)
        )
        network = Labels4FreeNetwork(spec)
        check_shapes(tensors, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
        return FittedGivenNetwork(provenance, network.with_tensors(tensors).to(device))


def fit_given_network(
    config: AlphaNetworkConfig, sampler: Sampler, checkpoint_sha256: str | None = None
) -> FittedGivenNetwork:
    """Read the network and look at its masks. sampler: at the psi of `fit`. Raises what `parse_weights` raises."""
    content, spec = read_weights(config), sampler.generator.spec
    network, part = parse_weights(content, config, spec)
    network.to(sampler.device)
    with repeatable_kernels():
        look = look_at(network, watched(config, sampler, network.layers, config.watch_samples), 0)
    provenance = GivenProvenance(
        config=config,
        checkpoint_sha256=checkpoint_sha256,
        resolution=spec.resolution,
        num_ws=spec.num_ws,
        w_dim=spec.w_dim,
        weights_sha256=weights_sha256(content),
        part=part,
        look=look,
    )
    return FittedGivenNetwork(provenance, network)
