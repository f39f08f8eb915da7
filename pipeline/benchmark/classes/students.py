"""Distillation, the last step of Segmentation in Style: networks that learn the masks of feature clusters.

The recipe (Pakhomov et al., 2021, and their notebook): a dilated ResNet-18 with an output stride of 8, images of
128 px, Adam with 1e-4 and a weight decay of 1e-4, poly decay of 0.9, cross-entropy, 1,000 steps of 15 images, each seen
once. Ours differs in the images, which are smaller and enlarged inside the network, and in that it starts from random
weights. The same recipe for any dataset: deploy/distil.yaml.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from labelmill.pipeline.benchmark.classes.results import RARE, StudentResult, discover
from labelmill.pipeline.benchmark.downstream.data import TEST_SEEDS, TRAINING_SEEDS, Pairs, drawn_pairs, labeled_pairs
from labelmill.pipeline.benchmark.downstream.training import Regime, score_on, train_on
from labelmill.pipeline.benchmark.oracle.annotator import FEW_SHOT, few_shot_labeler
from labelmill.pipeline.benchmark.record import read_row, write_row
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import LabelerConfig
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.labelers.few_shot import FewShotConfig
from labelmill.schemas.segmentation import AugmentationConfig, SegmentationModelConfig

RECIPE = Regime(
    model=SegmentationModelConfig(architecture="resnet18_8s", upscale=4),
    steps=1000,
    batch_size=15,
    learning_rate=1e-4,
    weight_decay=1e-4,
    augmentation=AugmentationConfig(flip=0, scale=(1, 1), colour_jitter=0),
)
ON_CPU = replace(RECIPE, model=SegmentationModelConfig(architecture="resnet18_8s", upscale=2), steps=300)
"""The recipe cut down to minutes: 4,500 images, of 64 px inside the network."""
NUM_ANNOTATED = 10


@dataclass(frozen=True)
class StudentsExtent:
    """How much is learned, and how."""

    regime: Regime = RECIPE
    num_exact: int = 1000
    num_test: int = 1000
    few_shot: FewShotConfig = FEW_SHOT
    """Of the network that learns from masks by a few annotated images."""

    @property
    def num_pairs(self) -> int:
        """Generated images: each is seen once."""
        return self.regime.steps * self.regime.batch_size


@dataclass(frozen=True)
class _Student:
    name: str
    title: str
    teacher: LabelerConfig | None
    """null: exact masks."""


def measure_students(
    store: Store,
    sampler: Sampler,
    default: FeatureClustersConfig,
    extent: StudentsExtent,
    key: str,
    tell: Callable[[str], None],
) -> Iterator[StudentResult]:
    """Networks that learn from the default's masks, from those with discovery, and from exact ones.

    key: what stored results must have been measured with. tell: gets a line for each network that is trained.
    """
    test: Pairs | None = None
    for student in (
        _Student("distilled", "distilled from the default's masks", default),
        _Student("distilled-discover-all", "distilled from masks with discovery of all three", _discovering(default)),
        _Student(
            "few-shot", f"{NUM_ANNOTATED} images annotated by oracle A: the few-shot labeler's masks", extent.few_shot
        ),
        _Student("supervised", f"{extent.num_exact} exact masks", None),
    ):
        result = read_row(store, _path(student), StudentResult, key=key)
        if result is None:
            size = sampler.generator.spec.resolution
            test = test or drawn_pairs(TEST_SEEDS[: extent.num_test], size)
            result = _measured(student, sampler, extent, test, key)
            write_row(store, _path(student), result)
            tell(f"{student.title}: mIoU {100 * (result.scores.miou or 0):.1f}, {result.training_seconds:.0f} s")
        yield result


def _discovering(default: FeatureClustersConfig) -> FeatureClustersConfig:
    return FeatureClustersConfig.model_validate({**default.model_dump(), "discover": discover(*RARE)})


def _measured(student: _Student, sampler: Sampler, extent: StudentsExtent, test: Pairs, key: str) -> StudentResult:
    started, resolution = time.monotonic(), sampler.generator.spec.resolution
    regime = extent.regime.for_images_of(resolution)
    if student.teacher is None:
        pairs = drawn_pairs(TRAINING_SEEDS[: extent.num_exact], resolution)
    else:
        labeler = _taught(student.teacher, sampler)
        pairs = labeled_pairs(sampler, labeler, extent.num_pairs)
        assert pairs.classes == test.classes
    label_seconds = time.monotonic() - started
    segmenter, seconds = train_on(pairs, regime, seed=0, device=sampler.device)
    return StudentResult(
        key=key,
        name=student.name,
        title=student.title,
        steps=regime.steps,
        upscale=regime.model.upscale,
        num_pairs=len(pairs),
        label_seconds=label_seconds if student.teacher else None,
        training_seconds=seconds,
        scores=score_on(segmenter, test),
    )


def _taught(teacher: LabelerConfig, sampler: Sampler) -> Labeler:
    if isinstance(teacher, FewShotConfig):
        return few_shot_labeler(sampler, NUM_ANNOTATED, teacher)
    return open_fitted(teacher, sampler, fit_to_bytes(teacher, sampler)).labeler


def _path(student: _Student) -> str:
    return f"classes-students/{student.name}.json"
