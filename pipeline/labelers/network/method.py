"""A segmentation network that a user has, as a labeling method: its masks beside those of all others."""

from dataclasses import dataclass
from pathlib import Path

import torch

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.fitted_file import REMEDY, FittedLabelerError
from labelmill.pipeline.labelers.network.fit import fit_network, network_findings
from labelmill.pipeline.labelers.network.fitted import FittedNetwork
from labelmill.pipeline.labelers.network.labeler import NetworkLabeler
from labelmill.pipeline.networks.trained import content_sha256, parse_network, read_network
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.labelers.network import NetworkLabelerConfig


@dataclass(frozen=True)
class _Opened:
    labeler: NetworkLabeler
    findings: LabelerFindings

    def guide(self) -> dict[str, bytes]:
        return {}


class _Network:
    config = NetworkLabelerConfig
    guide_file = None

    def check_rules(self, config: NetworkLabelerConfig, quality: QualityConfig) -> None:
        """The first class is the background, so there is a foreground to judge."""

    def check(self, config: NetworkLabelerConfig, sampler: Sampler) -> None:
        """Any generator's images go in: they are resized."""

    def check_inputs(self, config: NetworkLabelerConfig, sampler: Sampler, checkpoint_sha256: str | None) -> None:
        """Runs it once: what a graph gives is seen no other way."""
        shape = sampler.generator.spec.image_shape
        network = parse_network(read_network(config), config, sampler.device)
        network.segment(torch.zeros(1, shape.height, shape.width, shape.channels, dtype=torch.uint8))

    def inputs(self, config: NetworkLabelerConfig) -> dict[str, str]:
        return {"model": content_sha256(read_network(config))}

    def taught_keys(self, config: NetworkLabelerConfig) -> frozenset[str]:
        return frozenset()

    def fit(self, config: NetworkLabelerConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        return fit_network(config, sampler, read_network(config), checkpoint_sha256).to_bytes()

    def open(
        self, config: NetworkLabelerConfig, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes
    ) -> _Opened:
        found = FittedNetwork.from_bytes(fitted, config, sampler.generator.spec, checkpoint_sha256)
        network = parse_network(found.content, config, sampler.device)
        if network.classes != found.provenance.classes:
            raise FittedLabelerError(f"fitted labeler: its classes are not those of its network. {REMEDY}")
        return _Opened(NetworkLabeler(sampler, network), network_findings(found.provenance))

    def describe(self, config: NetworkLabelerConfig) -> str:
        return f"the network's labels of {config.fit_samples} images"


METHOD = _Network()
