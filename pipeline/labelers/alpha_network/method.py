"""An alpha network as a labeling method: soft foreground mattes without labels."""

from dataclasses import dataclass
from pathlib import Path

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.alpha_network.findings import alpha_findings
from labelmill.pipeline.labelers.alpha_network.fit import check_alpha_network, fit_alpha_network
from labelmill.pipeline.labelers.alpha_network.fitted import FittedAlphaNetwork
from labelmill.pipeline.labelers.alpha_network.labeler import AlphaNetworkLabeler
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
        reals_sha256(config)

    def inputs(self, config: AlphaNetworkConfig) -> dict[str, str]:
        sha256 = reals_sha256(config)
        return {} if sha256 is None else {"reals": sha256}

    def taught_keys(self, config: AlphaNetworkConfig) -> frozenset[str]:
        return frozenset()

    def fit(self, config: AlphaNetworkConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        return fit_alpha_network(config, sampler, work, checkpoint_sha256).to_bytes()

    def open(
        self, config: AlphaNetworkConfig, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes
    ) -> _Opened:
        check_alpha_network(config, sampler)
        network = FittedAlphaNetwork.from_bytes(
            fitted, config, sampler.generator.spec, sampler.device, checkpoint_sha256
        )
        return _Opened(AlphaNetworkLabeler(config, sampler, network), alpha_findings(network.provenance))

    def describe(self, config: AlphaNetworkConfig) -> str:
        return f"an alpha network in {config.steps} steps"


METHOD = _AlphaNetwork()
