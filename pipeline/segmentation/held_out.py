"""What a network is scored on: a split of a dataset that it does not learn from, or photos with true masks.

Shape suffixes: H height, W width, C channels.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from labelmill.pipeline.networks.segmenter import Segmenter
from labelmill.pipeline.pictures.photos import PhotoError, Pixels, find_photos, read_photo
from labelmill.pipeline.segmentation.evaluate import Mask, MaskSide
from labelmill.pipeline.segmentation.mask_source import open_masks
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.segmentation.predict import predict_batch
from labelmill.pipeline.segmentation.reading import Split, open_split, read_samples
from labelmill.schemas.scores import Scores
from labelmill.schemas.segmentation import DatasetSplit, PhotoFolder

Classes = tuple[str, ...]

# Of many offenders a message names so many.
_NUM_NAMED = 5
_MOST_PIXELS = 2**22

_Pair = tuple[str, Pixels, Mask]
"""Name, image, true mask."""


def score(segmenter: Segmenter, held_out: DatasetSplit | PhotoFolder, classes: Classes, side: int) -> Scores:
    """How well a network, in eval mode, labels what it has not seen, some images of one size at a time.

    side: photos' shorter side in the network. Raises LabelmillError kinds naming the file that does not fit.
    """
    evaluator = MaskEvaluator(classes)
    for pairs in _batches(_pairs(held_out, classes)):
        masks_BHW = predict_batch(segmenter, np.stack([image_HWC for _, image_HWC, _ in pairs]), side)
        for (name, _, truth_HW), mask_HW in zip(pairs, masks_BHW, strict=True):
            try:
                evaluator.add(mask_HW, truth_HW)
            except ValueError as error:
                raise PhotoError(f"{name}: {error}") from error
    return evaluator.scores()


def _batches(pairs: Iterable[_Pair]) -> Iterator[list[_Pair]]:
    """Runs of images of one size, of as many pixels at once as a batch of 16 has at 512 px."""
    batch: list[_Pair] = []
    for pair in pairs:
        _, image_HWC, _ = pair
        if batch and (batch[0][1].shape != image_HWC.shape or (len(batch) + 1) * image_HWC[..., 0].size > _MOST_PIXELS):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def open_held_out_split(held_out: DatasetSplit, classes: Classes) -> Split:
    """Raises OutputError for a split that cannot be read, PhotoError for one of other classes than the network's."""
    split = open_split(held_out.dataset, held_out.split)
    if split.classes != classes:
        raise PhotoError(
            f"held_out.dataset: {held_out.dataset} has the classes {', '.join(split.classes)}, the network "
            f"{', '.join(classes)}"
        )
    return split


def check_photos(held_out: PhotoFolder, classes: Classes) -> None:
    """Reads every photo and mask: what does not fit is told before a training, not at its first score.

    Raises PhotoError or MaskError naming the key or the files.
    """
    files, truth = _open_photos(held_out, classes)
    problems = []
    for key in truth.source.keys:
        mask_HW = truth.read(key)
        try:
            _check_size(files[key], mask_HW, truth.source.name(key))
        except PhotoError as error:
            problems.append(str(error))
    if problems:
        more = [f"and {len(problems) - _NUM_NAMED} more"] if len(problems) > _NUM_NAMED else []
        raise PhotoError("\n  ".join(["held_out: photos that cannot be scored:", *problems[:_NUM_NAMED], *more]))
    truth.check_all()


def _check_size(photo: Path, mask_HW: Mask, mask: str) -> None:
    (height, width), (mask_height, mask_width) = read_photo(photo).shape[:2], mask_HW.shape
    if (height, width) != (mask_height, mask_width):
        turned = "; the photo is turned as its EXIF says, so turn the mask likewise, or write the photo without EXIF"
        raise PhotoError(
            f"{photo}: is {width} x {height} pixels, {mask} {mask_width} x {mask_height}"
            f"{turned if (height, width) == (mask_width, mask_height) else ''}"
        )


def _pairs(held_out: DatasetSplit | PhotoFolder, classes: Classes) -> Iterator[_Pair]:
    """One at a time."""
    if isinstance(held_out, DatasetSplit):
        for sample in read_samples(open_held_out_split(held_out, classes).reading()):
            yield sample.key, sample.image_HWC, sample.mask_HW
        return
    files, truth = _open_photos(held_out, classes)
    for key in truth.source.keys:
        yield str(files[key]), read_photo(files[key]), truth.read(key)
    truth.check_all()


def _open_photos(held_out: PhotoFolder, classes: Classes) -> tuple[dict[str, Path], MaskSide]:
    """Photos and masks of the same names."""
    photos, masks = find_photos(held_out.photos), open_masks(held_out.masks)
    if photos.unreadable:
        raise PhotoError("\n  ".join(["held_out: photos that cannot be read:", *photos.unreadable]))
    files = photos.files
    alone = sorted(files.keys() ^ set(masks.keys))
    if alone:
        side = "mask" if alone[0] in files else "photo"
        raise PhotoError(
            f"held_out: {alone[0]} has no {side} ({len(alone)} names of {held_out.photos} and {held_out.masks} differ)"
        )
    return files, MaskSide(masks, held_out.positive, len(classes), positive_key="held_out.positive:")
