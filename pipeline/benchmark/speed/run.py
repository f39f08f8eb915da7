"""How fast labeled images come, and what each economy brings: `labelmill benchmark --speed`.

Each side runs in a process of its own, in turns, and counts with its best round, so that other work on the machine
harms both alike.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.benchmark.speed.side import SideRequest, SideResult
from labelmill.pipeline.process.settings import PROCESS_SETTINGS
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import NumericsConfig
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

# channel_base and channel_max: a small generator for CPUs, and the widths of StyleGAN2's config F.
NARROW, CONFIG_F = (4096, 256), (32768, 512)
_W_DIM, _MAPPING_LAYERS = 256, 4
# Random weights give nothing to choose by. The row is what `auto` chose on the bundled generator. That variants of
# 32 px do is an assumption: they are that generator's whole images, and no larger one has been measured.
_CROSSOVER, _VARIANT_RESOLUTION = 3, 32
_ROUNDS, _QUICK_ROUNDS = 3, 1
_REPEATS, _QUICK_REPEATS = 5, 2
JSON_PATH, TABLE_PATH = "speed.json", "speed.md"
_ASSUMPTION = (
    f"That variants of {_VARIANT_RESOLUTION} px do is an assumption: `auto` chose row {_CROSSOVER} on the bundled "
    f"generator, whose images are that size. Labels by clusters against the straightforward way with variants of the "
    f"images' size, from the stages' times:"
)


class SpeedRow(BaseModel):
    """A resolution, both sides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int
    widths: str
    readout: SideResult
    """The default."""
    clusters: SideResult
    """`masks_from: clusters`."""
    baseline: SideResult

    def speedup(self, side: SideResult) -> float:
        """Labeled images a second, against the baseline."""
        return self.baseline.labeled_seconds / side.labeled_seconds

    @property
    def clusters_speedup_at_full_size(self) -> float:
        """What `clusters` would come to with variants of the images' size: their time measured without a shared trunk,
        which saves some of it, and clustering timed on small ones, which takes longer on large ones."""
        stages = self.clusters.seconds_by_stage
        seconds = self.clusters.labeled_seconds - stages["variants"] + self.clusters.full_variants_seconds
        return self.baseline.labeled_seconds / seconds

    @property
    def predicted_saving(self) -> float:
        """Share of the full variants' multiply-adds that sharing the trunk and small variants avoid."""
        ours = self.clusters
        return 1 - ours.variants_multiply_adds / ours.full_variants_multiply_adds

    @property
    def realised_saving(self) -> float:
        """Share of the full variants' time that they avoid, by the same synthesis."""
        ours = self.clusters
        return 1 - ours.seconds_by_stage["variants"] / ours.full_variants_seconds

    @property
    def clustering_share(self) -> float:
        """Time of clustering and merging in parts of the variants' synthesis."""
        stages = self.clusters.seconds_by_stage
        return stages["cluster and merge"] / stages["variants"]


class SpeedResults(BaseModel):
    """`speed.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardware: str
    torch: str
    variants: int
    threads: int
    rows: list[SpeedRow]


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured where."""

    device: str
    resolutions: tuple[int, ...]
    widths: tuple[int, int]
    rounds: int
    repeats: int


def speed_plan(device: str, *, quick: bool) -> SpeedPlan:
    """128 px with narrow layers on a CPU, up to 1024 px with StyleGAN2's widths on a GPU."""
    rounds, repeats = (_QUICK_ROUNDS, _QUICK_REPEATS) if quick else (_ROUNDS, _REPEATS)
    if device == "cuda":
        return SpeedPlan(device, (128, 256, 512, 1024), CONFIG_F, rounds, repeats)
    return SpeedPlan(device, (128,), NARROW, rounds, repeats)


def benchmark_speed(store: Store, plan: SpeedPlan, tell: Callable[[str], None]) -> SpeedResults:
    """Measure, and write speed.json and speed.md."""
    labeler = StyleMixingConfig(crossover=_CROSSOVER, variant_resolution=_VARIANT_RESOLUTION)
    numerics = NumericsConfig()
    rows = []
    for resolution in plan.resolutions:
        tell(f"{resolution} px: {plan.rounds} rounds of both sides")
        rows.append(_measure_row(plan, resolution, labeler, numerics))
    results = SpeedResults(
        hardware=_hardware(plan.device),
        torch=torch.__version__,
        variants=labeler.variants,
        threads=numerics.threads,
        rows=rows,
    )
    store.replace(JSON_PATH, results.model_dump_json(indent=1).encode() + b"\n")
    store.replace(TABLE_PATH, f"{table(results)}\n".encode())
    return results


def _measure_row(plan: SpeedPlan, resolution: int, labeler: StyleMixingConfig, numerics: NumericsConfig) -> SpeedRow:
    def request(side: str, masks_from: str) -> SideRequest:
        return SideRequest.model_validate(
            {
                "side": side,
                "device": plan.device,
                "resolution": resolution,
                "channel_base": plan.widths[0],
                "channel_max": plan.widths[1],
                "w_dim": _W_DIM,
                "mapping_layers": _MAPPING_LAYERS,
                "labeler": labeler.model_copy(update={"masks_from": masks_from}),
                "numerics": numerics,
                "repeats": plan.repeats,
            }
        )

    sides = {
        "readout": (request("labelmill", "readout"), PROCESS_SETTINGS),
        "clusters": (request("labelmill", "clusters"), PROCESS_SETTINGS),
        "baseline": (request("baseline", "clusters"), {}),
    }
    rounds = [{name: _run(*side) for name, side in sides.items()} for _ in range(plan.rounds)]
    best = {name: _best([results[name] for results in rounds]) for name in sides}
    widths = "narrow" if plan.widths == NARROW else "config F"
    return SpeedRow(resolution=resolution, widths=widths, **best)


def _run(request: SideRequest, settings: dict[str, str]) -> SideResult:
    environment = {name: value for name, value in os.environ.items() if name not in PROCESS_SETTINGS} | settings
    command = [sys.executable, "-m", "labelmill.pipeline.benchmark.speed.side", request.model_dump_json()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise LabelmillError(f"benchmark --speed: the {request.side} side at {request.resolution} px failed: {last[0]}")
    return SideResult.model_validate_json(done.stdout)


def _best(rounds: Sequence[SideResult]) -> SideResult:
    return min(rounds, key=lambda result: result.labeled_seconds)


def table(results: SpeedResults) -> str:
    """The results as Markdown."""
    head = (
        f"Random weights; {results.variants} variants from row {_CROSSOVER} of w at {_VARIANT_RESOLUTION} px, "
        f"{results.threads} threads, PyTorch {results.torch}, {results.hardware}."
    )
    columns = ("px", "widths", "images/s", "labeled/s, read-out", "labeled/s, clusters", "labeled/s, straightforward",
               "faster, read-out / clusters", "saving, counted / timed", "clustering / variants")  # fmt: skip
    cells = [
        (
            f"{row.resolution}",
            row.widths,
            f"{1 / row.readout.bare_seconds:.1f}",
            *(f"{1 / side.labeled_seconds:.2f}" for side in (row.readout, row.clusters, row.baseline)),
            f"{row.speedup(row.readout):.1f} / {row.speedup(row.clusters):.1f}",
            f"{row.predicted_saving:.1%} / {row.realised_saving:.1%}",
            f"{row.clustering_share:.1%}",
        )
        for row in results.rows
    ]
    assumed = ", ".join(f"{row.resolution} px: {row.clusters_speedup_at_full_size:.1f} times" for row in results.rows)
    stage_cells = []
    for row in results.rows:
        sides = {"read-out": row.readout, "clusters": row.clusters, "straightforward": row.baseline}
        for name, side in sides.items():
            stages = ", ".join(
                f"{stage} {seconds * 1e3:.1f} ({seconds / side.labeled_seconds:.0%})"
                for stage, seconds in side.seconds_by_stage.items()
            )
            stage_cells.append((f"{row.resolution}", name, f"{side.batch_size}", stages))
    return "\n\n".join(
        (
            head,
            markdown_table(columns, cells, num_texts=2),
            f"{_ASSUMPTION} {assumed}.",
            "Milliseconds per labeled image, by stage:",
            markdown_table(("px", "side", "batch", "stages"), stage_cells, num_texts=4),
        )
    )


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    with Path("/proc/cpuinfo").open(encoding="ascii", errors="replace") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.processor()}"
