"""Style mixing as a labeling method: masks from what changes colour together, without a label or a network."""

from dataclasses import dataclass
from pathlib import Path

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.style_mixing.findings import mixing_findings
from labelmill.pipeline.labelers.style_mixing.fit import fit_style_mixing
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing
from labelmill.pipeline.labelers.style_mixing.labeler import StyleMixingLabeler, check_memory, check_style_mixing
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig


@dataclass(frozen=True)
class _Opened:
    labeler: StyleMixingLabeler
    findings: LabelerFindings

    def guide(self) -> dict[str, bytes]:
        return {}


class _StyleMixing:
    config = StyleMixingConfig
    guide_file = None

    def check_rules(self, config: StyleMixingConfig, quality: QualityConfig) -> None:
        """There is always a foreground to judge."""

    def check(self, config: StyleMixingConfig, sampler: Sampler) -> None:
        check_style_mixing(config, sampler.generator.spec)
        check_memory(config, sampler)

    def check_inputs(self, config: StyleMixingConfig, sampler: Sampler, checkpoint_sha256: str | None) -> None:
        """It reads the generator alone."""

    def inputs(self, config: StyleMixingConfig) -> dict[str, str]:
        return {}

    def taught_keys(self, config: StyleMixingConfig) -> frozenset[str]:
        return frozenset()

    def fit(self, config: StyleMixingConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        # Takes a minute at most, and begins anew when it was interrupted.
        return fit_style_mixing(config, sampler, checkpoint_sha256).to_bytes()

    def open(
        self, config: StyleMixingConfig, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes
    ) -> _Opened:
        spec = sampler.generator.spec
        check_style_mixing(config, spec)
        mixing = FittedStyleMixing.from_bytes(fitted, config, spec, sampler.device, checkpoint_sha256)
        return _Opened(StyleMixingLabeler(config, sampler, mixing), mixing_findings(mixing))

    def describe(self, config: StyleMixingConfig) -> str:
        return f"the labeler on {config.fit_samples} images"


METHOD = _StyleMixing()
