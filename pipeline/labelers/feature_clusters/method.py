"""Feature clusters as a labeling method: semantic parts, named by prompts or by hand."""

from dataclasses import dataclass
from pathlib import Path

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import GuideFile
from labelmill.pipeline.labelers.feature_clusters.findings import cluster_findings
from labelmill.pipeline.labelers.feature_clusters.fit import fit_feature_clusters, needs_prompt_model, read_prompts
from labelmill.pipeline.labelers.feature_clusters.fitted import FittedFeatureClusters
from labelmill.pipeline.labelers.feature_clusters.guide import MAPPING_NAME, cluster_guide
from labelmill.pipeline.labelers.feature_clusters.labeler import FeatureClustersLabeler, check_feature_clusters
from labelmill.pipeline.prompt_models import PromptModel, hash_prompt_model, open_prompt_model
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig


@dataclass(frozen=True)
class _Opened:
    config: FeatureClustersConfig
    sampler: Sampler
    fitted: FittedFeatureClusters
    labeler: FeatureClustersLabeler
    findings: LabelerFindings

    def guide(self) -> dict[str, bytes]:
        return cluster_guide(self.config, self.sampler, self.fitted)


class _FeatureClusters:
    config = FeatureClustersConfig
    guide_file = GuideFile(MAPPING_NAME, "lists the class of each cluster; a picture of each cluster is beside it")

    def check_rules(self, config: FeatureClustersConfig, quality: QualityConfig) -> None:
        if quality.enabled and config.names is None and config.mapping is None:
            raise ConfigError(
                "quality: clusters without names have no foreground to judge, so that the rules would drop nearly "
                "every sample; name the clusters with labeler.names or labeler.mapping (`labelmill fit` "
                "writes clusters.yaml to edit), or set quality.enabled: false"
            )

    def check(self, config: FeatureClustersConfig, sampler: Sampler) -> None:
        check_feature_clusters(config, sampler)

    def check_inputs(self, config: FeatureClustersConfig, sampler: Sampler, checkpoint_sha256: str | None) -> None:
        prompt_model = _prompt_model(config, sampler)
        if prompt_model is not None:
            read_prompts(config, prompt_model)

    def inputs(self, config: FeatureClustersConfig) -> dict[str, str]:
        if not needs_prompt_model(config):
            return {}
        assert config.prompt_model is not None
        return hash_prompt_model(config.prompt_model, config.folder)

    def taught_keys(self, config: FeatureClustersConfig) -> frozenset[str]:
        return frozenset()

    def fit(self, config: FeatureClustersConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        # Takes minutes at most, and begins anew when it was interrupted.
        check_feature_clusters(config, sampler)
        return fit_feature_clusters(config, sampler, checkpoint_sha256, _prompt_model(config, sampler)).to_bytes()

    def open(
        self, config: FeatureClustersConfig, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes
    ) -> _Opened:
        # Memory is not asked about: after a fit in the same process it is no longer what labeling will find.
        spec, device = sampler.generator.spec, sampler.device
        clusters = FittedFeatureClusters.from_bytes(fitted, config, spec, device, checkpoint_sha256)
        labeler = FeatureClustersLabeler(sampler, clusters, config.probabilities)
        return _Opened(config, sampler, clusters, labeler, cluster_findings(clusters.provenance))

    def describe(self, config: FeatureClustersConfig) -> str:
        return f"the labeler on {config.fit_samples} images"


def _prompt_model(config: FeatureClustersConfig, sampler: Sampler) -> PromptModel | None:
    """The model that `fit` asks; None where it asks none."""
    if not needs_prompt_model(config):
        return None
    assert config.prompt_model is not None
    return open_prompt_model(config.prompt_model, sampler.device, config.folder)


METHOD = _FeatureClusters()
