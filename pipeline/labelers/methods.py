"""The labeling methods: one row each, by the name that a run file's `labeler.method` gives it.

Its configuration is a row of the union in schemas/config.py; nothing else in labelmill knows a method by its name.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.alpha_network import method as alpha_network_method
from labelmill.pipeline.labelers.base import FittedLabeler, LabelingMethod
from labelmill.pipeline.labelers.feature_clusters import method as feature_clusters_method
from labelmill.pipeline.labelers.few_shot import method as few_shot_method
from labelmill.pipeline.labelers.network import method as network_method
from labelmill.pipeline.labelers.style_mixing import method as style_mixing_method
from labelmill.schemas.config import LabelerConfig

METHODS: dict[str, LabelingMethod[Any]] = {
    "style_mixing": style_mixing_method.METHOD,
    "feature_clusters": feature_clusters_method.METHOD,
    "few_shot": few_shot_method.METHOD,
    "alpha_network": alpha_network_method.METHOD,
    "network": network_method.METHOD,
}


def method_of(config: LabelerConfig) -> LabelingMethod[Any]:
    """The method that a run file's section is about."""
    return METHODS[config.method]


def fit_to_bytes(config: LabelerConfig, sampler: Sampler, checkpoint_sha256: str | None = None) -> bytes:
    """The fitted file of a fit that nobody resumes, as a preview's. Raises what `LabelingMethod.fit` raises."""
    with TemporaryDirectory(prefix="labelmill-fit-") as folder:
        return method_of(config).fit(config, sampler, checkpoint_sha256, Path(folder))


def open_fitted(
    config: LabelerConfig, sampler: Sampler, fitted: bytes, checkpoint_sha256: str | None = None
) -> FittedLabeler:
    """The labeler of a fitted file. Raises what `LabelingMethod.open` raises."""
    return method_of(config).open(config, sampler, checkpoint_sha256, fitted)
