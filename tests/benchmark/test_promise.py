"""The promise benchmark on a pool whose truth is known, and on a few images of the bundled generator."""

from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.pipeline.benchmark.promise.results import PromiseBenchmark
from labelmill.pipeline.benchmark.promise.run import Pool, PromiseExtent, benchmark_promise, redraw
from labelmill.pipeline.promise.limit import JudgedMasks
from labelmill.pipeline.store.store import Store
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

EXTENT = PromiseExtent(num_redraws=100, promises=((0.9, 0.1),), nums_masks=(50,))


def pool_of(num_bad: int, is_ranked: bool) -> Pool:
    """400 masks, of which some are bad; those have the lowest confidences, or any."""
    confidence_N = np.round(np.linspace(0.6, 1, 400), 6)
    miou_N = np.where(np.arange(400) < num_bad, 0.5, 0.99)
    if not is_ranked:
        np.random.default_rng(1).shuffle(miou_N)
    return Pool(JudgedMasks(confidence_N, np.ones(400, bool)), miou_N)


@pytest.mark.parametrize("is_ranked", [True, False])
def test_redraws_keep_the_promise(is_ranked: bool) -> None:
    (row,) = redraw(pool_of(80, is_ranked), 0.7, EXTENT)
    assert row.below == 0.2 and row.risk_found <= 0.1
    # A confidence that tells nothing carries no promise; one that tells all keeps what is good.
    assert (row.num_refused > 50) == (not is_ranked)
    assert not is_ranked or 0.75 < row.kept < 0.95


def test_the_bundled_generator(tmp_path: Path) -> None:
    extent = PromiseExtent(
        num_pool=48,
        num_redraws=5,
        truncation_psis=(0.7,),
        promises=((0.5, 0.3),),
        nums_masks=(20,),
        labeler=StyleMixingConfig(variants=4, fit_samples=16, restarts=1, variant_resolution=None, crossover=3),
    )
    told: list[str] = []
    store = Store.open(str(tmp_path))
    benchmark = benchmark_promise(store, "bundled:avatars-32", torch.device("cpu"), extent, told.append)
    assert PromiseBenchmark.model_validate_json(store.read("promise.json")) == benchmark
    (row,) = benchmark.rows
    assert (row.below, row.risk_found, row.num_refused, row.kept) == (0, 0, 0, 1) and len(told) == 1
    assert "| 0.7 | 50 | 30 | 20 | 0.0 | **0.0** |" in store.read("promise.md").decode()
