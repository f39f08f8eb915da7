"""Labeling methods, by the configuration that names them."""

from pipeline.generator.sampling import Sampler
from pipeline.labelers.base import Labeler, Labels
from pipeline.labelers.cluster_findings import cluster_findings
from pipeline.labelers.cluster_guide import MAPPING_NAME, cluster_guide
from pipeline.labelers.feature_clusters import FeatureClustersLabeler, check_feature_clusters
from pipeline.labelers.fit_feature_clusters import fit_feature_clusters, needs_prompt_model, read_prompts
from pipeline.labelers.fit_style_mixing import fit_style_mixing
from pipeline.labelers.fitted import FittedStyleMixing
from pipeline.labelers.fitted import Provenance as MixingProvenance
from pipeline.labelers.fitted_feature_clusters import FittedFeatureClusters
from pipeline.labelers.fitted_feature_clusters import Provenance as ClustersProvenance
from pipeline.labelers.fitted_file import FittedLabelerError, read_fitted
from pipeline.labelers.mixing_findings import mixing_findings
from pipeline.labelers.style_mixing import StyleMixingLabeler, check_style_mixing
from pipeline.prompt_models.base import PromptModel
from schemas.config import FeatureClustersConfig, LabelerConfig
from schemas.labeler_findings import LabelerFindings

__all__ = [
    "FittedLabelerError",
    "Labeler",
    "Labels",
    "check_labeler",
    "check_prompts",
    "fit_labeler",
    "guide_marker",
    "labeler_findings",
    "labeler_guide",
    "open_labeler",
]


def check_labeler(config: LabelerConfig, sampler: Sampler) -> None:
    """Raises ConfigError where configuration and generator do not fit together."""
    if isinstance(config, FeatureClustersConfig):
        check_feature_clusters(config, sampler)
    else:
        check_style_mixing(config, sampler.generator.spec)


def check_prompts(config: LabelerConfig, sampler: Sampler) -> None:
    """Raises PromptModelError where prompts have no model that reads them. Takes seconds: it opens the model."""
    if isinstance(config, FeatureClustersConfig):
        prompt_model = _prompt_model(config, sampler)
        if prompt_model is not None:
            read_prompts(config, prompt_model)


def _prompt_model(config: FeatureClustersConfig, sampler: Sampler) -> PromptModel | None:
    """The model that `fit` asks; None where it asks none."""
    if not needs_prompt_model(config):
        return None
    from pipeline.prompt_models import open_prompt_model

    assert config.prompt_model is not None
    return open_prompt_model(config.prompt_model, sampler.device)


def fit_labeler(config: LabelerConfig, sampler: Sampler, checkpoint_sha256: str | None = None) -> bytes:
    """Look at images of the generator and return the labeler's file (safetensors with JSON metadata).

    The same configuration, generator and device give the same bytes. Raises ConfigError, before any work, where
    configuration and generator do not fit together.
    """
    if isinstance(config, FeatureClustersConfig):
        check_feature_clusters(config, sampler)
        prompt_model = _prompt_model(config, sampler)
        return fit_feature_clusters(config, sampler, checkpoint_sha256, prompt_model).to_bytes()
    return fit_style_mixing(config, sampler, checkpoint_sha256).to_bytes()


def open_labeler(
    config: LabelerConfig, sampler: Sampler, fitted: bytes, checkpoint_sha256: str | None = None
) -> Labeler:
    """The labeler that `fit_labeler` made. Raises ConfigError, or FittedLabelerError when the file does not fit.

    checkpoint_sha256: of the sampler's generator; a file that was fitted on another one is refused.
    """
    spec, device = sampler.generator.spec, sampler.device
    if isinstance(config, FeatureClustersConfig):
        # Memory is not asked about: after a fit in the same process it is no longer what labeling will find.
        clusters = FittedFeatureClusters.from_bytes(fitted, config, spec, device, checkpoint_sha256)
        return FeatureClustersLabeler(sampler, clusters)
    check_style_mixing(config, spec)
    mixing = FittedStyleMixing.from_bytes(fitted, config, spec, device, checkpoint_sha256)
    return StyleMixingLabeler(config, sampler, mixing)


def guide_marker(config: LabelerConfig) -> str | None:
    """The name of the guide's last file, which is there when all are; None for methods that need no guide."""
    return MAPPING_NAME if isinstance(config, FeatureClustersConfig) else None


def labeler_findings(config: LabelerConfig, fitted: bytes) -> LabelerFindings:
    """What `fit` found, in words, and whether it is worth anything. Raises FittedLabelerError."""
    if isinstance(config, FeatureClustersConfig):
        return cluster_findings(read_fitted(fitted, ClustersProvenance)[0])
    return mixing_findings(*read_fitted(fitted, MixingProvenance))


def labeler_guide(config: LabelerConfig, sampler: Sampler, fitted: bytes) -> dict[str, bytes]:
    """Files by name that show a person what `fit` found, in the order in which they are to be written."""
    if not isinstance(config, FeatureClustersConfig):
        return {}
    spec, device = sampler.generator.spec, sampler.device
    return cluster_guide(config, sampler, FittedFeatureClusters.from_bytes(fitted, config, spec, device))
