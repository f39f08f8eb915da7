"""The class benchmark: rows, what they count, going on where it was, and the page."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.pipeline.benchmark.classes import run as benchmark
from labelmill.pipeline.benchmark.classes.results import CLASS_PROMPTS, DEFAULT, RARE, StudentResult, class_rows
from labelmill.pipeline.benchmark.classes.students import RECIPE, StudentsExtent, measure_students
from labelmill.pipeline.benchmark.classes.tables import markdown
from labelmill.pipeline.benchmark.downstream.training import Regime
from labelmill.pipeline.benchmark.masks.results import MasksSettings
from labelmill.pipeline.benchmark.oracle.annotator import FEW_SHOT
from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig, RunConfig
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.labelers.few_shot import LinearHeadConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.segmentation import SegmentationModelConfig, SegmentationTrainingConfig
from labelmill.schemas.yaml_file import load_config

ROOT = Path(__file__).resolve().parents[2]
TINY = benchmark.ClassesExtent(
    num_dev=16,
    num_test=16,
    timed_batches=1,
    fit={
        "fit_samples": 16,
        "naming_samples": 16,
        "clusters": 6,
        "iterations": 4,
        "passes": 1,
        "restarts": 1,
        "edited_samples": 8,
        "discovery_samples": 160,
        "style_mixing": {"variants": 4, "fit_samples": 16, "restarts": 1, "crossover": 3},
    },
    students=StudentsExtent(
        Regime(SegmentationModelConfig(architecture="resnet18_8s"), steps=3, batch_size=4),
        num_exact=4,
        num_test=5,
        few_shot=FEW_SHOT.model_copy(
            update={
                "style_mixing": StyleMixingConfig(variants=4, fit_samples=16, restarts=1, crossover=3),
                "head": LinearHeadConfig(components=16, steps=3, members=1),
                "statistics_samples": 8,
                "statistics_variants": 2,
            }
        ),
    ),
    only=("other-judge", "default", "clusters-12"),
)
CIRCUMSTANCES = MasksSettings(
    checkpoint="bundled:avatars-32",
    checkpoint_sha256="a" * 64,
    resolution=32,
    judges="oracle B",
    truncation_psi=0.7,
    device="cpu",
    threads=1,
    versions={},
)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    loaded = open_checkpoint("bundled:avatars-32", "cpu")
    return Sampler(loaded.generator, GeneratorConfig(checkpoint="bundled:avatars-32"), NumericsConfig(threads=1), "cpu")


def test_each_row_differs_from_the_default_in_one_setting() -> None:
    default = FeatureClustersConfig.model_validate(
        {"method": "feature_clusters", "names": CLASS_PROMPTS, "prompt_model": "bundled:avatars-prompts"}
    )
    rows = class_rows(default, ("b8.conv1", "b16.conv1", "b32.conv0", "b32.conv1"), 0.7)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        if row.labeler is None:
            assert row.group == "reference"
            continue
        ours, theirs = row.labeler.model_dump(), default.model_dump()
        differing = [key for key in ours if ours[key] != theirs[key]]
        assert len(differing) == {DEFAULT: 0, "untruncated": 0, "few": 3}.get(row.name, 1), row.name
        assert (row.truncation_psi == 1.0) == (row.group == "untruncated")
    everything = next(row for row in rows if row.name == "discover-all").labeler
    assert everything is not None and [rare.prompt.split()[-1] for rare in everything.discover] == list(RARE)


def test_rows_are_measured_once_and_say_what_they_say(sampler: Sampler, tmp_path: Path) -> None:
    store, told = Store.open(str(tmp_path / "out")), []
    sweep = benchmark.ClassSweep(store, sampler, CIRCUMSTANCES, TINY)
    results = {result.row.name: result for result in sweep.run(told.append)}
    assert [line.split(":")[0] for line in told] == ["other-judge", "default", "clusters-12"]

    # By hand: the default's masks against the oracle's, on the test seeds.
    result = results["default"]
    config = result.row.labeler
    assert config is not None
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    batch = sampler.sample(range(2_500_000_000, 2_500_000_016), labeler.layers)
    truth_BHW = open_oracle("b", 32).segment(batch.images_BCHW).numpy()
    other_BHW = open_oracle("a", 32).segment(batch.images_BCHW).numpy()
    evaluator = MaskEvaluator(tuple(CLASS_PROMPTS))
    for mask_HW, truth_HW in zip(labeler.label(batch).masks_BHW.numpy(), truth_BHW, strict=True):
        evaluator.add(mask_HW, truth_HW)
    assert result.scores == evaluator.scores()
    assert result.agreed.num_pixels == int((truth_BHW == other_BHW).sum())
    agreement = results["other-judge"].scores.iou["background"]
    both, either = ((truth_BHW == 0) & (other_BHW == 0)).sum(), ((truth_BHW == 0) | (other_BHW == 0)).sum()
    assert agreement == pytest.approx(both / either)

    # Clusters: what most of their pixels are.
    nearest_BHW = labeler.fitted.model.nearest(batch.features).numpy()  # type: ignore[attr-defined]
    for number, cluster in enumerate(result.clusters):
        inside = truth_BHW[nearest_BHW == number]
        counts = np.bincount(inside, minlength=11)
        assert cluster.share == pytest.approx(inside.size / truth_BHW.size, abs=1e-6)
        assert cluster.truth_share == pytest.approx(counts.max() / max(1, inside.size), abs=1e-4)
    assert result.seconds_per_image is not None and result.bare_seconds_per_image is not None

    # Again: nothing is measured anew, unless what it depends on has changed.
    again = benchmark.ClassSweep(store, sampler, CIRCUMSTANCES, TINY)
    assert {r.row.name: r for r in again.run(lambda line: pytest.fail(line))} == results
    elsewhere = CIRCUMSTANCES.model_copy(update={"device": "another"})
    assert benchmark.ClassSweep(store, sampler, elsewhere, TINY).key != sweep.key

    # Networks that learn the masks: each once.
    def learned(tell: Callable[[str], None]) -> tuple[StudentResult, ...]:
        return tuple(measure_students(store, sampler, sweep.default, TINY.students, sweep.key, tell))

    students = learned(told.append)
    assert [student.name for student in students] == [
        "distilled",
        "distilled-discover-all",
        "few-shot",
        "supervised",
    ]
    assert [student.num_pairs for student in students] == [12, 12, 12, 4]
    assert all(student.scores.num_images == 5 for student in students)
    assert len(told) == 7 and learned(lambda line: pytest.fail(line)) == students

    page = markdown(
        benchmark.ClassBenchmark(
            quick=True,
            circumstances=CIRCUMSTANCES,
            num_dev=16,
            num_test=16,
            rows=tuple(results.values()),
            students=students,
        )
    )
    assert f"| distilled from the default's masks | 12 | {100 * (students[0].scores.miou or 0):.1f} |" in page
    assert f"| {100 * (result.scores.miou or 0):.1f} |" in page and "32 px" in page and "domain-supervised" in page
    assert "73.1" in page and all(f"| {name} |" in page for name in CLASS_PROMPTS)
    json.loads((tmp_path / "out" / "classes-rows" / "default.json").read_text())


def test_the_training_file_is_the_recipe_that_is_measured() -> None:
    config = load_config(ROOT / "deploy" / "distil.yaml", SegmentationTrainingConfig)
    found = config.optimisation
    assert (config.model, config.augmentation) == (RECIPE.model, RECIPE.augmentation)
    assert (found.optimiser, found.learning_rate, found.weight_decay, found.poly_power, found.batch_size) == (
        "adam", RECIPE.learning_rate, RECIPE.weight_decay, 0.9, RECIPE.batch_size
    )  # fmt: skip
    assert found.steps == RECIPE.steps
    made = load_config(ROOT / "deploy" / "runs" / "feature_clusters.yaml", RunConfig)
    assert config.data.dataset == made.output


def test_a_generator_that_the_oracles_cannot_judge(tmp_path: Path) -> None:
    from labelmill.pipeline.generator.checkpoints.native import save_generator
    from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution

    channels = channels_by_resolution(16, channel_base=64, channel_max=8)
    spec = GeneratorSpec(resolution=16, z_dim=8, w_dim=8, c_dim=0, mapping_layers=2, channels=channels)
    save_generator(tmp_path / "g.safetensors", Generator(spec), {"licence": "Apache-2.0"})
    with pytest.raises(LabelmillError, match="makes images of 16 px; the oracles judge portraits of 32 and 64 px"):
        benchmark.benchmark_classes(
            Store.open(str(tmp_path / "out")), str(tmp_path / "g.safetensors"), torch.device("cpu"), True, print
        )
