"""`labelmill benchmark --promise`: whether promises about kept masks hold, over many draws of annotated images.

Shape suffixes: N images of the pool.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, open_oracle
from labelmill.pipeline.benchmark.promise.results import PromiseBenchmark, PromiseRow, PromiseSettings
from labelmill.pipeline.benchmark.promise.tables import markdown
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.promise.calibrate import MaskJudge, image_miou
from labelmill.pipeline.promise.limit import JudgedMasks, choose_limit
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, LabelerConfig, NumericsConfig, QualityConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

_LIBRARIES = ("labelmill", "torch", "numpy")
_FIRST_SEED = 2_100_000_000
_DRAWS_SEED = 8


@dataclass(frozen=True)
class PromiseExtent:
    """How much is measured."""

    num_pool: int = 2048
    num_redraws: int = 200
    truncation_psis: tuple[float, ...] = (0.7, 1.0)
    promises: tuple[tuple[float, float], ...] = ((0.9, 0.05), (0.9, 0.1), (0.95, 0.1), (0.95, 0.2))
    """mIoU and risk."""
    nums_masks: tuple[int, ...] = (30, 100)
    labeler: StyleMixingConfig = field(default_factory=StyleMixingConfig)


FULL = PromiseExtent()
QUICK = PromiseExtent(num_pool=256, num_redraws=50, truncation_psis=(1.0,), promises=((0.95, 0.2),), nums_masks=(30,))


@dataclass(frozen=True)
class Pool:
    """Labeled images: what the quality rules see of them, and how good their masks are."""

    judged: JudgedMasks
    miou_N: NDArray[np.float64]

    def of(self, index_N: NDArray[np.int64]) -> JudgedMasks:
        return JudgedMasks(self.judged.confidence_N[index_N], self.judged.passes_N[index_N])


def benchmark_promise(
    store: Store, checkpoint: str, device: torch.device, extent: PromiseExtent, tell: Callable[[str], None]
) -> PromiseBenchmark:
    """Measure, and write promise.json and promise.md. Takes a minute or so, and begins anew when it was interrupted.

    tell: gets a line for each row. Raises CheckpointError, or LabelmillError for a generator that the oracles do not
    take.
    """
    loaded = open_judged(checkpoint, device)
    numerics = NumericsConfig()
    torch.set_num_threads(numerics.threads)
    oracle = open_oracle("b", loaded.generator.spec.resolution, device)
    rows: list[PromiseRow] = []
    for psi in extent.truncation_psis:
        config = GeneratorConfig(checkpoint=checkpoint, truncation_psi=psi)
        sampler = Sampler(loaded.generator, config, numerics, device)
        pool = labeled_pool(sampler, fitted(extent.labeler, sampler), oracle, extent.num_pool)
        for row in redraw(pool, psi, extent):
            tell(f"psi {psi:g}, mIoU {row.miou:g}, risk {row.risk:g}, {row.num_masks} masks: {row.risk_found:.3f}")
            rows.append(row)
    settings = PromiseSettings(
        checkpoint=loaded.info.name,
        checkpoint_sha256=loaded.sha256,
        resolution=loaded.generator.spec.resolution,
        labeler=extent.labeler.method,
        judge="oracle B",
        num_pool=extent.num_pool,
        num_redraws=extent.num_redraws,
        versions={name: version(name) for name in _LIBRARIES},
    )
    benchmark = PromiseBenchmark(settings=settings, rows=tuple(rows))
    store.replace("promise.json", benchmark.model_dump_json(indent=1).encode())
    store.replace("promise.md", markdown(benchmark).encode())
    return benchmark


def fitted(config: LabelerConfig, sampler: Sampler) -> Labeler:
    """The labeler, fitted now."""
    return open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler


def labeled_pool(sampler: Sampler, labeler: Labeler, oracle: Oracle, count: int) -> Pool:
    """Images of seeds that nothing else uses, foreground against background, with the oracle's word as truth."""
    judge, mious = MaskJudge(labeler.classes, QualityConfig()), list[float]()
    for batch in sampler.batches(range(_FIRST_SEED, _FIRST_SEED + count), labeler.layers):
        truths_BHW = (oracle.segment(batch.images_BCHW) != 0).byte().cpu().numpy()
        for mask_HW, truth_HW in zip(judge.add(batch, labeler), truths_BHW, strict=True):
            mious.append(image_miou(mask_HW, truth_HW, labeler.classes))
    return Pool(judge.judged(), np.array(mious))


def redraw(pool: Pool, psi: float, extent: PromiseExtent) -> Iterator[PromiseRow]:
    """Every promise with every number of annotated images."""
    for miou, risk in extent.promises:
        for num_masks in extent.nums_masks:
            yield _row(pool, psi, miou, risk, num_masks, extent.num_redraws)


def _row(pool: Pool, psi: float, miou: float, risk: float, num_masks: int, num_redraws: int) -> PromiseRow:
    below_N, lowest = pool.miou_N < miou, QualityConfig().confidence_min
    random = np.random.default_rng([_DRAWS_SEED, num_masks])
    found: list[tuple[float, float]] = []
    for _ in range(num_redraws):
        order_N = random.permutation(len(below_N))
        annotated_N, others_N = order_N[:num_masks], order_N[num_masks:]
        others = pool.of(others_N)
        limit = choose_limit(pool.of(annotated_N), below_N[annotated_N], others, lowest, risk)
        if limit is not None:
            found.append(_shares(others, below_N[others_N], lowest, limit.confidence_min))
    risks = [share for share, _ in found]
    return PromiseRow(
        truncation_psi=psi,
        miou=miou,
        risk=risk,
        num_masks=num_masks,
        below=float(below_N[pool.judged.kept(lowest)].mean()),
        num_refused=num_redraws - len(found),
        risk_found=sum(risks) / num_redraws,
        risk_of_kept=_mean(risks),
        highest=float(np.quantile(risks, 0.9)) if risks else 0.0,
        kept=_mean([kept for _, kept in found]),
    )


def _shares(others: JudgedMasks, below_N: NDArray[np.bool_], lowest: float, limit: float) -> tuple[float, float]:
    """Of what a limit keeps, the share that is below; and the share that it keeps of what the lowest would."""
    kept_N = others.kept(limit)
    share = float(below_N[kept_N].mean()) if kept_N.any() else 0.0
    return share, float(kept_N.sum() / others.kept(lowest).sum())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
