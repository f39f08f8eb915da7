"""`labelmill benchmark --masks`: how good masks are, by method and setting, beside controls.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.benchmark.masks import plots as masks_plots
from labelmill.pipeline.benchmark.masks.results import (
    MaskBenchmark,
    MasksRowResult,
    MasksSettings,
    confidence_curve,
    difference,
)
from labelmill.pipeline.benchmark.masks.rows import DEFAULT, default_of, is_label_free_mixing
from labelmill.pipeline.benchmark.masks.subjects import BATCH_SIZE, Judge, Truth
from labelmill.pipeline.benchmark.masks.sweep import FULL, QUICK, MasksExtent, MaskSweep, picture_path
from labelmill.pipeline.benchmark.masks.tables import best_on_dev, markdown, summary_rows
from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, open_oracle
from labelmill.pipeline.benchmark.record import Machine, network_sha256
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.sample import IGNORE

_LIBRARIES = ("labelmill", "torch", "numpy", "opencv-python-headless", "scipy")


def benchmark_masks(
    store: Store, checkpoint: str, device: torch.device, quick: bool, tell: Callable[[str], None]
) -> MaskBenchmark:
    """Measure what the store does not hold yet, and write masks.json, masks.md and pictures into it.

    tell: gets a line for each row that is measured. Raises CheckpointError, or LabelmillError for a generator whose
    images the oracles do not take.
    """
    loaded = open_judged(checkpoint, device)
    spec = loaded.generator.spec
    numerics = NumericsConfig(batch_size=BATCH_SIZE)
    torch.set_num_threads(numerics.threads)
    config = GeneratorConfig(checkpoint=checkpoint)
    oracle_b, oracle_a = (open_oracle(name, spec.resolution, device) for name in ("b", "a"))
    sha_b, sha_a = (network_sha256(oracle.network) for oracle in (oracle_b, oracle_a))
    circumstances = MasksSettings(
        checkpoint=loaded.info.name,
        checkpoint_sha256=loaded.sha256,
        resolution=spec.resolution,
        judges=f"oracle B ({sha_b[:12]}; oracle A is {sha_a[:12]})",
        truncation_psi=config.truncation_psi,
        **asdict(Machine.here(device, numerics.threads, _LIBRARIES)),
    )
    sampler = Sampler(loaded.generator, config, numerics, device)
    return run_sweep(store, sampler, judge_by(oracle_b, oracle_a), circumstances, QUICK if quick else FULL, tell)


def run_sweep(
    store: Store,
    sampler: Sampler,
    judge: Judge,
    circumstances: MasksSettings,
    extent: MasksExtent,
    tell: Callable[[str], None],
    only: Collection[str] | None = None,
) -> MaskBenchmark:
    """The sweep with any generator and judge, and everything written. only: names of rows; None for all."""
    rows = MaskSweep(store, sampler, judge, circumstances, extent, only).run(tell)
    by_name = {result.row.name: result for result in rows}
    compared = {name: (result, by_name[default_of(result.row.subject)]) for name, result in by_name.items()}
    default = by_name[DEFAULT]
    tuned = best_on_dev([result for result in rows if is_label_free_mixing(result.row)])
    shown = dict.fromkeys((default.row.name, tuned.row.name))
    benchmark = MaskBenchmark(
        quick=extent.quick,
        circumstances=circumstances,
        num_fit=default.row.labeler.fit_samples,
        num_dev=default.dev.scores.num_images,
        num_test=default.test.scores.num_images,
        default=default.row.name,
        tuned=tuned.row.name,
        confidence=tuple(confidence_curve(result) for result in rows if result.row.name in shown),
        against_default={name: difference(result.images, base.images) for name, (result, base) in compared.items()},
        rows=rows,
    )
    _write(store, benchmark)
    return benchmark


def judge_by(first: Oracle, second: Oracle) -> Judge:
    """The first oracle's word; where the second is of another opinion, none."""

    def judge(images_BCHW: Tensor) -> Truth:
        foreground_BHW, other_BHW = (oracle.segment(images_BCHW) != 0 for oracle in (first, second))
        agreed_BHW = foreground_BHW.byte().masked_fill(foreground_BHW != other_BHW, IGNORE)
        return Truth(foreground_BHW.byte(), agreed_BHW)

    return judge


def _write(store: Store, benchmark: MaskBenchmark) -> None:
    files = {
        "masks-settings.png": masks_plots.settings_plot(benchmark),
        "masks-controls.png": masks_plots.controls_plot(benchmark),
        "masks-cost.png": masks_plots.cost_plot(benchmark),
        "masks-confidence.png": masks_plots.confidence_plot(benchmark.confidence),
        "masks-examples.png": masks_plots.examples_plot(_strips(store, summary_rows(benchmark))),
        "masks.md": markdown(benchmark).encode(),
        "masks.json": benchmark.model_dump_json(indent=1, exclude={"rows": {"__all__": {"images"}}}).encode(),
    }
    for path, content in files.items():
        store.replace(path, content)


def _strips(store: Store, results: Sequence[MasksRowResult]) -> dict[str, NDArray[np.uint8]]:
    """Kept pictures, by their titles."""
    names = {"image": "generator-images", "oracle": "generator-truth"}
    names |= {result.row.title: result.row.name for result in results if result.row.kind != "all_background"}
    strips: dict[str, NDArray[np.uint8]] = {}
    for title, name in names.items():
        pixels = cv2.imdecode(np.frombuffer(store.read(picture_path(name)), np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels is not None
        strips[title] = np.asarray(pixels[:, :, ::-1] if pixels.ndim == 3 else pixels, np.uint8)
    return strips
