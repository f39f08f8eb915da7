"""The few-shot benchmark at its smallest, on the bundled generator: a fit is measured once, and says what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.pipeline.benchmark.few_shot.results import FewShotBenchmark, Recipe
from labelmill.pipeline.benchmark.few_shot.run import MEASURES, Entry, FewShotExtent, benchmark_few_shot
from labelmill.pipeline.benchmark.oracle.annotator import FEW_SHOT
from labelmill.pipeline.store.store import Store
from labelmill.schemas.labelers.few_shot import LinearHeadConfig

SMALL = FEW_SHOT.model_copy(
    update={
        "foreground": "learned",
        "normalisation": "standardised",
        "statistics_samples": 4,
        "head": LinearHeadConfig(components=16, steps=4, members=2),
    }
)
EXTENT = FewShotExtent((Entry(Recipe(name="small", title="small and quick"), SMALL, 2, (1, 3)),), num_test=16)


def test_fits_are_measured_once_and_say_what_they_say(tmp_path: Path) -> None:
    store, told = Store.open(str(tmp_path)), list[str]()
    cpu = torch.device("cpu")
    benchmark = benchmark_few_shot(store, "bundled:avatars-32", cpu, EXTENT, told.append)
    assert [(result.shots, result.draw) for result in benchmark.results] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert FewShotBenchmark.model_validate_json(store.read("few_shot.json")) == benchmark and len(told) == 4
    assert 0.7 < (benchmark.ceiling.miou or 0) < 0.95 < (benchmark.ceiling_foreground.miou or 0)
    for result in benchmark.results:
        assert result.scores.num_images == 16 and result.scores.num_pixels == 16 * 32 * 32
        assert (result.foreground.miou or 0) > 0.5 and result.seconds > 0
        assert set(result.rank_correlation) == set(MEASURES)
        # Nothing dropped is the row itself; shares of the kept pixels sum to one.
        whole = next(point for point in result.filtered if point.kept == 1)
        assert (whole.miou, whole.fwiou) == pytest.approx((result.scores.miou, result.scores.fwiou))
        assert all(sum(point.class_shares.values()) == pytest.approx(1, abs=1e-4) for point in result.filtered)
    means = [np.mean([result.scores.fwiou or 0 for result in benchmark.of("small", shots)]) for shots in (1, 3)]
    page = store.read("few_shot.md").decode()
    assert all(f"{100 * float(value):.1f} ±" in page for value in means) and "| ceiling |" in page
    # Again: nothing is measured anew.
    assert benchmark_few_shot(store, "bundled:avatars-32", cpu, EXTENT, lambda line: pytest.fail(line)) == benchmark
