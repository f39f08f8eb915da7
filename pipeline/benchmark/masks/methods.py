"""How each kind of row makes masks.

Shape suffixes: B batch, N variants, C channels, H height, W width, P pixels, K clusters.
"""

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.benchmark.masks.rows import MaskRow
from labelmill.pipeline.benchmark.masks.subjects import GeneratorSubject, Pictures, Subject
from labelmill.pipeline.generator.sampling import Batch, to_uint8
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.common.kmeans import Clusters, PixelClusters, one_hot
from labelmill.pipeline.labelers.style_mixing.fit import fit_style_mixing
from labelmill.pipeline.labelers.style_mixing.fitted import readout_background
from labelmill.pipeline.labelers.style_mixing.foreground import (
    border_affinity,
    border_share,
    calibrate_affinity,
    cluster_probability,
    decide_by_clusters,
    familiarity,
    on_pixels,
)
from labelmill.pipeline.labelers.style_mixing.labeler import StyleMixingLabeler, found_by_readout
from labelmill.pipeline.labelers.style_mixing.readout import ReadoutFit, readout_layers
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer

_SHUFFLE_SEED = 20240607
_GRABCUT_ITERATIONS = 5
# Share of images from which on a place is background beyond doubt, for GrabCut from the average mask.
_SURELY_BACKGROUND = 0.95


class Method(Protocol):
    """A row at work, after it has seen its subject's images of `fit`."""

    layers: tuple[str, ...]
    """Convolutions whose features batches must have."""
    crossover: int | None
    """The row of w that it mixes from, where that was chosen for this row."""

    def label(self, pictures: Pictures) -> Labels:
        """Masks and confidences. The truth in `pictures` is for methods that are meant to cheat."""


def fitted_method(row: MaskRow, subject: Subject) -> Method:
    """The method of a row, fitted without labels."""
    if row.kind in ("border_fill", "grabcut", "all_background"):
        return _OfPictures(row)
    if row.kind == "other_judge":
        return _OtherJudge()
    if row.kind == "style_mixing" and isinstance(subject, GeneratorSubject) and not row.merged_by_truth:
        return _Labeler(row, subject)
    kinds: dict[str, type[_Clustered]] = {
        "style_mixing": _OfVariants,
        "shuffled": _OfShuffledVariants,
        "single_image": _OfColours,
        "average_mask": _Average,
        "average_grabcut": _GrabCutFromAverage,
    }
    method = kinds[row.kind](row, subject)
    if row.merged_by_truth:
        return _MergedByTruth(method)
    if row.labeler.masks_from == "readout":
        assert isinstance(subject, GeneratorSubject)
        return _Taught(method, subject)
    return method


class _Labeler:
    """The product itself."""

    def __init__(self, row: MaskRow, subject: GeneratorSubject) -> None:
        fitted = fit_style_mixing(row.labeler, subject.sampler)
        self._labeler = StyleMixingLabeler(row.labeler, subject.sampler, fitted)
        self.layers = self._labeler.layers
        self.crossover: int | None = fitted.provenance.crossover

    def label(self, pictures: Pictures) -> Labels:
        return self._labeler.label(pictures.batch)


class _Clustered:
    """Clusters of each image, merged by what calibration learned from those of the images of `fit`."""

    layers: tuple[str, ...] = ()
    crossover: int | None = None

    def __init__(self, row: MaskRow, subject: Subject) -> None:
        self.row, self.subject = row, subject
        self.clusterer = VariantClusterer(row.labeler, subject.device)
        clusters = Clusters.joined([self.clusters(pictures.batch) for pictures in subject.splits["fit"]])
        self.model = calibrate_affinity(clusters, self.affinity(clusters))

    def clusters(self, batch: Batch) -> PixelClusters:
        """Of each image's pixels."""
        raise NotImplementedError

    def affinity(self, clusters: PixelClusters) -> Tensor:
        """To the border [B, K], 0 to 1."""
        return border_affinity(clusters, self.row.labeler.variants)

    def label(self, pictures: Pictures) -> Labels:
        clusters = self.clusters(pictures.batch)
        probability_BK = cluster_probability(clusters, self.affinity(clusters), self.model)
        decision = decide_by_clusters(on_pixels(clusters, probability_BK)[:, None], pictures.batch.images_BCHW)
        return Labels(decision.masks_BHW, decision.sharpness() * familiarity(decision.masks_BHW, self.model))


class _OfVariants(_Clustered):
    """As the labeler does it, from any subject's variants."""

    def clusters(self, batch: Batch) -> PixelClusters:
        return self.clusterer(self.subject.variants(batch, self.row.labeler.variants))


class _OfShuffledVariants(_Clustered):
    """Each pixel's own order of variants."""

    def clusters(self, batch: Batch) -> PixelClusters:
        return self.clusterer(shuffled(self.subject.variants(batch, self.row.labeler.variants)))


class _OfColours(_Clustered):
    """One image's colours. Nothing correlates without variants: a cluster is like the border where it lies on it."""

    def clusters(self, batch: Batch) -> PixelClusters:
        return self.clusterer.of_colours(batch.images_BCHW)

    def affinity(self, clusters: PixelClusters) -> Tensor:
        return border_share(clusters)


class _Average(_OfVariants):
    """The map that calibration found, for every image."""

    def label(self, pictures: Pictures) -> Labels:
        mask_HW = (self._background(pictures) < 0.5).to(torch.uint8)
        return _sure(mask_HW.repeat(len(pictures.batch), 1, 1))

    def _background(self, pictures: Pictures) -> Tensor:
        return resize(self.model.background_HW[None, None], pictures.batch.images_BCHW.shape[2:])[0, 0]


class _GrabCutFromAverage(_Average):
    """Each image's own colours decide where the map leaves doubt."""

    def label(self, pictures: Pictures) -> Labels:
        background_HW = self._background(pictures).cpu().numpy()
        start_HW = np.select(
            [background_HW >= _SURELY_BACKGROUND, background_HW >= 0.5], [cv2.GC_BGD, cv2.GC_PR_BGD], cv2.GC_PR_FGD
        ).astype(np.uint8)
        return _each(pictures, lambda image_HWC: grabcut(image_HWC, start_HW))


class _MergedByTruth:
    """Another method's clusters: one is foreground if most of it is."""

    layers: tuple[str, ...] = ()
    crossover: int | None = None

    def __init__(self, method: _Clustered) -> None:
        self._method = method

    def label(self, pictures: Pictures) -> Labels:
        clusters, truth_BHW = self._method.clusters(pictures.batch), pictures.truth.foreground_BHW
        assignment_BHW = _at_height(clusters, truth_BHW.shape[1])
        members_BKP = one_hot(assignment_BHW.flatten(1), clusters.sizes_BK.shape[1])
        inside_BK = (members_BKP @ truth_BHW.flatten(1).float()[:, :, None]).squeeze(2)
        is_foreground_BK = (inside_BK > members_BKP.sum(dim=2) / 2).to(torch.uint8)
        return _sure(torch.gather(is_foreground_BK, 1, assignment_BHW.flatten(1)).view(truth_BHW.shape))


class _Taught:
    """A read-out that another method's masks of the images of `fit` have taught, as the labeler's own teach its."""

    crossover: int | None = None

    def __init__(self, method: _Clustered, subject: GeneratorSubject) -> None:
        spec = subject.sampler.generator.spec
        self.layers = readout_layers(spec)
        fit = ReadoutFit(spec, 1, readout_background(method.model, spec))
        for pictures in subject.splits["fit"]:
            features = subject.sampler.sample(pictures.batch.seeds, self.layers).features
            for index, mask_HW in enumerate(method.label(pictures).masks_BHW):
                fit.add({name: tensor[index] for name, tensor in features.items()}, mask_HW[None])
        self._readout = fit.solve()

    def label(self, pictures: Pictures) -> Labels:
        return _sure(found_by_readout(pictures.batch, self._readout).decision.masks_BHW)


class _OfPictures:
    """Masks of single images by OpenCV."""

    layers: tuple[str, ...] = ()
    crossover: int | None = None

    def __init__(self, row: MaskRow) -> None:
        self._row = row

    def label(self, pictures: Pictures) -> Labels:
        return _each(pictures, self._mask)

    def _mask(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._row.kind == "all_background":
            return np.zeros(image_HWC.shape[:2], np.uint8)
        assert self._row.parameter is not None
        if self._row.kind == "border_fill":
            return border_fill(image_HWC, self._row.parameter)
        return grabcut(image_HWC, framed(image_HWC.shape[0], image_HWC.shape[1], self._row.parameter))


class _OtherJudge:
    """Foreground and background change places where the judges disagree."""

    layers: tuple[str, ...] = ()
    crossover: int | None = None

    def label(self, pictures: Pictures) -> Labels:
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


def _each(pictures: Pictures, mask: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Labels:
    images_BCHW = pictures.batch.images_BCHW
    masks = [mask(image_HWC) for image_HWC in to_uint8(images_BCHW).cpu().numpy()]
    return _sure(torch.from_numpy(np.stack(masks)).to(images_BCHW.device))


def _at_height(clusters: PixelClusters, height: int) -> Tensor:
    """Each pixel's cluster [B, H, W] int64, in images of a height that is a multiple of the clusters'."""
    assignment_BHW, factor = clusters.assignment_BP.unflatten(1, clusters.size), height // clusters.size[0]
    return assignment_BHW.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _sure(masks_BHW: Tensor) -> Labels:
    return Labels(masks_BHW, torch.ones(len(masks_BHW), device=masks_BHW.device))
