"""Names for clusters: by prompts and a vision-language model, by a saved mapping, or by their numbers.

The model's dense features, which lie in the space of its prompts, are averaged over each cluster's pixels in many
images. A cluster takes the class of its nearest prompt (cosine), unless another class's is about as near: then it is
reported as unsure, and stays without a name.

The paper describes dilated features of CLIP's ResNet; its notebook feeds 2048 x 2048 images to CLIP's RN50x64 without
attention pooling and takes the softmax of 100 times the cosine to one prompt a class, "This is a photo of a X", where
prompts are used here as they are given. What a model's dense features are
is its own affair here (pipeline/prompt_models); a class may have several prompts, of which the nearest counts, and what
decides is the margin of cosines, which a softmax hides.

Shape suffixes: B batch, K clusters, E embedding, P prompts, N classes, h w resolutions of maps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.labelers.feature_clusters.choose import PixelSample
from labelmill.pipeline.labelers.feature_clusters.clusters import ClusterModel
from labelmill.pipeline.labelers.feature_clusters.fitted import ClusterRecord
from labelmill.pipeline.prompt_models.base import PromptModel
from labelmill.schemas.cluster_mapping import IGNORED, ClusterMapping

# Of all pixels, from which on a cluster counts for its class when k is chosen.
_LEAST_SHARE = 0.001


@dataclass(frozen=True)
class ClusterShares:
    """How much of the images of `fit` each cluster is."""

    share_K: list[float]
    border_K: list[float]


class ClusterPool:
    """Averages a model's dense features over clusters, a batch at a time."""

    def __init__(self, num_clusters: int, model: PromptModel) -> None:
        self._model, self._num_clusters = model, num_clusters
        self._sums_KE: Tensor | None = None
        self._weights_K = torch.zeros(num_clusters, dtype=torch.float64)

    def add(self, batch: Batch, clusters: ClusterModel) -> None:
        """Look at a batch with the layers' features."""
        nearest_Bhw = clusters.nearest(batch.features)
        member_BKhw = functional.one_hot(nearest_Bhw, self._num_clusters).permute(0, 3, 1, 2).float()
        dense_BEhw = self._model.dense(batch.rgb())
        weights_BKhw = at_resolution(member_BKhw, dense_BEhw.shape[2], dense_BEhw.shape[3])
        sums_KE = torch.einsum("bks,bes->ke", weights_BKhw.flatten(2), dense_BEhw.to(weights_BKhw).flatten(2))
        self._sums_KE = sums_KE.double().cpu() + (0 if self._sums_KE is None else self._sums_KE)
        self._weights_K += weights_BKhw.sum(dim=(0, 2, 3)).double().cpu()

    def pooled(self) -> Tensor:
        """Each cluster's mean [K, E] float32 of unit length; zeros for a cluster that was not seen."""
        assert self._sums_KE is not None
        means_KE = self._sums_KE / self._weights_K.clamp_min(1e-12)[:, None]
        return functional.normalize(means_KE, dim=1).float()


def at_resolution(maps_BKhw: Tensor, height: int, width: int) -> Tensor:
    """Maps of another size: means where it is smaller, bilinear where it is larger."""
    if height * width < maps_BKhw.shape[2] * maps_BKhw.shape[3]:
        return functional.adaptive_avg_pool2d(maps_BKhw, (height, width))
    return functional.interpolate(maps_BKhw, size=(height, width), mode="bilinear", align_corners=False)


def by_prompts(
    pooled_KE: Tensor,
    names: Mapping[str, Sequence[str]],
    model: PromptModel,
    min_margin: float,
    unsure: str,
    shares: ClusterShares,
) -> list[ClusterRecord]:
    """Records of the clusters with the names that prompts give them. unsure: `background` or `ignore`."""
    similarity_KN = class_similarities(pooled_KE, names, model)
    classes = list(names)
    records = []
    for number, similarity_N in enumerate(similarity_KN):
        best, second = similarity_N.topk(2).values.tolist()
        nearest, margin = classes[int(similarity_N.argmax())], best - second
        seen = bool(pooled_KE[number].any())
        is_sure = seen and margin >= min_margin
        records.append(
            ClusterRecord(
                name=nearest if is_sure else (classes[0] if unsure == "background" else IGNORED),
                share=shares.share_K[number],
                border_share=shares.border_K[number],
                nearest=nearest,
                similarity=round(best, 4),
                margin=round(margin, 4),
                is_unsure=not is_sure,
            )
        )
    return records


def of_sample(sample: PixelSample, cluster_S: Tensor, num_clusters: int) -> tuple[Tensor, ClusterShares]:
    """Each cluster's mean dense feature [K, E] as `ClusterPool` has it, and its share, of a sample's pixels alone."""
    assert sample.dense_FE is not None
    dense_FE, clusters_S = sample.dense_FE.double().cpu(), cluster_S.cpu()
    # By index on the CPU, where sums have a fixed order. Their length goes with normalising.
    sums_KE = torch.zeros(num_clusters, dense_FE.shape[1], dtype=torch.float64)
    sums_KE.index_add_(0, clusters_S[: len(dense_FE)], dense_FE)
    share_K = torch.bincount(clusters_S, minlength=num_clusters).double() / len(clusters_S)
    return functional.normalize(sums_KE, dim=1).float(), ClusterShares(share_K.tolist(), [0.0] * num_clusters)


def coverage(records: Sequence[ClusterRecord]) -> tuple[int, float]:
    """How many classes have a cluster that is no speck, and the share of pixels whose cluster is unsure."""
    found = {record.name for record in records if not record.is_unsure and record.share >= _LEAST_SHARE}
    return len(found), round(sum(record.share for record in records if record.is_unsure), 4)


def class_similarities(pooled_KE: Tensor, names: Mapping[str, Sequence[str]], model: PromptModel) -> Tensor:
    """Cosine of each cluster and each class's nearest prompt [K, N] float32 on the CPU."""
    columns = []
    for prompts in names.values():
        prompts_PE = model.embed_prompts(list(prompts)).float().cpu()
        columns.append((pooled_KE.cpu() @ prompts_PE.T).amax(dim=1))
    return torch.stack(columns, dim=1)


def by_mapping(mapping: ClusterMapping, shares: ClusterShares) -> list[ClusterRecord]:
    """Records of the clusters with the names that somebody gave them."""
    mapping.check_clusters(len(shares.share_K))
    return [
        ClusterRecord(name=mapping.clusters[number], share=share, border_share=border)
        for number, (share, border) in enumerate(zip(shares.share_K, shares.border_K, strict=True))
    ]


def by_number(shares: ClusterShares) -> list[ClusterRecord]:
    """Records of the clusters as classes of their own."""
    return [
        ClusterRecord(name=f"cluster_{number}", share=share, border_share=border)
        for number, (share, border) in enumerate(zip(shares.share_K, shares.border_K, strict=True))
    ]
