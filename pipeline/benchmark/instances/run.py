"""`labelmill benchmark --instances`: masks inside boxes, beside controls that know boxes alone or one image's colours.

Boxes are those of the oracle's masks, and say exactly how far a thing reaches: hence rows with every side moved.

Shape suffixes: N variants, C channels, H height, W width of a picture, L rows of w, D style.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.benchmark.instances.pictures import (
    JOINED_BEFORE,
    Picture,
    draw_people,
    features_of,
    variants_of,
)
from labelmill.pipeline.benchmark.instances.results import (
    CrossoverPoint,
    InstanceRow,
    InstancesBenchmark,
    InstancesBenchmarkSettings,
    Subject,
)
from labelmill.pipeline.benchmark.instances.score import InstanceEvaluator
from labelmill.pipeline.benchmark.instances.tables import markdown
from labelmill.pipeline.benchmark.oracle.images import as_images, open_judged
from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.benchmark.record import Machine
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.instances.box_clusters import BoxClusterer
from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.instances.detectors import FromFunction
from labelmill.pipeline.instances.masks import Probability, by_clusters, by_foreground, image_instances
from labelmill.pipeline.instances.run_labeler import fit_instances
from labelmill.pipeline.labelers.common.decision import decide
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.labelers.style_mixing.labeler import StyleMixingLabeler
from labelmill.pipeline.labelers.style_mixing.readout import Readout
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.instances import InstanceSettings
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

Mask = NDArray[np.uint8]

_FIRST_DEV_SEED, _FIRST_TEST_SEED = 2_700_000_000, 2_600_000_000
_PSI, _PARTS_PSI = 0.7, 1.0
_JITTER = 0.1
_PARTS: tuple[Subject, ...] = ("hat", "glasses", "clothes", "eyes")
_LEAST_PART_PIXELS = 4
_LIBRARIES = ("labelmill", "torch", "numpy")


@dataclass(frozen=True)
class InstancesExtent:
    """How many pictures."""

    num_dev: int
    num_pairs: int
    num_other: int
    """Of three people, and of overlapping ones."""
    num_portraits: int
    """That parts are looked for in."""


FULL = InstancesExtent(num_dev=32, num_pairs=128, num_other=32, num_portraits=96)
QUICK = InstancesExtent(num_dev=8, num_pairs=24, num_other=8, num_portraits=32)


def benchmark_instances(
    out: Path, checkpoint: str, device: torch.device, extent: InstancesExtent, tell: Callable[[str], None]
) -> InstancesBenchmark:
    """Measure, and write instances.json and instances.md into `out`. tell: gets a line for each row.

    Raises CheckpointError, LabelmillError for a generator whose images the oracles do not take.
    """
    found = _Bench(checkpoint, device, extent, tell).run()
    store = Store.open(str(out))
    store.replace("instances.json", found.model_dump_json(indent=1).encode())
    store.replace("instances.md", markdown(found).encode())
    return found


@dataclass(frozen=True)
class _Method:
    """A way from a picture and its boxes to instances."""

    name: str
    probability: Callable[[Picture], Probability]
    settings: InstanceSettings
    is_control: bool = False


class _Bench:
    def __init__(
        self, checkpoint: str, device: torch.device, extent: InstancesExtent, tell: Callable[[str], None]
    ) -> None:
        self._extent, self._tell, self._settings = extent, tell, InstanceSettings()
        loaded, numerics = open_judged(checkpoint, device), NumericsConfig(threads=1)
        torch.set_num_threads(numerics.threads)
        self._generator = loaded.generator
        config = GeneratorConfig(checkpoint=checkpoint, truncation_psi=_PSI, noise="none")
        self._sampler = Sampler(self._generator, config, numerics, device)
        parts_config = config.model_copy(update={"truncation_psi": _PARTS_PSI})
        self._parts_sampler = Sampler(self._generator, parts_config, numerics, device)
        resolution = self._generator.spec.resolution
        self._oracle = open_oracle("b", resolution, device)
        self._made: dict[tuple[int, int], Tensor] = {}
        machine = Machine.here(device, numerics.threads, _LIBRARIES)
        self._about = InstancesBenchmarkSettings(
            checkpoint=loaded.info.name,
            checkpoint_sha256=loaded.sha256,
            resolution=resolution,
            truncation_psi=_PSI,
            parts_psi=_PARTS_PSI,
            settings=self._settings,
            jitter=_JITTER,
            device=machine.device,
            threads=machine.threads,
            versions=machine.versions,
        )

    def run(self) -> InstancesBenchmark:
        start = time.process_time()
        crossover, kept = self._choose("people", self._sampler, self._person_boxes)
        crossover = max(crossover, JOINED_BEFORE)
        dev = tuple(self._dev(kept))
        rows = [row for subject, pictures in self._people() for row in self._rows(subject, pictures, crossover)]
        parts_crossover = {}
        for part in _PARTS:
            row, _ = self._choose(part, self._parts_sampler, self._part_boxes_of(part))
            parts_crossover[part] = max(row, JOINED_BEFORE)
            rows += self._rows(part, self._portraits_with(part), parts_crossover[part])
        return InstancesBenchmark(
            settings=self._about,
            crossover=crossover,
            kept=kept,
            dev=dev,
            parts_crossover=parts_crossover,
            rows=tuple(rows),
            cpu_seconds=round(time.process_time() - start, 1),
        )

    def _choose(
        self, name: str, sampler: Sampler, boxes_of: Callable[[Mask], list[Box]]
    ) -> tuple[int, dict[int, float]]:
        """The row that the product chooses where the oracle is the detector, and how much each keeps."""

        def detect(images_BHWC: NDArray[np.uint8]) -> list[list[Mapping[str, object]]]:
            classes_BHW = self._oracle.segment(as_images(images_BHWC)).cpu().numpy()
            return [
                [{"class": box.label, "score": box.score, "box": box.corner_and_size} for box in boxes_of(classes_HW)]
                for classes_HW in classes_BHW
            ]

        found = fit_instances(self._settings, sampler, FromFunction(detect), b"").provenance
        kept = found.kept or {}
        self._tell(f"{name}: mixed from row {found.crossover} on; kept by row: {kept}")
        return found.crossover, kept

    def _person_boxes(self, classes_HW: Mask) -> list[Box]:
        return _boxes([classes_HW != 0], "person")

    def _part_boxes_of(self, part: str) -> Callable[[Mask], list[Box]]:
        return lambda classes_HW: _boxes(self._pieces(part, classes_HW), part)

    def _pieces(self, part: str, classes_HW: Mask) -> list[NDArray[np.bool_]]:
        """Connected pieces of a class, without crumbs."""
        is_part_HW = (classes_HW == self._oracle.classes.index(part)).astype(np.uint8)
        count, pieces_HW = cv2.connectedComponents(is_part_HW, connectivity=8)
        pieces = [pieces_HW == number for number in range(1, count)]
        return [piece_HW for piece_HW in pieces if piece_HW.sum() >= _LEAST_PART_PIXELS]

    def _dev(self, kept: Mapping[int, float]) -> Iterator[CrossoverPoint]:
        pictures = self._draw(2, self._extent.num_dev, first=_FIRST_DEV_SEED)
        for row in range(JOINED_BEFORE, self._generator.spec.num_ws - 1):
            self._made.clear()
            scores = self._score(pictures, self._by_variants(row), "exact").scores
            self._tell(f"dev: row {row}: mIoU {_percent(scores.miou)}, instances {_percent(scores.iou_of_instances)}")
            yield CrossoverPoint(row=row, kept=kept[row], miou=scores.miou, iou_of_instances=scores.iou_of_instances)

    def _people(self) -> Iterator[tuple[Subject, list[Picture]]]:
        yield "two people", self._draw(2, self._extent.num_pairs)
        yield "three people", self._draw(3, self._extent.num_other)
        yield "two overlapping people", self._draw(2, self._extent.num_other, overlap=True)

    def _draw(
        self, num_people: int, count: int, *, first: int = _FIRST_TEST_SEED, overlap: bool = False
    ) -> list[Picture]:
        starts = range(first, first + count * num_people, num_people)
        return [
            draw_people(self._sampler, self._oracle, range(start, start + num_people), overlap=overlap)
            for start in starts
        ]

    def _portraits_with(self, part: str) -> list[Picture]:
        """Portraits that show a part, and where."""
        pictures = []
        for seed in range(_FIRST_TEST_SEED, _FIRST_TEST_SEED + self._extent.num_portraits):
            picture = draw_people(self._parts_sampler, self._oracle, [seed])
            classes_HW = self._oracle.segment(picture.image_CHW[None])[0].cpu().numpy()
            pieces = tuple(torch.from_numpy(piece_HW) for piece_HW in self._pieces(part, classes_HW))
            if pieces:
                device = picture.image_CHW.device
                pictures.append(replace(picture, truths=tuple(piece_HW.to(device) for piece_HW in pieces)))
        return pictures

    def _rows(self, subject: Subject, pictures: Sequence[Picture], crossover: int) -> Iterator[InstanceRow]:
        variants = self._by_variants(crossover)
        exact = self._by_variants(crossover, self._settings.model_copy(update={"box_error": 0.0}))
        self._made.clear()
        methods = [self._box_filled(), self._by_colours(), variants, exact]
        for method in [*methods, *([] if subject in _PARTS else [self._by_readout()])]:
            yield self._row(subject, pictures, method, "exact")
        for method in [self._box_filled(), self._by_colours(), variants]:
            yield self._row(subject, pictures, method, "jittered")

    def _row(self, subject: Subject, pictures: Sequence[Picture], method: _Method, boxes: str) -> InstanceRow:
        row = self._score(pictures, method, boxes).model_copy(update={"subject": subject})
        scores = row.scores
        self._tell(
            f"{subject}: {method.name}, {boxes} boxes, box_error {method.settings.box_error:g}: mIoU "
            f"{_percent(scores.miou)}, instances {_percent(scores.iou_of_instances)} ({scores.num_instances})"
        )
        return row

    def _score(self, pictures: Sequence[Picture], method: _Method, boxes: str) -> InstanceRow:
        random, evaluator = np.random.default_rng(0), InstanceEvaluator()
        for picture in pictures:
            size = (picture.image_CHW.shape[1], picture.image_CHW.shape[2])
            around = _boxes([truth_HW.cpu().numpy() for truth_HW in picture.truths], "thing")
            if boxes == "jittered":
                around = [_moved(box, size, random) for box in around]
            evaluator.add(_found(picture, around, method), _with_pixels(picture.truths))
        return InstanceRow(
            subject="two people",
            method=method.name,
            is_control=method.is_control,
            boxes="exact" if boxes == "exact" else "jittered",
            box_error=method.settings.box_error,
            scores=evaluator.scores(),
        )

    def _box_filled(self) -> _Method:
        settings = self._settings.model_copy(update={"box_error": 0.0, "overlap": "centre"})
        return _Method("the box filled", lambda picture: by_foreground(_everywhere(picture)), settings, True)

    def _by_colours(self) -> _Method:
        clusterer = BoxClusterer(self._settings, self._sampler.device)

        def probability(picture: Picture) -> Probability:
            return by_clusters(clusterer, picture.image_CHW[None], picture.image_CHW)

        return _Method("colours of one image", probability, self._settings, True)

    def _by_variants(self, row: int, settings: InstanceSettings | None = None) -> _Method:
        settings = settings or self._settings
        clusterer = BoxClusterer(settings, self._sampler.device)

        def probability(picture: Picture) -> Probability:
            return by_clusters(clusterer, self._variants(picture, row), picture.image_CHW)

        return _Method("style variants", probability, settings)

    def _by_readout(self) -> _Method:
        def probability(picture: Picture) -> Probability:
            features, readout = (
                features_of(self._generator, picture, self._labeler.layers),
                self._labeler.fitted.readout,
            )
            times = picture.image_CHW.shape[2] / self._generator.spec.resolution
            wide = Readout(readout.weights, _widened(readout.background_HW, times))
            decision = decide(wide(features)[0], picture.image_CHW[None], radius=1)
            return by_foreground(decision.masks_BHW[0] != 0)

        return _Method("the labeler's foreground in the box", probability, self._settings)

    def _variants(self, picture: Picture, row: int) -> Tensor:
        """[N, C, H, W], made once for all rows of a subject."""
        key = (id(picture), row)
        if key not in self._made:
            self._made[key] = variants_of(self._generator, picture, self._donors, row)
        return self._made[key]

    @cached_property
    def _donors(self) -> Tensor:
        """[N, L, D]."""
        first, settings = self._settings.donor_first_seed, self._settings
        return self._sampler.ws(range(first, first + settings.variants), psi=settings.donor_truncation_psi)[0]

    @cached_property
    def _labeler(self) -> StyleMixingLabeler:
        config = StyleMixingConfig()
        labeler = open_fitted(config, self._sampler, fit_to_bytes(config, self._sampler)).labeler
        assert isinstance(labeler, StyleMixingLabeler)
        return labeler


def _found(picture: Picture, boxes: Sequence[Box], method: _Method) -> list[Tensor]:
    """The instance of each box, bool [H, W], in their order."""
    size, device = (picture.image_CHW.shape[1], picture.image_CHW.shape[2]), picture.image_CHW.device
    found = image_instances(boxes, size, method.probability(picture), method.settings, device)
    number, masks = 0, []
    for box in boxes:
        is_empty = box in found.without_pixels
        number += not is_empty
        masks.append(torch.zeros_like(found.numbers_HW, dtype=torch.bool) if is_empty else found.numbers_HW == number)
    return masks


def _boxes(masks: Sequence[NDArray[np.bool_]], label: str) -> list[Box]:
    """Around each mask that has pixels."""
    boxes = []
    for mask_HW in masks:
        rows, columns = np.nonzero(mask_HW)
        if len(rows):
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes.append(Box(label, 1.0, float(left), float(top), float(right), float(bottom)))
    return boxes


def _with_pixels(truths: Sequence[Tensor]) -> list[Tensor]:
    return [truth_HW for truth_HW in truths if bool(truth_HW.any())]


def _moved(box: Box, size: tuple[int, int], random: np.random.Generator) -> Box:
    """Each side moved by up to _JITTER of the box's width or height, to either side."""
    left, top, right, bottom = random.uniform(-_JITTER, _JITTER, 4) * [box.width, box.height, box.width, box.height]
    return replace(
        box,
        left=max(0.0, box.left + left),
        top=max(0.0, box.top + top),
        right=min(float(size[1]), box.right + right),
        bottom=min(float(size[0]), box.bottom + bottom),
    )


def _everywhere(picture: Picture) -> Tensor:
    return torch.ones_like(picture.image_CHW[0], dtype=torch.bool)


def _widened(background_RR: Tensor, times: float) -> Tensor:
    """The share of background at each place, for pictures that are so many portraits wide: where portraits overlap, the
    one's on the left of the middle."""
    side = background_RR.shape[1]
    width, num = round(times * side), int(-(-times // 1))
    step = (width - side) // max(num - 1, 1)
    wide_HW = background_RR.new_zeros(background_RR.shape[0], width)
    for position in reversed(range(num)):
        wide_HW[:, position * step : position * step + side] = background_RR
    return wide_HW


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
