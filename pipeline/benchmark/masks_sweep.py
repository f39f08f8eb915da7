"""The sweep of the mask benchmark: every row labeled, scored and timed.

Settings are chosen on dev images and reported on test images. Variants are synthesised once for all rows that mix from
one row of w. Each finished row is a file; run again, the sweep goes on from the rows that are there.

Shape suffixes: B batch, C channels, H height, W width.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.benchmark.masks_methods import Look, Method, Model, method_of
from pipeline.benchmark.masks_results import CLASSES, Circumstances, ImageResult, RowResult, SplitResult, interval
from pipeline.benchmark.masks_rows import (
    DEFAULT,
    MaskRow,
    SubjectName,
    axes_of,
    combined_row,
    is_label_free_mixing,
    mask_rows,
)
from pipeline.benchmark.masks_subjects import DrawingsSubject, GeneratorSubject, Judge, Pictures, SplitName, Subject
from pipeline.generator.sampling import Sampler, to_uint8
from pipeline.segmentation.metrics import MaskEvaluator
from pipeline.store import Store
from schemas.fingerprint import canonical_json

_PIPELINE = Path(__file__).resolve().parents[1]
# Whatever decides a row's result: when one of these files changes, rows are measured anew.
_DECISIVE = (
    "benchmark/avatar*.py",
    "benchmark/masks_methods.py",
    "benchmark/masks_subjects.py",
    "benchmark/masks_sweep.py",
    "generator/layers.py",
    "generator/networks.py",
    "generator/sampling.py",
    "labelers/*.py",
    "segmentation/metrics.py",
)
_TIMED = ("style_mixing", "single_image", "border_fill", "grabcut")
NUM_SHOWN = 8
"""Test images of which pictures are kept."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    num_dev: int
    num_test: int
    drawings: dict[SplitName, int]
    timed_batches: int
    fit_samples: int | None = None
    """None: the labeler's default."""


FULL = Extent(num_dev=128, num_test=256, drawings={"fit": 64, "dev": 32, "test": 96}, timed_batches=3)
QUICK = Extent(num_dev=16, num_test=32, drawings={"fit": 16, "dev": 16, "test": 16}, timed_batches=1, fit_samples=32)


class MaskSweep:
    """Measures the rows that are not in the store yet."""

    def __init__(
        self, store: Store, sampler: Sampler, judge: Judge, circumstances: Circumstances, extent: Extent
    ) -> None:
        """circumstances: what results depend on beside rows, extent and code."""
        self._store, self._sampler, self._judge, self._extent = store, sampler, judge, extent
        self._subjects: dict[SubjectName, Subject] = {}
        self.rows = mask_rows(sampler.generator.spec.num_ws, extent.fit_samples)
        self.key = _key(circumstances, extent)

    def run(self, tell: Callable[[str], None]) -> tuple[RowResult, ...]:
        """The results of all rows, the combined one last. tell: gets a line for each row that is measured."""
        results = self._results(self.rows, tell)
        combined = best_of_each_axis(results)
        if combined is not None:
            results += self._results([combined], tell)
        return tuple(results)

    def _results(self, rows: Sequence[MaskRow], tell: Callable[[str], None]) -> list[RowResult]:
        stored = {row.name: self.stored(row) for row in rows}
        missing = [row for row in rows if stored[row.name] is None]
        for (subject, crossover), group in self._groups(missing).items():
            for result in self._measured(self._subject(subject), crossover, group):
                stored[result.row.name] = result
                tell(_line(result))
        return [result for result in stored.values() if result is not None]

    def stored(self, row: MaskRow) -> RowResult | None:
        """A row that was finished by this very benchmark; None if there is none."""
        try:
            result = RowResult.model_validate_json(self._store.read(result_path(row.name)))
        except (FileNotFoundError, ValidationError):
            return None
        return result if (result.row, result.key) == (row, self.key) else None

    def _subject(self, name: SubjectName) -> Subject:
        if name not in self._subjects:
            subject = self._make_subject(name)
            self._store_pictures(name, subject)
            self._subjects[name] = subject
        return self._subjects[name]

    def _make_subject(self, name: SubjectName) -> Subject:
        extent = self._extent
        most_variants = max(row.labeler.variants for row in self.rows if row.subject == name)
        if name == "drawings":
            return DrawingsSubject(self._sampler.generator.spec.resolution, extent.drawings, most_variants)
        labeler = next(row.labeler for row in self.rows if row.name == DEFAULT)
        sizes: dict[SplitName, int] = {"fit": labeler.fit_samples, "dev": extent.num_dev, "test": extent.num_test}
        sampler = self._sampler
        if name == "untruncated":
            config = sampler.config.model_copy(update={"truncation_psi": 1.0})
            sampler = Sampler(sampler.generator, config, sampler.numerics, sampler.device)
        return GeneratorSubject(sampler, self._judge, labeler, sizes, most_variants)

    def _groups(self, rows: Sequence[MaskRow]) -> dict[tuple[SubjectName, int | None], list[MaskRow]]:
        """Rows that share their variants."""
        groups: defaultdict[tuple[SubjectName, int | None], list[MaskRow]] = defaultdict(list)
        for row in rows:
            needs_variants = method_of(row, self._sampler.device).num_variants > 0
            crossover = self._subject(row.subject).crossover(row.labeler) if needs_variants else None
            groups[row.subject, crossover].append(row)
        return groups

    def _measured(self, subject: Subject, crossover: int | None, rows: Sequence[MaskRow]) -> Iterator[RowResult]:
        methods = {row.name: method_of(row, subject.device) for row in rows}
        looks = _looks(subject, methods, crossover)
        for row in rows:
            method, own = methods[row.name], looks[row.name]
            model = method.fit(own["fit"])
            dev, _, _ = _scored(subject.splits["dev"], method, own["dev"], model)
            test, images, shown = _scored(subject.splits["test"], method, own["test"], model)
            result = RowResult(
                row=row,
                key=self.key,
                crossover=crossover,
                dev=dev,
                test=test,
                interval=interval(images),
                seconds_per_image=self._seconds(subject, row, method, model, crossover),
                images=tuple(images),
            )
            self._store.replace(picture_path(row.name), _png(np.concatenate(shown, axis=1)))
            self._store.replace(result_path(row.name), result.model_dump_json(indent=1).encode())
            yield result

    def _seconds(
        self, subject: Subject, row: MaskRow, method: Method, model: Model, crossover: int | None
    ) -> float | None:
        """Seconds an image from seed to mask on the host: the median of several batches."""
        if row.kind not in _TIMED or row.merged_by_truth or row.subject != "generator":
            return None
        seconds = []
        for pictures in subject.splits["test"][: self._extent.timed_batches]:
            _synchronise(subject.device)
            start = time.perf_counter()
            batch = self._sampler.sample(pictures.batch.seeds)
            count = method.num_variants
            variants_BNCHW = subject.variants(batch, count, crossover) if count else None
            look = method.look(batch.images_BCHW, variants_BNCHW)
            method.labels(look, model, pictures).masks_BHW.cpu()
            seconds.append((time.perf_counter() - start) / len(batch))
        return median(seconds)

    def _store_pictures(self, name: SubjectName, subject: Subject) -> None:
        """The first test images, and their true masks, each in a row."""
        pictures = subject.splits["test"][0]
        images_BHWC = to_uint8(pictures.batch.images_BCHW[:NUM_SHOWN]).cpu().numpy()
        truth_BHW = pictures.truth.foreground_BHW[:NUM_SHOWN].cpu().numpy()
        row_HWC = np.concatenate(list(images_BHWC), axis=1)
        self._store.replace(picture_path(f"{name}-images"), _png(np.ascontiguousarray(row_HWC[:, :, ::-1])))
        self._store.replace(picture_path(f"{name}-truth"), _png(np.concatenate(list(truth_BHW), axis=1)))


def result_path(row: str) -> str:
    """Where a finished row is."""
    return f"rows/{row}.json"


def picture_path(row: str) -> str:
    """Where the row's first test masks are, side by side."""
    return f"rows/{row}.png"


def best_of_each_axis(results: Sequence[RowResult]) -> MaskRow | None:
    """The row with the value of each setting that is best on dev; None if it is among the results already."""
    by_name = {result.row.name: result for result in results}

    def merit(row: MaskRow) -> tuple[float, bool]:
        return by_name[row.name].dev.scores.miou or 0.0, row.name == DEFAULT  # among equals the default

    axes = axes_of([result.row for result in results])
    best = {axis.field: max(axis.rows, key=merit) for axis in axes}
    combined = combined_row(best, by_name[DEFAULT].row)
    known = [result.row.labeler for result in results if is_label_free_mixing(result.row)]
    return None if combined.labeler in known else combined


def _looks(
    subject: Subject, methods: dict[str, Method], crossover: int | None
) -> dict[str, dict[SplitName, list[Look]]]:
    """What each method keeps of each batch, by row and split. Variants live for one batch only."""
    most_variants = max(method.num_variants for method in methods.values())
    looks: dict[str, dict[SplitName, list[Look]]] = {name: {split: [] for split in subject.splits} for name in methods}
    for split, batches in subject.splits.items():
        for pictures in batches:
            variants_BNCHW = subject.variants(pictures.batch, most_variants, crossover) if most_variants else None
            for name, method in methods.items():
                looks[name][split].append(method.look(pictures.batch.images_BCHW, variants_BNCHW))
    return looks


def _scored(
    split: Sequence[Pictures], method: Method, looks: Sequence[Look], model: Model
) -> tuple[SplitResult, list[ImageResult], list[NDArray[np.uint8]]]:
    """Scores, each image's counts, and the first masks."""
    whole, agreed = MaskEvaluator(CLASSES), MaskEvaluator(CLASSES)
    images: list[ImageResult] = []
    shown: list[NDArray[np.uint8]] = []
    for pictures, look in zip(split, looks, strict=True):
        labels = method.labels(look, model, pictures)
        masks_BHW = labels.masks_BHW.cpu().numpy()
        truth_BHW, agreed_BHW = (
            masks.cpu().numpy() for masks in (pictures.truth.foreground_BHW, pictures.truth.agreed_BHW)
        )
        for index, confidence in enumerate(labels.confidence_B.tolist()):
            whole.add(masks_BHW[index], truth_BHW[index])
            agreed.add(masks_BHW[index], agreed_BHW[index])
            images.append(_counted(pictures.batch.seeds[index], confidence, masks_BHW[index], truth_BHW[index]))
        shown += list(masks_BHW[: NUM_SHOWN - len(shown)])
    return SplitResult(scores=whole.scores(), agreed=agreed.scores()), images, shown


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


def _key(circumstances: Circumstances, extent: Extent) -> str:
    """What a stored row must have been measured with."""
    code = {str(path.relative_to(_PIPELINE)): hashlib.sha256(path.read_bytes()).hexdigest() for path in _code_files()}
    values = {"code": code, "extent": repr(extent), "circumstances": circumstances.model_dump(mode="json")}
    return hashlib.sha256(canonical_json(values)).hexdigest()


def _code_files() -> list[Path]:
    return sorted(path for pattern in _DECISIVE for path in _PIPELINE.glob(pattern))


def _line(result: RowResult) -> str:
    seconds = result.seconds_per_image
    dev, test = (100 * (split.scores.miou or 0.0) for split in (result.dev, result.test))
    timed = "" if seconds is None else f", {1000 * seconds:.1f} ms an image"
    return f"{result.row.name}: mIoU {dev:.1f} on dev, {test:.1f} on test{timed}"


def _png(pixels: NDArray[np.uint8]) -> bytes:
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return bytes(encoded.tobytes())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
