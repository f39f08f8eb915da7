"""Which clusters are foreground: evidence calibrated over many images, without labels.

Within an image, what changes together with the border is likely background: each cluster's affinity is how well its
colours over the variants correlate with those of the border's pixels. Between images, background keeps to its places:
a map of them starts as the mean affinity and is then the share of images in which a place was background. A cluster's
evidence is both together, and one threshold parts all clusters of all images in two. Nothing about a domain is written
down; that clothes touch the lower border, say, shows in the map, because there the borders' other sides disagree.

Shape suffixes: B batch, N variants, K clusters, P pixels (H * W), H height, W width, D dimensions, C colours.
"""

from dataclasses import dataclass

import cv2
import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.decision import Decision, decide
from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.common.kmeans import PixelClusters, one_hot

# Weight of an image's own affinity beside the map's 1. Measured against the best possible merging of the same clusters,
# 0.5 to 1 lose 1 point of mIoU on a trained generator and 2 to 3 on recoloured drawings; 0 or 2 lose 4 to 10.
_AFFINITY_WEIGHT = 0.75

# The map settles after two rounds; unlike a map without the affinities, it does not drift with more.
_ROUNDS = 3

# Log odds of a cluster that lies where clusters of its kind lie on average.
_TYPICAL_LOG_ODDS = 4.0


@dataclass(frozen=True)
class ForegroundModel:
    """What calibration learned."""

    background_HW: Tensor
    """Share of images in which a place is background, float32, at the resolution of the clusters."""
    threshold: Tensor
    """[] float32: clusters with more evidence of background are background."""
    sharpness: Tensor
    """[] float32: log odds of a cluster per unit of evidence."""
    least_agreement: Tensor
    """[] float32: the lowest agreement with the map that a calibration image's mask has."""

    @staticmethod
    def shapes(size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Shapes of the fields for clusters of images of a height and width."""
        return {"background_HW": size, "threshold": (), "sharpness": (), "least_agreement": ()}


def separation_of(sharpness: Tensor) -> float:
    """How far apart the evidence of foreground's and background's clusters lies, 0 to 1."""
    return 2 * _TYPICAL_LOG_ODDS / float(sharpness)


def decide_by_clusters(maps_BKHW: Tensor, images_BCHW: Tensor) -> Decision:
    """Masks from maps that are as noisy as clusters are: edges are looked for within a sixteenth of the image."""
    return decide(maps_BKHW, images_BCHW, radius=max(2, min(maps_BKHW.shape[2:]) // 32))


def calibrate(clusters: PixelClusters, num_variants: int) -> ForegroundModel:
    """Learn from the clusters of many images [B, P] that share their variants' donors or do not."""
    return calibrate_affinity(clusters, border_affinity(clusters, num_variants))


def calibrate_affinity(clusters: PixelClusters, affinity_BK: Tensor) -> ForegroundModel:
    """Learn from the clusters of many images [B, P] and their affinity to the border, 0 to 1."""
    background_BP = torch.gather(affinity_BK, 1, clusters.assignment_BP)
    for _ in range(_ROUNDS):
        background_P = _smooth(background_BP.mean(dim=0), clusters.size)
        evidence_BK = _evidence(clusters, affinity_BK, background_P)
        low, high = _two_means(evidence_BK.flatten(), clusters.sizes_BK.flatten())
        threshold = (low + high) / 2
        background_BP = torch.gather((evidence_BK > threshold).float(), 1, clusters.assignment_BP)
    background_HW = background_P.unflatten(0, clusters.size)
    sharpness = 2 * _TYPICAL_LOG_ODDS / (high - low).clamp_min(1e-3)
    agreement_B = soft_iou(1 - background_BP.unflatten(1, background_HW.shape), 1 - background_HW)
    return ForegroundModel(background_HW, threshold, sharpness, agreement_B.min())


def border_affinity(clusters: PixelClusters, num_variants: int) -> Tensor:
    """How well each cluster explains the colours of the border's pixels over the variants [B, K], 0 to 1.

    The mean, over the border's pixels, of the squared correlation of their cluster with this one, less what chance
    gives between so few variants; negative correlation counts as none. A variant's weight grows with how far it moves
    colours, not with the square of that: else one donor with glaring colours can decide alone.
    """
    centred_BKND = clusters.centroids_BKD.unflatten(2, (num_variants, -1))
    centred_BKND = centred_BKND - centred_BKND.mean(dim=2, keepdim=True)
    share_BK1 = (clusters.sizes_BK / clusters.sizes_BK.sum(dim=1, keepdim=True))[:, :, None]
    moved_BN = (centred_BKND.square().mean(dim=3) * share_BK1).sum(dim=1).sqrt()
    weighted_BKD = (centred_BKND / moved_BN.sqrt().clamp_min(1e-3)[:, None, :, None]).flatten(2)
    unit_BKD = functional.normalize(weighted_BKD, dim=2)
    explained_BKK = (unit_BKD @ unit_BKD.transpose(1, 2)).clamp_min(0).square()
    chance = 1 / max(num_variants - 1, 2)
    explained_BKK = (explained_BKK - chance).clamp_min(0) / (1 - chance)
    return (explained_BKK @ border_share(clusters)[:, :, None]).squeeze(2)


def border_share(clusters: PixelClusters) -> Tensor:
    """Share of the border's pixels that each cluster has [B, K]."""
    border_P = _border(clusters.size).to(clusters.sizes_BK.device)
    return one_hot(clusters.assignment_BP, clusters.sizes_BK.shape[1]) @ (border_P / border_P.sum())


def cluster_probability(clusters: PixelClusters, affinity_BK: Tensor, model: ForegroundModel) -> Tensor:
    """Probability that each cluster is foreground [B, K]."""
    evidence_BK = _evidence(clusters, affinity_BK, model.background_HW.flatten())
    return torch.sigmoid((model.threshold - evidence_BK) * model.sharpness)


def on_pixels(clusters: PixelClusters, values_BK: Tensor) -> Tensor:
    """Each pixel's cluster's value [B, H, W]."""
    return torch.gather(values_BK, 1, clusters.assignment_BP).unflatten(1, clusters.size)


def familiarity(masks_BHW: Tensor, model: ForegroundModel) -> Tensor:
    """1 for masks that lie where foreground lies as far as calibration's masks do, less for others, which failed [B].

    masks_BHW: class indices, 0 is background, of any resolution.
    """
    foreground_HW = resize(1 - model.background_HW[None, None], masks_BHW.shape[1:])[0, 0]
    agreement_B = soft_iou((masks_BHW != 0).float(), foreground_HW)
    return (agreement_B / model.least_agreement.clamp_min(1e-6)).clamp_max(1).square()


def _evidence(clusters: PixelClusters, affinity_BK: Tensor, background_P: Tensor) -> Tensor:
    """Evidence of background [B, K], 0 to 1: mean of the map over the cluster's pixels, and its affinity."""
    members_BKP = one_hot(clusters.assignment_BP, clusters.sizes_BK.shape[1])
    place_BK = (members_BKP @ background_P) / clusters.sizes_BK.clamp_min(1)
    return (place_BK + _AFFINITY_WEIGHT * affinity_BK) / (1 + _AFFINITY_WEIGHT)


def _border(size: tuple[int, int]) -> Tensor:
    """1 on a frame a thirty-second of the image's shorter side wide, else 0, flattened."""
    width = max(1, min(size) // 32)
    border_HW = torch.ones(size)
    border_HW[width:-width, width:-width] = 0
    return border_HW.flatten()


def _smooth(map_P: Tensor, size: tuple[int, int]) -> Tensor:
    """A blur of one sixty-fourth of the image's shorter side, against the grain of finitely many images."""
    blurred_HW = cv2.GaussianBlur(map_P.view(size).cpu().numpy(), (0, 0), min(size) / 64)
    return torch.from_numpy(blurred_HW).flatten().to(map_P.device)


def _two_means(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the two groups of weighted numbers (k-means in one dimension)."""
    low, high = values.min(), values.max()
    for _ in range(32):
        is_high = ((values - high).abs() < (values - low).abs()).float() * weights
        is_low = weights - is_high
        low = (is_low * values).sum() / is_low.sum().clamp_min(1e-6)
        high = (is_high * values).sum() / is_high.sum().clamp_min(1e-6)
    return low, high
