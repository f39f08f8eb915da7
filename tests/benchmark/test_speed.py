"""The speed benchmark: its ratios by formula, and both sides run once on a small generator."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from labelmill.pipeline.benchmark.speed import multiply_adds
from labelmill.pipeline.benchmark.speed.run import SpeedPlan, SpeedResults, SpeedRow, benchmark_speed, speed_plan, table
from labelmill.pipeline.benchmark.speed.side import SideResult
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from labelmill.pipeline.store.store import Store

SPEC = GeneratorSpec(
    resolution=64, z_dim=16, w_dim=16, c_dim=0, mapping_layers=1,
    channels=channels_by_resolution(64, channel_base=4096, channel_max=128),
)  # fmt: skip


def _side(**stages: float) -> SideResult:
    return SideResult(
        bare_seconds=0.01,
        seconds_by_stage={name.replace("_", " "): seconds for name, seconds in stages.items()},
        labeled_seconds=sum(stages.values()),
        full_variants_seconds=0.2,
        variant_resolution=32,
        crossover=4,
        bare_multiply_adds=10,
        variants_multiply_adds=40,
        full_variants_multiply_adds=160,
        batch_size=16,
        peak_bytes=None,
    )


def test_ratios_are_of_what_they_say() -> None:
    row = SpeedRow(
        resolution=128,
        widths="narrow",
        readout=_side(synthesise=0.01, read_out=0.01),
        clusters=_side(synthesise=0.01, variants=0.06, cluster_and_merge=0.012),
        baseline=_side(synthesise=0.02, variants=0.3, cluster=0.08),
    )
    assert row.speedup(row.readout) == pytest.approx(20)
    assert row.speedup(row.clusters) == pytest.approx(0.4 / 0.082)
    assert row.clusters_speedup_at_full_size == pytest.approx(0.4 / (0.01 + 0.2 + 0.012))
    assert row.predicted_saving == pytest.approx(0.75)
    assert row.realised_saving == pytest.approx(0.7)
    assert row.clustering_share == pytest.approx(0.2)
    page = table(SpeedResults(hardware="a machine", torch="2", variants=16, threads=2, rows=[row]))
    assert "| 128 | narrow | 100.0 | 50.00 | 12.20 | 2.50 | 20.0 / 4.9 | 75.0% / 70.0% | 20.0% |" in page
    assert "with variants of the images' size, from the stages' times: 128 px: 1.8 times." in page
    assert "| 128 | straightforward | 16 | synthesise 20.0 (5%), variants 300.0 (75%), cluster 80.0 (20%) |" in page


def test_a_gpu_is_measured_at_more_sizes() -> None:
    assert speed_plan("cpu", quick=False).resolutions == (128,)
    assert speed_plan("cuda", quick=False).resolutions == (128, 256, 512, 1024)
    assert speed_plan("cpu", quick=True).rounds < speed_plan("cpu", quick=False).rounds


@torch.no_grad()
def test_counts_are_those_of_the_operations() -> None:
    """PyTorch counts two operations a multiply-add; and it counts what the count leaves out: styles, wide borders."""
    generator = Generator(SPEC).eval()
    ws_BLD = torch.randn(1, SPEC.num_ws, SPEC.w_dim)
    for resolution in (32, 64):
        with FlopCounterMode(display=False) as counter:
            generator.synthesize(ws_BLD, resolution=resolution)
        assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds.of_synthesis(SPEC, resolution), rel=0.02)
    with FlopCounterMode(display=False) as counter:
        trunk = generator.trunk(ws_BLD, 5)
        generator.synthesize(ws_BLD.repeat(3, 1, 1), resolution=32, trunk=trunk.repeat_interleave(3))
    assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds.of_variants(SPEC, 3, 5, 32), rel=0.02)


def test_both_sides_are_measured_and_written(tmp_path: Path) -> None:
    store, told = Store.open(str(tmp_path)), []
    plan = SpeedPlan("cpu", (32,), widths=(256, 16), rounds=1, repeats=1)
    results = benchmark_speed(store, plan, told.append)
    assert SpeedResults.model_validate_json(store.read("speed.json")) == results
    assert store.read("speed.md").decode() == f"{table(results)}\n"
    (row,) = results.rows
    assert (row.resolution, row.clusters.crossover, row.clusters.variant_resolution) == (32, 3, 32)
    assert set(row.readout.seconds_by_stage) == {"synthesise", "read out"}
    for side in (row.readout, row.clusters, row.baseline):
        # Clustering is what is left of a labeled image without its variants, both timed: little, in one round.
        timed = [seconds for stage, seconds in side.seconds_by_stage.items() if stage != "cluster and merge"]
        assert min(timed) > 0
    assert 0 < row.predicted_saving < 1
