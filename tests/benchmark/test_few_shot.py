"""The few-shot benchmark at its smallest, on the bundled generator: a fit is measured once, and says what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.pipeline.annotate.choose import greedy_cover, shown_clusters
from labelmill.pipeline.benchmark.few_shot.results import FewShotBenchmark, Recipe
from labelmill.pipeline.benchmark.few_shot.run import MEASURES, Entry, FewShotExtent, benchmark_few_shot
from labelmill.pipeline.benchmark.oracle.annotator import FEW_SHOT
from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.few_shot.fit import fit_few_shot
from labelmill.pipeline.labelers.few_shot.shots import shots_of_seeds
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.labelers.few_shot import LinearHeadConfig

SMALL = FEW_SHOT.model_copy(
    update={
        "foreground": "learned",
        "normalisation": "standardised",
        "statistics_samples": 4,
        "head": LinearHeadConfig(components=16, steps=4, members=2),
    }
)
EXTENT = FewShotExtent(
    (
        Entry(Recipe(name="small", title="small and quick"), SMALL, 2, shots=(1,)),
        Entry(
            Recipe(name="chosen", title="of chosen images", pick="coverage", shortened="4 steps"), SMALL, 1, shots=(2,)
        ),
    ),
    num_test=16,
    pool=16,
)


def test_fits_are_measured_once_and_say_what_they_say(tmp_path: Path) -> None:
    store, told = Store.open(str(tmp_path)), list[str]()
    cpu = torch.device("cpu")
    benchmark = benchmark_few_shot(store, "bundled:avatars-32", cpu, EXTENT, told.append)
    assert [(result.recipe, result.shots, result.draw) for result in benchmark.results] == [
        ("small", 1, 0), ("small", 1, 1), ("chosen", 2, 0)
    ]  # fmt: skip
    assert FewShotBenchmark.model_validate_json(store.read("few_shot.json")) == benchmark and len(told) == 3
    assert 0.7 < (benchmark.ceiling.miou or 0) < 0.95 < (benchmark.ceiling_foreground.miou or 0)
    for result in benchmark.results:
        assert result.scores.num_images == 16 and result.scores.num_pixels == 16 * 32 * 32
        assert (result.foreground.miou or 0) > 0.5 and result.seconds > 0
        assert set(result.rank_correlation) == set(MEASURES)
        # Nothing dropped is the row itself; shares of the kept pixels sum to one.
        whole = next(point for point in result.filtered if point.kept == 1)
        assert (whole.miou, whole.fwiou) == pytest.approx((result.scores.miou, result.scores.fwiou))
        assert all(sum(point.class_shares.values()) == pytest.approx(1, abs=1e-4) for point in result.filtered)
    mean = np.mean([result.scores.fwiou or 0 for result in benchmark.of("small", 1)])
    page = store.read("few_shot.md").decode()
    assert f"{100 * float(mean):.1f} ±" in page and "| ceiling |" in page
    assert "- of chosen images: 4 steps" in page
    # By hand: the fit from what oracle A says of the images that coverage takes first, on the test images.
    pool = range(900_000_000, 900_000_016)
    sampler = Sampler(
        open_checkpoint("bundled:avatars-32", "cpu").generator,
        GeneratorConfig(checkpoint="bundled:avatars-32"), NumericsConfig(threads=1), "cpu",
    )  # fmt: skip
    seeds = [pool[index] for index in greedy_cover(shown_clusters(sampler, pool), 2)]
    annotator, judge = open_oracle("a", 32), open_oracle("b", 32)
    masks_NHW = annotator.segment(sampler.sample(seeds).images_BCHW[:2]).numpy()
    labeler = fit_few_shot(SMALL, sampler, shots_of_seeds(sampler, seeds, masks_NHW, annotator.classes)).labeler(
        sampler
    )
    batch = sampler.sample(range(2_000_000_000, 2_000_000_016), labeler.layers)
    evaluator, judged_NHW = MaskEvaluator(judge.classes), judge.segment(batch.images_BCHW).numpy()
    for mask_HW, truth_HW in zip(labeler.label(batch).masks_BHW.numpy(), judged_NHW, strict=True):
        evaluator.add(mask_HW, truth_HW)
    assert benchmark.of("chosen", 2)[0].scores == evaluator.scores()
    # Again: nothing is measured anew.
    assert benchmark_few_shot(store, "bundled:avatars-32", cpu, EXTENT, lambda line: pytest.fail(line)) == benchmark
