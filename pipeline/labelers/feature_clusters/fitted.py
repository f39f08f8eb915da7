"""The file that keeps a fitted feature-clusters labeler: centroids, never a pickled estimator, and what they mean.

The paper's code keeps a pickled scikit-learn model and the chosen clusters' numbers in a notebook.
"""

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.feature_clusters.choose import ClusteringTrial
from labelmill.pipeline.labelers.feature_clusters.clusters import ClusterModel, layer_channels
from labelmill.pipeline.labelers.fitted_file import (
    REMEDY,
    FileProvenance,
    FittedLabelerError,
    check_shapes,
    read_fitted_for,
    write_fitted,
)
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing, MixingProvenance
from labelmill.schemas.cluster_mapping import IGNORED, MOST_CLASSES, ClusterMapping
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.sample import IGNORE

_MIXING = "style_mixing."


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClusterRecord(_Record):
    """One cluster, by its number."""

    name: str
    """Its class, or `ignore`."""
    share: float
    """Of the pixels of the images of `fit`."""
    border_share: float
    """Of the pixels along their borders."""
    nearest: str | None = None
    """The class whose prompts are nearest; null without prompts."""
    similarity: float | None = None
    """Cosine of the nearest prompt."""
    margin: float | None = None
    """By how much that is more than any other class's."""
    is_unsure: bool = False
    """Whether prompts left it without a name of its own: another class is about as near, or no image shows it. Its
    name is then `ignore` or the background, by the configuration's `unsure`."""


class DiscoveryRecord(_Record):
    """What looking for one rare class gave."""

    prompt: str
    against: str
    num_scored: int
    num_nearer: int
    """Scored images that are nearer the prompt than its contrast."""
    num_positive: int
    """Images that were taken for images with the class."""
    least_positive_score: float
    """The lowest score of those: cosine to the prompt less cosine to the contrast."""
    accuracy: float
    """Balanced accuracy of the logistic regression on scored images that it did not learn from."""
    strength: float
    """Length of the edit in W."""
    moved_share: float
    """Share of the images of `fit` that it brings over that score."""
    moved_share_wanted: float
    clusters: list[int]
    """Clusters that started from its pixels, and were kept."""


class ClustersProvenance(FileProvenance):
    """The JSON in the file."""

    format: str = "labelmill-feature-clusters"
    version: int = 1
    config: FeatureClustersConfig
    layers: list[str]
    layer_trials: dict[str, ClusteringTrial] | None
    """What `layers: auto` chose from."""
    cluster_trials: dict[int, ClusteringTrial] | None
    """What a list of `clusters` was chosen from."""
    trial: ClusteringTrial
    """Of the clusters that were taken, before rare classes were added."""
    classes: list[str]
    named_by: str
    """prompts, mapping or numbers."""
    prompt_model: str | None
    prompt_model_sha256: str | None
    clusters: list[ClusterRecord]
    discoveries: list[DiscoveryRecord]
    mixing: MixingProvenance | None
    """Of the label-free foreground; null where clusters alone decide."""
    foreground_agreement: float | None
    """IoU of the label-free foreground with that of the clusters; null where nothing was compared."""


@dataclass(frozen=True)
class FittedFeatureClusters:
    """All that labeling needs beside the generator."""

    provenance: ClustersProvenance
    model: ClusterModel
    edits_QD: Tensor
    """What is added to every row of w to give an image each rare class; [0, w_dim] without `discover`."""
    mixing: FittedStyleMixing | None
    """Where the label-free foreground is of use."""

    @property
    def class_of_cluster(self) -> list[int]:
        """Mask value of each cluster; 255 is ignore."""
        value = {**{name: index for index, name in enumerate(self.provenance.classes)}, IGNORED: IGNORE}
        return [value[cluster.name] for cluster in self.provenance.clusters]

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        model = self.model
        tensors = {"centroids": model.centroids_KD, "scales": model.scales_D, "temperature": model.temperature}
        if len(self.edits_QD):
            tensors["edits"] = self.edits_QD
        if self.mixing is not None:
            tensors |= {f"{_MIXING}{name}": tensor for name, tensor in self.mixing.tensors().items()}
        return write_fitted(self.provenance, tensors)

    @staticmethod
    def from_bytes(
        content: bytes,
        config: FeatureClustersConfig,
        spec: GeneratorSpec,
        device: str | torch.device,
        checkpoint_sha256: str | None = None,
    ) -> "FittedFeatureClusters":
        """Read a file for this configuration and generator. Raises FittedLabelerError; executes nothing."""
        provenance, tensors = read_fitted_for(content, ClustersProvenance, config, spec, checkpoint_sha256)
        _check_meaning(provenance, config, spec)
        mixing = {name.removeprefix(_MIXING): tensors.pop(name) for name in list(tensors) if name.startswith(_MIXING)}
        check_shapes(tensors, _expected_shapes(provenance, spec))
        found = None
        if provenance.mixing is not None:
            found = FittedStyleMixing.from_tensors(provenance.mixing, mixing, config.style_mixing, spec, device)
        if float(tensors["temperature"]) <= 0:
            raise FittedLabelerError(f"fitted labeler: temperature {float(tensors['temperature'])}. {REMEDY}")
        on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
        model = ClusterModel(
            tuple(provenance.layers), on_device["centroids"], on_device["scales"], on_device["temperature"]
        )
        edits_QD = on_device.get("edits", torch.empty(0, spec.w_dim, device=device))
        return FittedFeatureClusters(provenance, model, edits_QD, found)


def _check_meaning(provenance: ClustersProvenance, config: FeatureClustersConfig, spec: GeneratorSpec) -> None:
    channels = layer_channels(spec)
    strangers = [name for name in provenance.layers if name not in channels]
    if strangers or not provenance.layers:
        raise FittedLabelerError(f"fitted labeler: layers {provenance.layers} not in this generator. {REMEDY}")
    if not 2 <= len(provenance.classes) <= MOST_CLASSES:
        raise FittedLabelerError(f"fitted labeler: {len(provenance.classes)} classes. {REMEDY}")
    known = {*provenance.classes, IGNORED}
    unknown = sorted({cluster.name for cluster in provenance.clusters} - known)
    if unknown:
        raise FittedLabelerError(f"fitted labeler: clusters of unknown classes {unknown}. {REMEDY}")
    # Equal mappings may be in another order, and the order is what mask values mean.
    mapping = config.mapping
    if isinstance(mapping, ClusterMapping):
        wanted: list[str] | None = list(mapping.classes)
    else:
        wanted = None if config.names is None else list(config.names)
    if wanted is not None and wanted != provenance.classes:
        raise FittedLabelerError(
            f"fitted labeler: its classes are {provenance.classes}, in this order; here they are {wanted}. {REMEDY}"
        )


def _expected_shapes(provenance: ClustersProvenance, spec: GeneratorSpec) -> dict[str, tuple[int, ...]]:
    channels = layer_channels(spec)
    num_features = sum(channels[name] for name in provenance.layers)
    shapes = {"centroids": (len(provenance.clusters), num_features), "scales": (num_features,), "temperature": ()}
    edits = {"edits": (len(provenance.discoveries), spec.w_dim)} if provenance.discoveries else {}
    return {**shapes, **edits}
