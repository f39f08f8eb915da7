"""An alpha network as a labeling method: soft foreground mattes without labels."""

from dataclasses import dataclass
from pathlib import Path

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.alpha_network.findings import alpha_findings, given_findings
from labelmill.pipeline.labelers.alpha_network.fit import at_psi_of_fit, check_alpha_network, fit_alpha_network
from labelmill.pipeline.labelers.alpha_network.fitted import FittedAlphaNetwork
from labelmill.pipeline.labelers.alpha_network.given import FittedGivenNetwork, fit_given_network
from labelmill.pipeline.labelers.alpha_network.labeler import AlphaNetworkLabeler
from labelmill.pipeline.labelers.alpha_network.labels4free_file import parse_weights, read_weights, weights_sha256
from labelmill.pipeline.labelers.alpha_network.reals import reals_sha256
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig


@dataclass(frozen=True)
class _Opened:
    labeler: AlphaNetworkLabeler
    findings: LabelerFindings

    def guide(self) -> dict[str, bytes]:
        return {}


class _AlphaNetwork:
    config = AlphaNetworkConfig
    guide_file = None

    def check_rules(self, config: AlphaNetworkConfig, quality: QualityConfig) -> None:
        """There is always a foreground to judge."""

    def check(self, config: AlphaNetworkConfig, sampler: Sampler) -> None:
        check_alpha_network(config, sampler)

    def check_inputs(self, config: AlphaNetworkConfig, sampler: Sampler, checkpoint_sha256: str | None) -> None:
        if config.weights is None:
            reals_sha256(config)
        else:
            parse_weights(read_weights(config), config, sampler.generator.spec)

    def inputs(self, config: AlphaNetworkConfig) -> dict[str, str]:
        if config.weights is not None:
            return {"weights": weights_sha256(read_weights(config))}
        sha256 = reals_sha256(config)
        return {} if sha256 is None else {"reals": sha256}

    def taught_keys(self, config: AlphaNetworkConfig) -> frozenset[str]:
        return frozenset()

    def fit(self, config: AlphaNetworkConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        if config.weights is None:
            return fit_alpha_network(config, sampler, work, checkpoint_sha256).to_bytes()
        check_alpha_network(config, sampler)
        return fit_given_network(config, at_psi_of_fit(config, sampler), checkpoint_sha256).to_bytes()

    def open(
        self, config: AlphaNetworkConfig, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes
    ) -> _Opened:
        check_alpha_network(config, sampler)
        spec, device = sampler.generator.spec, sampler.device
        if config.weights is not None:
            given = FittedGivenNetwork.from_bytes(fitted, config, spec, device, checkpoint_sha256)
            return _Opened(AlphaNetworkLabeler(config, sampler, given), given_findings(given.provenance))
        network = FittedAlphaNetwork.from_bytes(fitted, config, spec, device, checkpoint_sha256)
        return _Opened(AlphaNetworkLabeler(config, sampler, network), alpha_findings(network.provenance))

    def describe(self, config: AlphaNetworkConfig) -> str:
        return f"an alpha network in {config.steps} steps" if config.weights is None else "a given alpha network"


METHOD = _AlphaNetwork()
