"""`labelmill benchmark --classes`: semantic classes by feature clusters and prompts, against an oracle.

Every class of the avatars domain is named by one prompt, its own name, and nothing else is told: no label is used but
to score. Each finished row is a file; run again, the benchmark goes on from the rows that are there.

Shape suffixes: B batch, H height, W width, K clusters, N classes.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from labelmill.pipeline.benchmark.classes.results import (
    CLASS_PROMPTS,
    PROMPTED_CLUSTERS,
    ClassBenchmark,
    ClassResult,
    ClassRow,
    ClusterResult,
    class_rows,
)
from labelmill.pipeline.benchmark.classes.students import ON_CPU, StudentsExtent, measure_students
from labelmill.pipeline.benchmark.classes.tables import markdown
from labelmill.pipeline.benchmark.masks.results import MasksSettings
from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.benchmark.record import (
    Machine,
    bundled_weights_sha256,
    network_sha256,
    read_row,
    row_key,
    write_row,
)
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.feature_clusters.labeler import FeatureClustersLabeler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.prompt_models import open_prompt_model
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.sample import IGNORE

# Far from the seeds of runs, of training, of `fit`, and of the images that defaults were chosen on.
_FIRST_SEED = {"dev": 1_000_000_000, "test": 2_500_000_000}
_LIBRARIES = ("labelmill", "torch", "numpy", "scipy")
_FIRST_ROW = 2  # b8.conv1: what lies below is too coarse for parts

Counts = NDArray[np.int64]
Masks = NDArray[np.uint8]


@dataclass(frozen=True)
class ClassesExtent:
    """How much is measured."""

    num_dev: int
    num_test: int
    timed_batches: int
    fit: dict[str, object]
    """Settings of the labeler that are not the defaults."""
    students: StudentsExtent
    only: tuple[str, ...] | None = None
    """Names of rows; None for all."""


FULL = ClassesExtent(num_dev=256, num_test=1024, timed_batches=16, fit={}, students=StudentsExtent())
FULL_ON_CPU = replace(FULL, students=StudentsExtent(ON_CPU))
QUICK = ClassesExtent(
    num_dev=64,
    num_test=64,
    timed_batches=3,
    fit={"fit_samples": 64, "naming_samples": 32, "edited_samples": 32, "discovery_samples": 400},
    only=("other-judge", "default", "discover-hat", "layer-b16.conv1", "clusters-12"),
    students=StudentsExtent(replace(ON_CPU, steps=20), num_exact=64, num_test=64),
)


def benchmark_classes(
    store: Store, checkpoint: str, device: torch.device, quick: bool, tell: Callable[[str], None]
) -> ClassBenchmark:
    """Measure what the store does not hold yet, and write classes.json and classes.md into it.

    tell: gets a line for each row that is measured. Raises CheckpointError, or LabelmillError for a generator whose
    images the oracles do not take.
    """
    loaded = open_judged(checkpoint, device)
    # One thread: a small generator gains little from more, and times do not depend on what else runs.
    numerics = NumericsConfig(threads=1)
    torch.set_num_threads(numerics.threads)
    config = GeneratorConfig(checkpoint=checkpoint)
    circumstances = MasksSettings(
        checkpoint=loaded.info.name,
        checkpoint_sha256=loaded.sha256,
        resolution=loaded.generator.spec.resolution,
        judges="oracle B",
        truncation_psi=config.truncation_psi,
        **asdict(Machine.here(device, numerics.threads, _LIBRARIES)),
    )
    sampler = Sampler(loaded.generator, config, numerics, device)
    full = FULL if device.type == "cuda" else FULL_ON_CPU
    sweep = ClassSweep(store, sampler, circumstances, QUICK if quick else full)
    rows = tuple(sweep.run(tell))
    torch.set_num_threads(NumericsConfig().threads)
    students = tuple(measure_students(store, sampler, sweep.default, sweep.extent.students, sweep.key, tell))
    benchmark = ClassBenchmark(
        quick=quick,
        circumstances=circumstances,
        num_dev=sweep.extent.num_dev,
        num_test=sweep.extent.num_test,
        rows=rows,
        students=students,
    )
    store.replace("classes.md", markdown(benchmark).encode())
    store.replace("classes.json", benchmark.model_dump_json(indent=1).encode())
    return benchmark


class ClassSweep:
    """Measures the rows that are not in the store yet."""

    def __init__(self, store: Store, sampler: Sampler, circumstances: MasksSettings, extent: ClassesExtent) -> None:
        self._store, self._sampler, self.extent = store, sampler, extent
        size = sampler.generator.spec.resolution
        self._judge, self._other = open_oracle("b", size, sampler.device), open_oracle("a", size, sampler.device)
        assert tuple(CLASS_PROMPTS) == self._judge.classes
        self.default = FeatureClustersConfig.model_validate({**PROMPTED_CLUSTERS.model_dump(), **extent.fit})
        rows = class_rows(self.default, sampler.generator.spec.conv_names[_FIRST_ROW:], sampler.config.truncation_psi)
        self.rows = [row for row in rows if extent.only is None or row.name in extent.only]
        self.key = row_key(
            (ClassSweep, measure_students),
            sampler,
            judges=[network_sha256(oracle.network) for oracle in (self._judge, self._other)],
            prompts=bundled_weights_sha256(open_prompt_model),
            extent=repr(extent),
            circumstances=circumstances.model_dump(mode="json"),
        )
        self._truths: dict[tuple[float, tuple[int, ...]], tuple[Masks, Masks]] = {}

    def run(self, tell: Callable[[str], None]) -> Iterator[ClassResult]:
        """The results of all rows, measured where they are missing."""
        for row in self.rows:
            result = self._stored(row)
            if result is None:
                result = self._measured(row)
                write_row(self._store, result_path(row.name), result)
                tell(f"{row.name}: mIoU {100 * (result.scores.miou or 0):.1f}")
            yield result

    def _stored(self, row: ClassRow) -> ClassResult | None:
        return read_row(self._store, result_path(row.name), ClassResult, row=row, key=self.key)

    def _measured(self, row: ClassRow) -> ClassResult:
        config = self._sampler.config.model_copy(update={"truncation_psi": row.truncation_psi})
        sampler = Sampler(self._sampler.generator, config, self._sampler.numerics, self._sampler.device)
        if row.labeler is None:
            return self._of_other_judge(row, sampler)
        labeler = open_fitted(row.labeler, sampler, fit_to_bytes(row.labeler, sampler)).labeler
        assert isinstance(labeler, FeatureClustersLabeler)
        truth_K = self._counted(sampler, labeler).argmax(axis=1).astype(np.uint8)
        scores, agreed, truly = (MaskEvaluator(self._judge.classes) for _ in range(3))
        counts_KN = np.zeros((len(truth_K), len(self._judge.classes)), np.int64)
        truly_named = _renamed(labeler, truth_K, sampler)
        for batch in self._batches(sampler, "test", labeler.layers):
            masks_BHW = labeler.label(batch).masks_BHW.cpu().numpy()
            truth_BHW, agreed_BHW = self._judged(batch, row.truncation_psi)
            _add(scores, masks_BHW, truth_BHW)
            _add(agreed, masks_BHW, agreed_BHW)
            _add(truly, truly_named.label(batch).masks_BHW.cpu().numpy(), truth_BHW)
            _count(counts_KN, labeler, batch, truth_BHW)
        seconds, bare = self._seconds(sampler, labeler)
        return ClassResult(
            row=row,
            key=self.key,
            layers=list(labeler.layers),
            scores=scores.scores(),
            agreed=agreed.scores(),
            truly_named=truly.scores(),
            clusters=_cluster_results(labeler, counts_KN, self._judge.classes),
            seconds_per_image=seconds,
            bare_seconds_per_image=bare,
            discoveries=labeler.fitted.provenance.discoveries,
        )

    def _of_other_judge(self, row: ClassRow, sampler: Sampler) -> ClassResult:
        evaluator = MaskEvaluator(self._judge.classes)
        for batch in self._batches(sampler, "test"):
            guess_BHW = self._other.segment(batch.images_BCHW).cpu().numpy()
            _add(evaluator, guess_BHW, self._judged(batch, row.truncation_psi)[0])
        scores = evaluator.scores()
        return ClassResult(
            row=row,
            key=self.key,
            layers=[],
            scores=scores,
            agreed=scores,
            truly_named=None,
            clusters=[],
            seconds_per_image=None,
            bare_seconds_per_image=None,
            discoveries=[],
        )

    def _counted(self, sampler: Sampler, labeler: FeatureClustersLabeler) -> Counts:
        """Pixels of the dev images by cluster and true class [K, N]."""
        counts_KN = np.zeros((len(labeler.fitted.provenance.clusters), len(self._judge.classes)), np.int64)
        for batch in self._batches(sampler, "dev", labeler.layers):
            _count(counts_KN, labeler, batch, self._judged(batch, sampler.config.truncation_psi)[0])
        return counts_KN

    def _judged(self, batch: Batch, truncation_psi: float) -> tuple[Masks, Masks]:
        """Classes as the judge sees them, and the same with 255 where the other disagrees. Rows share images."""
        known = self._truths.get((truncation_psi, batch.seeds))
        if known is None:
            first, second = (oracle.segment(batch.images_BCHW).cpu().numpy() for oracle in (self._judge, self._other))
            known = first, np.where(first == second, first, IGNORE).astype(np.uint8)
            self._truths[truncation_psi, batch.seeds] = known
        return known

    def _batches(self, sampler: Sampler, split: str, layers: Collection[str] = ()) -> Iterator[Batch]:
        count = self.extent.num_dev if split == "dev" else self.extent.num_test
        return sampler.batches(range(_FIRST_SEED[split], _FIRST_SEED[split] + count), layers)

    def _seconds(self, sampler: Sampler, labeler: FeatureClustersLabeler) -> tuple[float, float]:
        """Seconds an image from seed to mask on the host, and of bare synthesis: the quickest of batches, in turns.

        Whatever else the machine does only adds to a time.
        """
        labeled: list[float] = []
        bare: list[float] = []
        size = sampler.numerics.batch_size
        for index in range(self.extent.timed_batches + 1):
            seeds = range(_FIRST_SEED["test"] + index * size, _FIRST_SEED["test"] + (index + 1) * size)
            for seconds, layers in ((bare, ()), (labeled, labeler.layers)):
                _synchronise(sampler.device)
                start = time.perf_counter()
                batch = sampler.sample(seeds, layers)
                if layers:
                    labeler.label(batch).masks_BHW.cpu()
                else:
                    batch.images_BCHW[0, 0, 0, 0].item()
                seconds.append((time.perf_counter() - start) / size)
        return min(labeled[1:]), min(bare[1:])


def result_path(row: str) -> str:
    """Where a finished row is."""
    return f"classes-rows/{row}.json"


def _add(evaluator: MaskEvaluator, masks_BHW: Masks, truth_BHW: Masks) -> None:
    for mask_HW, truth_HW in zip(masks_BHW, truth_BHW, strict=True):
        evaluator.add(mask_HW, truth_HW)


def _count(counts_KN: Counts, labeler: FeatureClustersLabeler, batch: Batch, truth_BHW: Masks) -> None:
    nearest_Bhw = labeler.fitted.model.nearest(batch.features)
    factor = truth_BHW.shape[1] // nearest_Bhw.shape[1]
    nearest_BHW = nearest_Bhw.repeat_interleave(factor, 1).repeat_interleave(factor, 2).cpu().numpy()
    np.add.at(counts_KN, (nearest_BHW.ravel(), truth_BHW.ravel()), 1)


def _renamed(labeler: FeatureClustersLabeler, truth_K: Masks, sampler: Sampler) -> FeatureClustersLabeler:
    """The labeler with every cluster's true name."""
    fitted = labeler.fitted
    records = [
        record.model_copy(update={"name": fitted.provenance.classes[int(truth)]})
        for record, truth in zip(fitted.provenance.clusters, truth_K, strict=True)
    ]
    provenance = fitted.provenance.model_copy(update={"clusters": records})
    return FeatureClustersLabeler(sampler, replace(fitted, provenance=provenance))


def _cluster_results(
    labeler: FeatureClustersLabeler, counts_KN: Counts, classes: tuple[str, ...]
) -> list[ClusterResult]:
    total = counts_KN.sum()
    return [
        ClusterResult(
            name=record.name,
            is_unsure=record.is_unsure,
            truth=classes[int(counts_N.argmax())],
            truth_share=round(float(counts_N.max() / max(1, counts_N.sum())), 4),
            share=round(float(counts_N.sum() / total), 6),
            similarity=record.similarity,
            margin=record.margin,
        )
        for record, counts_N in zip(labeler.fitted.provenance.clusters, counts_KN, strict=True)
    ]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
