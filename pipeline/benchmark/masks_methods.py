"""How each kind of row makes masks, and controls that see no variants.

A method looks at batches one at a time, learns from the looks at the images of `fit`, and turns looks into masks.

Shape suffixes: B batch, N variants, C channels, H height, W width, P pixels, K clusters.
"""

from dataclasses import replace
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.benchmark.masks_rows import MaskRow
from pipeline.benchmark.masks_subjects import Pictures
from pipeline.generator.sampling import to_uint8
from pipeline.labelers.base import Labels
from pipeline.labelers.foreground import ForegroundModel, calibrate, merge
from pipeline.labelers.kmeans import Clusters, one_hot
from pipeline.labelers.style_mixing import VariantClusterer

_SHUFFLE_SEED = 20240607
_GRABCUT_ITERATIONS = 5
# Share of images from which on a place is background beyond doubt, for GrabCut from the average mask.
_SURELY_BACKGROUND = 0.95


Look = Clusters | Labels
"""What a method keeps of a batch: enough to make masks once it has learned."""

Model = ForegroundModel | None
"""What a method learns; None where there is nothing to learn."""


class Method(Protocol):
    """A row at work."""

    num_variants: int
    """How many variants it looks at."""

    def look(self, images_BCHW: Tensor, variants_BNCHW: Tensor | None) -> Look:
        """All that is kept of a batch."""

    def fit(self, looks: list[Look]) -> Model:
        """What is learned from many images, without labels."""

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        """Masks and confidences. The truth in `pictures` is for methods that are meant to cheat."""


def method_of(row: MaskRow, device: torch.device) -> Method:
    """The method of a row."""
    if row.kind in ("border_fill", "grabcut", "all_background"):
        return _OfPictures(row)
    if row.kind == "other_judge":
        return _OtherJudge(row)
    kinds = {
        "style_mixing": _OfVariants,
        "shuffled": _OfShuffledVariants,
        "single_image": _OfColours,
        "average_mask": _Average,
        "average_grabcut": _GrabCutFromAverage,
    }
    method = kinds[row.kind](row, device)
    return _MergedByTruth(method) if row.merged_by_truth else method


class _OfVariants:
    """The labeler: clusters of variants, merged by what `fit` learned."""

    def __init__(self, row: MaskRow, device: torch.device) -> None:
        self.num_variants = row.labeler.variants
        self._clusterer = VariantClusterer(row.labeler, device)

    def look(self, images_BCHW: Tensor, variants_BNCHW: Tensor | None) -> Look:
        assert variants_BNCHW is not None
        return self._clusterer(variants_BNCHW[:, : self.num_variants])

    def fit(self, looks: list[Look]) -> Model:
        return calibrate(Clusters.joined([_clusters(look) for look in looks]), self.num_variants)

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        assert model is not None
        return merge(_clusters(look), model, self.num_variants)


class _OfShuffledVariants(_OfVariants):
    """Each pixel's own order of variants."""

    def look(self, images_BCHW: Tensor, variants_BNCHW: Tensor | None) -> Look:
        assert variants_BNCHW is not None
        return super().look(images_BCHW, shuffled(variants_BNCHW[:, : self.num_variants]))


class _OfColours(_OfVariants):
    """One image: `centroids` that correlate with none but themselves make affinity the share of the border."""

    def __init__(self, row: MaskRow, device: torch.device) -> None:
        super().__init__(row, device)
        alone = row.labeler.model_copy(update={"normalisation": "none"})
        self._clusterer = VariantClusterer(alone, device)
        self._num_clusters = row.labeler.clusters
        self.num_variants = 0

    def look(self, images_BCHW: Tensor, variants_BNCHW: Tensor | None) -> Look:
        clusters = self._clusterer(images_BCHW[:, None])
        apart_BKD = torch.eye(self._num_clusters, device=images_BCHW.device).repeat(len(clusters), 1, 1)
        return replace(clusters, centroids_BKD=apart_BKD)

    def fit(self, looks: list[Look]) -> Model:
        return calibrate(Clusters.joined([_clusters(look) for look in looks]), self._num_clusters)

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        assert model is not None
        return merge(_clusters(look), model, self._num_clusters)


class _Average(_OfVariants):
    """The map that `fit` found, for every image."""

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        assert model is not None
        mask_HW = (model.background_HW < 0.5).to(torch.uint8)
        return _sure(mask_HW.repeat(len(pictures.batch), 1, 1))


class _GrabCutFromAverage(_Average):
    """Each image's own colours decide where the map leaves doubt."""

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        assert model is not None
        background_HW = model.background_HW.cpu().numpy()
        start_HW = np.select(
            [background_HW >= _SURELY_BACKGROUND, background_HW >= 0.5], [cv2.GC_BGD, cv2.GC_PR_BGD], cv2.GC_PR_FGD
        ).astype(np.uint8)
        images_BHWC = to_uint8(pictures.batch.images_BCHW).cpu().numpy()
        masks_BHW = np.stack([grabcut(image_HWC, start_HW) for image_HWC in images_BHWC])
        return _sure(torch.from_numpy(masks_BHW).to(model.background_HW.device))


class _MergedByTruth:
    """Another method's clusters: one is foreground if most of it is."""

    def __init__(self, method: Method) -> None:
        self.num_variants = method.num_variants
        self.look = method.look

    def fit(self, looks: list[Look]) -> Model:
        return None

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        clusters, truth_BHW = _clusters(look), pictures.truth.foreground_BHW
        members_BKP = one_hot(clusters.assignment_BP, clusters.sizes_BK.shape[1])
        inside_BK = (members_BKP @ truth_BHW.flatten(1).float()[:, :, None]).squeeze(2)
        is_foreground_BK = (inside_BK > clusters.sizes_BK / 2).to(torch.uint8)
        return _sure(torch.gather(is_foreground_BK, 1, clusters.assignment_BP).view(truth_BHW.shape))


class _OfPictures:
    """Masks of single images by OpenCV."""

    num_variants = 0

    def __init__(self, row: MaskRow) -> None:
        self._row = row

    def look(self, images_BCHW: Tensor, variants_BNCHW: Tensor | None) -> Look:
        masks = [self._mask(image_HWC) for image_HWC in to_uint8(images_BCHW).cpu().numpy()]
        return _sure(torch.from_numpy(np.stack(masks)).to(images_BCHW.device))

    def fit(self, looks: list[Look]) -> Model:
        return None

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        assert isinstance(look, Labels)
        return look

    def _mask(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._row.kind == "all_background":
            return np.zeros(image_HWC.shape[:2], np.uint8)
        assert self._row.parameter is not None
        if self._row.kind == "border_fill":
            return border_fill(image_HWC, self._row.parameter)
        return grabcut(image_HWC, framed(image_HWC.shape[0], image_HWC.shape[1], self._row.parameter))


class _OtherJudge(_OfPictures):
    """Foreground and background change places where the judges disagree."""

    def look(self, images_BCHW: Tensor, variants_BNCHW: Tensor | None) -> Look:
        return _sure(torch.zeros(len(images_BCHW), *images_BCHW.shape[2:], dtype=torch.uint8))

    def labels(self, look: Look, model: Model, pictures: Pictures) -> Labels:
        foreground_BHW = pictures.truth.foreground_BHW
        disagree_BHW = pictures.truth.agreed_BHW != foreground_BHW
        return _sure(foreground_BHW ^ disagree_BHW.to(torch.uint8))


def border_fill(image_HWC: NDArray[np.uint8], tolerance: int) -> NDArray[np.uint8]:
    """1 [H, W] uint8 where no flood fill from the border comes, in steps of at most `tolerance` in each channel."""
    height, width = image_HWC.shape[:2]
    filled_HW = np.zeros((height + 2, width + 2), np.uint8)
    border = {(x, y) for x in range(width) for y in (0, height - 1)}
    border |= {(x, y) for x in (0, width - 1) for y in range(height)}
    step = (tolerance,) * 3
    for x, y in sorted(border):
        if not filled_HW[y + 1, x + 1]:
            cv2.floodFill(image_HWC.copy(), filled_HW, (x, y), (0, 0, 0), step, step, 4 | cv2.FLOODFILL_MASK_ONLY)
    return (filled_HW[1:-1, 1:-1] == 0).astype(np.uint8)


def framed(height: int, width: int, frame: int) -> NDArray[np.uint8]:
    """Where GrabCut starts when only a frame of so many pixels is known, to be background."""
    start_HW = np.full((height, width), cv2.GC_BGD, np.uint8)
    start_HW[frame:-frame, frame:-frame] = cv2.GC_PR_FGD
    return start_HW


def grabcut(image_HWC: NDArray[np.uint8], start_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 [H, W] uint8 on foreground. start_HW: OpenCV's GC_BGD, GC_PR_BGD and GC_PR_FGD."""
    labels_HW, nowhere = start_HW.copy(), (0, 0, 0, 0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its colour models start from random centres
    cv2.grabCut(image_HWC.copy(), labels_HW, nowhere, models[0], models[1], _GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return (labels_HW == cv2.GC_PR_FGD).astype(np.uint8)


def shuffled(variants_BNCHW: Tensor) -> Tensor:
    """Each pixel's colours in an order of its own: which colours a pixel has stays, which variant they are of goes."""
    batch, count, channels, height, width = variants_BNCHW.shape
    source = torch.Generator().manual_seed(_SHUFFLE_SEED)
    order_BNHW = torch.rand(batch, count, height, width, generator=source).argsort(dim=1).to(variants_BNCHW.device)
    return torch.gather(variants_BNCHW, 1, order_BNHW[:, :, None].expand(-1, -1, channels, -1, -1))


def _clusters(look: Look) -> Clusters:
    assert isinstance(look, Clusters)
    return look


def _sure(masks_BHW: Tensor) -> Labels:
    return Labels(masks_BHW, torch.ones(len(masks_BHW), device=masks_BHW.device))
