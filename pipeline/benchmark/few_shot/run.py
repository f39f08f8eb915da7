"""`labelmill benchmark --few-shot`: masks of all classes from a few annotated images, by recipe and their number.

Oracle A annotates, oracle B judges. Each fit is a file; run again, the benchmark resumes from those that are there.

Shape suffixes: B batch, N test images, H height, W width, K classes.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from labelmill.pipeline.annotate.choose import greedy_cover, shown_clusters
from labelmill.pipeline.benchmark.few_shot.results import (
    FewShotBenchmark,
    FewShotResult,
    FewShotSettings,
    FilterPoint,
    Pick,
    Recipe,
)
from labelmill.pipeline.benchmark.few_shot.tables import markdown
from labelmill.pipeline.benchmark.oracle.annotator import ANNOTATED_SEEDS, FEW_SHOT
from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, open_oracle
from labelmill.pipeline.benchmark.record import Machine, network_sha256, read_row, row_key, write_row
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.few_shot.fit import fit_few_shot
from labelmill.pipeline.labelers.few_shot.fitted import FittedFewShot
from labelmill.pipeline.labelers.few_shot.label_free import LabelFree, fit_label_free
from labelmill.pipeline.labelers.few_shot.shots import Shots, shots_of_seeds
from labelmill.pipeline.labelers.few_shot.uncertainty import uncertainty
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.segmentation.metrics import ClassCounts, MaskEvaluator, confusion_matrix, mean
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.labelers.few_shot import FewShotConfig
from labelmill.schemas.scores import Scores

Masks = NDArray[np.uint8]

_FIRST_TEST_SEED = 2_000_000_000
_MOST_BYTES = 2**30
"""Of test images with features that are kept for all fits; more are synthesised again for each."""
_PORTIONS = (1.0, 0.95, 0.9, 0.8, 0.5)
MEASURES = ("disagreement", "entropy", "jensen_shannon")
_LIBRARIES = ("labelmill", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class Entry:
    """A recipe, and how often it is measured."""

    recipe: Recipe
    config: FewShotConfig
    draws: int
    shots: tuple[int, ...] = (1, 5, 10, 16, 20)


@dataclass(frozen=True)
class FewShotExtent:
    """How much is measured."""

    entries: tuple[Entry, ...]
    num_test: int = 256
    pool: int = 300
    """Images to choose from: the first of ANNOTATED_SEEDS for draws at random; each draw by coverage has as many of its
    own."""


def _entry(name: str, title: str, draws: int, *shots: int, pick: Pick = "random", **changes: object) -> Entry:
    config = FewShotConfig.model_validate({**FEW_SHOT.model_dump(), **changes})
    return Entry(Recipe(name=name, title=title, pick=pick), config, draws, shots or Entry.shots)


_AS_PUBLISHED: dict[str, Any] = {"normalisation": "none", "foreground": "learned"}
_ENTRIES = (
    _entry("default", "linear, whitened, with the label-free foreground (default)", 5),
    _entry("datasetgan", "DatasetGAN: 10 perceptrons", 3, head={"type": "mlp"}, **_AS_PUBLISHED),
    _entry("coverage", "the default, images chosen by coverage", 3, 5, 10, pick="coverage"),
    _entry("learned", "the default from the annotations alone", 3, 5, 10, foreground="learned"),
    _entry("standardised", "the default, standardised instead of whitened", 3, 5, 10, normalisation="standardised"),
    _entry("decoder", "Galeev et al.: decoder, 24 epochs", 3, head={"type": "decoder"}, **_AS_PUBLISHED),
    _entry("repurpose", "RepurposeGAN: CNN, 1000 epochs", 3, 1, 5, 10, head={"type": "cnn"}, **_AS_PUBLISHED),
)
FULL = FewShotExtent(_ENTRIES)
QUICK = FewShotExtent((replace(_ENTRIES[0], draws=1, shots=(5,)),), num_test=64)


def benchmark_few_shot(
    store: Store, checkpoint: str, device: torch.device, extent: FewShotExtent, tell: Callable[[str], None]
) -> FewShotBenchmark:
    """Measure what the store does not hold yet, and write few_shot.json and few_shot.md into it.

    tell: gets a line for each fit. Raises CheckpointError, or LabelmillError for a generator whose images the oracles
    do not take.
    """
    loaded = open_judged(checkpoint, device)
    numerics, config = NumericsConfig(threads=1), GeneratorConfig(checkpoint=checkpoint)
    torch.set_num_threads(numerics.threads)
    sampler = Sampler(loaded.generator, config, numerics, device)
    settings = FewShotSettings(
        checkpoint=loaded.info.name,
        checkpoint_sha256=loaded.sha256,
        resolution=sampler.generator.spec.resolution,
        truncation_psi=config.truncation_psi,
        num_test=extent.num_test,
        **asdict(Machine.here(device, numerics.threads, _LIBRARIES)),
    )
    bench = FewShotBench(store, sampler, settings, extent)
    results = tuple(bench.run(tell))
    ceiling, foreground = bench.ceiling()
    benchmark = FewShotBenchmark(
        settings=settings,
        recipes=tuple(entry.recipe for entry in extent.entries),
        ceiling=ceiling,
        ceiling_foreground=foreground,
        results=results,
    )
    store.replace("few_shot.json", benchmark.model_dump_json(indent=1).encode())
    store.replace("few_shot.md", markdown(benchmark).encode())
    return benchmark


class FewShotBench:
    """Fits one after the other."""

    def __init__(self, store: Store, sampler: Sampler, settings: FewShotSettings, extent: FewShotExtent) -> None:
        self._store, self._sampler, self._settings, self._extent = store, sampler, settings, extent
        size = sampler.generator.spec.resolution
        self._annotator, self._judge = (open_oracle(name, size, sampler.device) for name in ("a", "b"))
        self._test_seeds = range(_FIRST_TEST_SEED, _FIRST_TEST_SEED + extent.num_test)
        self._truths: list[Masks] = []
        self._label_free: tuple[FewShotConfig, LabelFree] | None = None
        self._kept: list[Batch] = []
        self._ordered: dict[int, list[int]] = {}

    def run(self, tell: Callable[[str], None]) -> Iterator[FewShotResult]:
        """The results of all fits, measured where they are missing."""
        for entry in self._extent.entries:
            for shots in entry.shots:
                for draw in range(entry.draws):
                    yield self._result(entry, shots, draw, tell)

    def ceiling(self) -> tuple[Scores, Scores]:
        """What the annotator would score, of all classes and of the foreground."""
        return self._scores([self._segmented(self._annotator, batch) for batch in self._test_images()])

    def _result(self, entry: Entry, shots: int, draw: int, tell: Callable[[str], None]) -> FewShotResult:
        name, key = entry.recipe.name, self._key(entry)
        path = f"few-shot/{name}-{shots}-{draw}.json"
        result = read_row(self._store, path, FewShotResult, recipe=name, shots=shots, draw=draw, key=key)
        if result is None:
            result = self._measured(entry, shots, draw, key)
            write_row(self._store, path, result)
            tell(f"{name}, {shots} shots, draw {draw}: mIoU {100 * (result.scores.miou or 0):.1f}")
        return result

    def _key(self, entry: Entry) -> str:
        return row_key(
            (FewShotBench,),
            self._sampler,
            judges=[network_sha256(oracle.network) for oracle in (self._annotator, self._judge)],
            settings=self._settings.model_dump(mode="json"),
            config=entry.config.model_dump(mode="json"),
            pick=entry.recipe.pick,
            pool=self._extent.pool,
        )

    def _measured(self, entry: Entry, shots: int, draw: int, key: str) -> FewShotResult:
        annotated = self._annotated(entry.recipe.pick, shots, draw)
        label_free = self._learned_without_labels(entry)
        started = time.process_time()
        fitted = fit_few_shot(entry.config, self._sampler, annotated, label_free=label_free)
        seconds = time.process_time() - started
        masks, uncertainties = self._labeled(fitted)
        scores, foreground = self._scores(masks)
        counts = [
            confusion_matrix(mask, truth) for mask, truth in zip(masks, np.concatenate(self._truth()), strict=True)
        ]
        wrong = [1 - np.trace(matrix) / matrix.sum() for matrix in counts]
        return FewShotResult(
            key=key,
            recipe=entry.recipe.name,
            shots=shots,
            draw=draw,
            num_classes_seen=len(np.unique(annotated.masks_NHW)),
            seconds=round(seconds, 2),
            scores=scores,
            foreground=foreground,
            rank_correlation={
                name: round(float(spearmanr(values, wrong).statistic), 4) for name, values in uncertainties.items()
            },
            filtered=tuple(self._filtered(counts, uncertainties)),
        )

    def _annotated(self, pick: Pick, shots: int, draw: int) -> Shots:
        seeds = self._by_coverage(draw)[:shots] if pick == "coverage" else self._at_random(shots, draw)
        masks = [self._segmented(self._annotator, batch) for batch in self._sampler.batches(seeds)]
        return shots_of_seeds(self._sampler, seeds, np.concatenate(masks), self._annotator.classes)

    def _at_random(self, shots: int, draw: int) -> list[int]:
        """The first of a shuffled pool: draws with more images begin alike."""
        order = np.random.default_rng(draw).permutation(self._extent.pool)
        return [ANNOTATED_SEEDS[int(index)] for index in order[:shots]]

    def _by_coverage(self, draw: int) -> list[int]:
        """As `labelmill annotate pick --choose coverage` takes them, the first first: fewer images begin alike."""
        if draw not in self._ordered:
            size = self._extent.pool
            pool = ANNOTATED_SEEDS[draw * size : (draw + 1) * size]
            most = max(number for entry in self._extent.entries for number in entry.shots)
            with repeatable_kernels():
                taken = greedy_cover(shown_clusters(self._sampler, pool), most)
            self._ordered[draw] = [pool[index] for index in taken]
        return self._ordered[draw]

    def _learned_without_labels(self, entry: Entry) -> LabelFree:
        """What all fits with the same settings begin with, kept for one recipe at a time."""
        if self._label_free is None or self._label_free[0] != entry.config:
            self._label_free = entry.config, fit_label_free(entry.config, self._sampler)
        return self._label_free[1]

    def _labeled(self, fitted: FittedFewShot) -> tuple[Masks, dict[str, list[float]]]:
        """Masks of the test images, and how unsure the head is of each, by measure."""
        labeler = fitted.labeler(self._sampler)
        measures = MEASURES if fitted.provenance.config.head.members > 1 else ("entropy",)
        masks, uncertainties = list[Masks](), {name: list[float]() for name in measures}
        for batch in self._test_images(labeler.layers):
            masks.append(labeler.label(batch).masks_BHW.cpu().numpy())
            probabilities_MBKhw = labeler.probabilities(batch)
            for name, values in uncertainties.items():
                values += uncertainty(probabilities_MBKhw, name).tolist()
        return np.concatenate(masks), uncertainties

    def _test_images(self, layers: Collection[str] = ()) -> Iterator[Batch]:
        """With the features of these layers, which are kept for the next fit unless they are too many."""
        if self._kept and set(layers) <= set(self._kept[0].features):
            yield from self._kept
            return
        self._kept, seen, num_bytes = [], list[Batch](), 0
        for batch in self._sampler.batches(self._test_seeds, layers):
            yield batch
            num_bytes += batch.images_BCHW.nbytes + sum(part.nbytes for part in batch.features.values())
            # Past the limit nothing is kept.
            seen = [*seen, batch] if num_bytes <= _MOST_BYTES else []
        self._kept = seen

    def _filtered(
        self, counts: Sequence[NDArray[np.int64]], uncertainties: dict[str, list[float]]
    ) -> Iterator[FilterPoint]:
        classes = self._judge.classes
        for name, values in uncertainties.items():
            order = np.argsort(values, kind="stable")
            for portion in _PORTIONS:
                matrix_TP = np.sum([counts[index] for index in order[: round(portion * len(order))]], axis=0)
                kept = ClassCounts(matrix_TP, len(classes))
                true_K = matrix_TP[: len(classes)].sum(axis=1)
                shares = {
                    label: round(float(value / true_K.sum()), 6) for label, value in zip(classes, true_K, strict=True)
                }
                yield FilterPoint(
                    measure=name,
                    kept=portion,
                    miou=mean(kept.iou()),
                    fwiou=kept.frequency_weighted_iou(),
                    class_shares=shares,
                )

    def _truth(self) -> list[Masks]:
        if not self._truths:
            self._truths = [self._segmented(self._judge, batch) for batch in self._test_images()]
        return self._truths

    def _segmented(self, oracle: Oracle, batch: Batch) -> Masks:
        return oracle.segment(batch.images_BCHW).cpu().numpy()

    def _scores(self, masks: Sequence[Masks] | Masks) -> tuple[Scores, Scores]:
        whole, foreground = MaskEvaluator(self._judge.classes), MaskEvaluator(("background", "foreground"))
        flat = masks if isinstance(masks, np.ndarray) else np.concatenate(list(masks))
        for mask_HW, truth_HW in zip(flat, np.concatenate(self._truth()), strict=True):
            whole.add(mask_HW, truth_HW)
            foreground.add((mask_HW != 0).astype(np.uint8), (truth_HW != 0).astype(np.uint8))
        return whole.scores(), foreground.scores()
