"""The sweep of the mask benchmark: every row labeled, scored and timed.

Settings are chosen on dev images and reported on test images. Rows that look at the same variants share them. Each
finished row is a file; run again, the sweep goes on from the rows that are there.

Shape suffixes: B batch, C channels, H height, W width.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from labelmill.pipeline.benchmark.masks.methods import Method, fitted_method
from labelmill.pipeline.benchmark.masks.results import (
    CLASSES,
    ImageResult,
    MasksRowResult,
    MasksSettings,
    SplitResult,
    interval,
)
from labelmill.pipeline.benchmark.masks.rows import (
    DEFAULT,
    MaskRow,
    SubjectName,
    axes_of,
    combined_row,
    is_label_free_mixing,
    mask_rows,
)
from labelmill.pipeline.benchmark.masks.subjects import (
    DrawingsSubject,
    GeneratorSubject,
    Judge,
    Pictures,
    RememberingGenerator,
    SplitName,
    Subject,
)
from labelmill.pipeline.benchmark.oracle.oracle import Oracle
from labelmill.pipeline.benchmark.record import read_row, row_key, write_row
from labelmill.pipeline.generator.sampling import Sampler, to_uint8
from labelmill.pipeline.pictures.png import encode_gray, encode_picture
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store

_TIMED = ("style_mixing", "single_image", "border_fill", "grabcut")
NUM_SHOWN = 8
"""Test images of which pictures are kept."""


@dataclass(frozen=True)
class MasksExtent:
    """How much is measured."""

    num_dev: int
    num_test: int
    drawings: dict[SplitName, int]
    timed_batches: int
    fit_samples: int | None = None
    """None: the labeler's default."""
    quick: bool = False
    """Fewer rows."""


FULL = MasksExtent(num_dev=128, num_test=256, drawings={"fit": 64, "dev": 32, "test": 96}, timed_batches=3)
QUICK = MasksExtent(
    num_dev=16, num_test=32, drawings={"fit": 16, "dev": 16, "test": 16}, timed_batches=1, fit_samples=32, quick=True
)


class MaskSweep:
    """Measures the rows that are not in the store yet."""

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        judge: Judge,
        circumstances: MasksSettings,
        extent: MasksExtent,
        only: Collection[str] | None = None,
    ) -> None:
        """circumstances: what results depend on beside rows, extent and code. only: names of rows; None for all."""
        self._store, self._judge, self._extent = store, judge, extent
        self._subjects: dict[SubjectName, Subject] = {}
        self._generator = RememberingGenerator(sampler.generator)
        self._sampler = Sampler(self._generator, sampler.config, sampler.numerics, sampler.device)
        rows = mask_rows(sampler.generator.spec, extent.fit_samples, extent.quick)
        self.rows = tuple(row for row in rows if only is None or row.name in only)
        self.key = row_key(
            (MaskSweep, Oracle, judge),
            sampler,
            extent=repr(extent),
            circumstances=circumstances.model_dump(mode="json"),
        )

    def run(self, tell: Callable[[str], None]) -> tuple[MasksRowResult, ...]:
        """The results of all rows, the combined one last. tell: gets a line for each row that is measured."""
        results = self._results(self.rows, tell)
        combined = best_of_each_axis(results)
        if combined is not None:
            results += self._results([combined], tell)
        return tuple(results)

    def _results(self, rows: Sequence[MaskRow], tell: Callable[[str], None]) -> list[MasksRowResult]:
        stored = {row.name: self.stored(row) for row in rows}
        missing = [row for row in rows if stored[row.name] is None]
        for row in sorted(missing, key=_sharing):
            result = self._measured(row)
            stored[row.name] = result
            tell(_line(result))
        return [result for result in stored.values() if result is not None]

    def stored(self, row: MaskRow) -> MasksRowResult | None:
        """A row that was finished by this very benchmark; None if there is none."""
        return read_row(self._store, result_path(row.name), MasksRowResult, row=row, key=self.key)

    def _subject(self, name: SubjectName) -> Subject:
        if name not in self._subjects:
            subject = self._make_subject(name)
            self._store_pictures(name, subject)
            self._subjects[name] = subject
        return self._subjects[name]

    def _make_subject(self, name: SubjectName) -> Subject:
        extent = self._extent
        if name == "drawings":
            most_variants = max(row.labeler.variants for row in self.rows if row.subject == name)
            return DrawingsSubject(self._sampler.generator.spec.resolution, extent.drawings, most_variants)
        labeler = next(row.labeler for row in self.rows if row.name == DEFAULT)
        sizes: dict[SplitName, int] = {"fit": labeler.fit_samples, "dev": extent.num_dev, "test": extent.num_test}
        sampler = self._sampler
        if name == "untruncated":
            config = sampler.config.model_copy(update={"truncation_psi": 1.0})
            sampler = Sampler(sampler.generator, config, sampler.numerics, sampler.device)
        return GeneratorSubject(sampler, self._judge, labeler, sizes)

    def _measured(self, row: MaskRow) -> MasksRowResult:
        subject = self._subject(row.subject)
        method = fitted_method(row, subject)
        dev, _, _ = self._scored(subject, "dev", method)
        test, images, shown = self._scored(subject, "test", method)
        result = MasksRowResult(
            row=row,
            key=self.key,
            crossover=method.crossover,
            dev=dev,
            test=test,
            interval=interval(images),
            seconds_per_image=self._seconds(subject, row, method),
            images=tuple(images),
        )
        self._store.replace(picture_path(row.name), encode_gray(np.concatenate(shown, axis=1)))
        write_row(self._store, result_path(row.name), result)
        return result

    @staticmethod
    def _scored(
        subject: Subject, split: SplitName, method: Method
    ) -> tuple[SplitResult, list[ImageResult], list[NDArray[np.uint8]]]:
        """Scores, each image's counts, and the first masks."""
        whole, agreed = MaskEvaluator(CLASSES), MaskEvaluator(CLASSES)
        images: list[ImageResult] = []
        shown: list[NDArray[np.uint8]] = []
        for pictures in subject.splits[split]:
            labels = method.label(_with_features(pictures, subject, method))
            truth = pictures.truth
            masks_BHW, truth_BHW, agreed_BHW = (
                masks.cpu().numpy() for masks in (labels.masks_BHW, truth.foreground_BHW, truth.agreed_BHW)
            )
            for index, confidence in enumerate(labels.confidence_B.tolist()):
                whole.add(masks_BHW[index], truth_BHW[index])
                agreed.add(masks_BHW[index], agreed_BHW[index])
                images.append(_counted(pictures.batch.seeds[index], confidence, masks_BHW[index], truth_BHW[index]))
            shown += list(masks_BHW[: NUM_SHOWN - len(shown)])
        return SplitResult(scores=whole.scores(), agreed=agreed.scores()), images, shown

    def _seconds(self, subject: Subject, row: MaskRow, method: Method) -> float | None:
        """Seconds an image from seed to mask on the host: the median of several batches."""
        if row.kind not in _TIMED or row.merged_by_truth or row.subject != "generator":
            return None
        seconds = []
        for pictures in subject.splits["test"][: self._extent.timed_batches]:
            _synchronise(subject.device)
            start = time.perf_counter()
            with self._generator.forgetful():
                batch = self._sampler.sample(pictures.batch.seeds, method.layers)
                method.label(Pictures(batch, pictures.truth)).masks_BHW.cpu()
            seconds.append((time.perf_counter() - start) / len(batch))
        return median(seconds)

    def _store_pictures(self, name: SubjectName, subject: Subject) -> None:
        """The first test images, and their true masks, each in a row."""
        pictures = subject.splits["test"][0]
        images_BHWC = to_uint8(pictures.batch.images_BCHW[:NUM_SHOWN]).cpu().numpy()
        truth_BHW = pictures.truth.foreground_BHW[:NUM_SHOWN].cpu().numpy()
        row_HWC = np.concatenate(list(images_BHWC), axis=1)
        self._store.replace(picture_path(f"{name}-images"), encode_picture(row_HWC))
        self._store.replace(picture_path(f"{name}-truth"), encode_gray(np.concatenate(list(truth_BHW), axis=1)))


def result_path(row: str) -> str:
    """Where a finished row is."""
    return f"rows/{row}.json"


def picture_path(row: str) -> str:
    """Where the row's first test masks are, side by side."""
    return f"rows/{row}.png"


def best_of_each_axis(results: Sequence[MasksRowResult]) -> MaskRow | None:
    """The row with the value of each setting that is best on dev, in the default's mode.

    None if it is among the results already.
    """
    by_name = {result.row.name: result for result in results}

    def merit(row: MaskRow) -> tuple[float, bool]:
        return by_name[row.name].dev.scores.miou or 0.0, row.name == DEFAULT  # among equals the default

    mode = by_name[DEFAULT].row.labeler.masks_from
    axes = [axis for axis in axes_of([result.row for result in results]) if axis.mode == mode]
    best = {axis.field: max(axis.rows, key=merit) for axis in axes}
    combined = combined_row(best, by_name[DEFAULT].row)
    known = [result.row.labeler for result in results if is_label_free_mixing(result.row)]
    return None if combined.labeler in known else combined


def _with_features(pictures: Pictures, subject: Subject, method: Method) -> Pictures:
    """Pictures as the method wants them. Features are too many to keep: images are synthesised again."""
    if not method.layers:
        return pictures
    assert isinstance(subject, GeneratorSubject)
    return Pictures(subject.sampler.sample(pictures.batch.seeds, method.layers), pictures.truth)


def _sharing(row: MaskRow) -> tuple[str, str, str, int]:
    """Rows that look at the same variants stand together."""
    labeler = row.labeler
    return row.subject, str(labeler.crossover), str(labeler.variant_resolution), labeler.variants


def _counted(seed: int, confidence: float, mask_HW: NDArray[np.uint8], truth_HW: NDArray[np.uint8]) -> ImageResult:
    found_HW, true_HW = mask_HW == 1, truth_HW == 1
    pairs = {
        "tp": (found_HW, true_HW),
        "fp": (found_HW, ~true_HW),
        "fn": (~found_HW, true_HW),
        "tn": (~found_HW, ~true_HW),
    }
    counts = {name: int((first_HW & second_HW).sum()) for name, (first_HW, second_HW) in pairs.items()}
    return ImageResult(seed=seed, confidence=confidence, **counts)


def _line(result: MasksRowResult) -> str:
    seconds = result.seconds_per_image
    dev, test = (100 * (split.scores.miou or 0.0) for split in (result.dev, result.test))
    timed = "" if seconds is None else f", {1000 * seconds:.1f} ms per image"
    return f"{result.row.name}: mIoU {dev:.1f} on dev, {test:.1f} on test{timed}"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
