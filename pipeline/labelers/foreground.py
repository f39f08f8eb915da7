"""Which clusters are foreground: evidence calibrated over many images, without labels.

Within an image, what changes together with the border is likely background: each cluster's affinity is how well its
colours over the variants correlate with those of the border's pixels. Between images, background keeps to its places:
a map of them starts as the mean affinity and is then the share of images in which a place was background. A cluster's
evidence is both together, and one threshold parts all clusters of all images in two. Nothing about a domain is written
down; that clothes touch the lower border, say, shows in the map, because there the borders' other sides disagree.

Shape suffixes: B batch, N variants, K clusters, P pixels (H * W), H height, W width, D dimensions.
"""

from dataclasses import dataclass

import cv2
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.labelers.base import Labels
from pipeline.labelers.kmeans import Clusters, one_hot

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
    """Share of images in which a place is background, float32."""
    threshold: Tensor
    """[] float32: clusters with more evidence of background are background."""
    sharpness: Tensor
    """[] float32: log odds of a cluster per unit of evidence."""
    typical_agreement: Tensor
    """[] float32: median agreement of the calibration images' masks with the map."""

    @staticmethod
    def shapes(resolution: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the fields for images of a resolution."""
        return {"background_HW": (resolution, resolution), "threshold": (), "sharpness": (), "typical_agreement": ()}


def merge(clusters: Clusters, model: ForegroundModel, num_variants: int) -> Labels:
    """Clusters to masks of background (0) and foreground (1), and the confidence in them.

    Confidence is how far the pixels' probabilities are from undecided, times the square of how well the mask agrees
    with the map compared to a typical one. The agreement tells failed masks from good ones; margins alone hardly do.
    """
    background_P = model.background_HW.flatten()
    evidence_BK = _evidence(clusters, border_affinity(clusters, num_variants), background_P)
    probability_BHW = _probability_map(clusters, evidence_BK, model.threshold, model.sharpness)
    masks_BHW = probability_BHW > 0.5
    margin_B = (2 * probability_BHW - 1).abs().mean(dim=(1, 2))
    relative_B = _agreement(masks_BHW, model.background_HW) / model.typical_agreement.clamp_min(1e-6)
    return Labels(masks_BHW.to(torch.uint8), margin_B * relative_B.clamp_max(1).square())


def calibrate(clusters: Clusters, num_variants: int) -> ForegroundModel:
    """Learn from the clusters of many images [B, P] that share their variants' donors or do not."""
    affinity_BK = border_affinity(clusters, num_variants)
    background_BP = torch.gather(affinity_BK, 1, clusters.assignment_BP)
    for _ in range(_ROUNDS):
        background_P = _smooth(background_BP.mean(dim=0))
        evidence_BK = _evidence(clusters, affinity_BK, background_P)
        low, high = _two_means(evidence_BK.flatten(), clusters.sizes_BK.flatten())
        threshold = (low + high) / 2
        background_BP = torch.gather((evidence_BK > threshold).float(), 1, clusters.assignment_BP)
    background_HW = background_P.unflatten(0, (_side(clusters), -1))
    sharpness = 2 * _TYPICAL_LOG_ODDS / (high - low).clamp_min(1e-3)
    masks_BHW = _probability_map(clusters, evidence_BK, threshold, sharpness) > 0.5
    typical_agreement = _agreement(masks_BHW, background_HW).median()
    return ForegroundModel(background_HW, threshold, sharpness, typical_agreement)


def border_affinity(clusters: Clusters, num_variants: int) -> Tensor:
    """How well each cluster explains the colours of the border's pixels over the variants [B, K], 0 to 1.

    The mean, over the border's pixels, of the squared correlation of their cluster with this one, less what chance
    gives between so few variants; negative correlation counts as none.
    """
    centred_BKND = clusters.centroids_BKD.unflatten(2, (num_variants, -1))
    centred_BKD = (centred_BKND - centred_BKND.mean(dim=2, keepdim=True)).flatten(2)
    unit_BKD = functional.normalize(centred_BKD, dim=2)
    explained_BKK = (unit_BKD @ unit_BKD.transpose(1, 2)).clamp_min(0).square()
    chance = 1 / max(num_variants - 1, 2)
    explained_BKK = (explained_BKK - chance).clamp_min(0) / (1 - chance)
    border_P = _border(_side(clusters)).to(explained_BKK.device)
    border_BK = one_hot(clusters.assignment_BP, clusters.sizes_BK.shape[1]) @ (border_P / border_P.sum())
    return (explained_BKK @ border_BK[:, :, None]).squeeze(2)


def _evidence(clusters: Clusters, affinity_BK: Tensor, background_P: Tensor) -> Tensor:
    """Evidence of background [B, K], 0 to 1: mean of the map over the cluster's pixels, and its affinity."""
    members_BKP = one_hot(clusters.assignment_BP, clusters.sizes_BK.shape[1])
    place_BK = (members_BKP @ background_P) / clusters.sizes_BK.clamp_min(1)
    return (place_BK + _AFFINITY_WEIGHT * affinity_BK) / (1 + _AFFINITY_WEIGHT)


def _probability_map(clusters: Clusters, evidence_BK: Tensor, threshold: Tensor, sharpness: Tensor) -> Tensor:
    """Probability of foreground [B, H, W] of each pixel: its cluster's, and a little of its neighbours'.

    The binomial 3x3 blur takes single pixels that k-means put on the wrong side along with those around them.
    """
    probability_BK = torch.sigmoid((threshold - evidence_BK) * sharpness)
    side = _side(clusters)
    maps_BHW = torch.gather(probability_BK, 1, clusters.assignment_BP).view(-1, side, side)
    padded = functional.pad(maps_BHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16


def _agreement(masks_BHW: Tensor, background_HW: Tensor) -> Tensor:
    """Soft IoU of masks and map [B], the mean of foreground's and background's."""
    masks_BHW = masks_BHW.float()
    pairs = (masks_BHW, 1 - background_HW), (1 - masks_BHW, background_HW)
    ious = [
        torch.minimum(mask, share).sum(dim=(1, 2)) / torch.maximum(mask, share).sum(dim=(1, 2)).clamp_min(1e-6)
        for mask, share in pairs
    ]
    return (ious[0] + ious[1]) / 2


def _side(clusters: Clusters) -> int:
    """Height and width of the square images that were clustered."""
    side = round(clusters.assignment_BP.shape[1] ** 0.5)
    assert side * side == clusters.assignment_BP.shape[1]
    return side


def _border(size: int) -> Tensor:
    """1 on a frame a thirty-second of the image wide, else 0, flattened."""
    width = max(1, size // 32)
    border_HW = torch.ones(size, size)
    border_HW[width:-width, width:-width] = 0
    return border_HW.flatten()


def _smooth(map_P: Tensor) -> Tensor:
    """A blur of one sixty-fourth of the image, against the grain of finitely many images."""
    size = round(map_P.shape[0] ** 0.5)
    blurred_HW = cv2.GaussianBlur(map_P.view(size, size).cpu().numpy(), (0, 0), size / 64)
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
