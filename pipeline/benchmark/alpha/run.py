"""`labelmill benchmark --alpha`: mattes of the alpha network by training seed, over its steps, and spoilt on purpose.

Each fit is a file; run again, the benchmark resumes from those that are there.

Shape suffixes: B batch, C channels, H height, W width.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from labelmill.pipeline.benchmark.alpha.results import AlphaBenchmark, AlphaResult, CurvePoint, markdown
from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, open_oracle
from labelmill.pipeline.benchmark.record import Machine, network_sha256, read_row, row_key, write_row
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.alpha_network.fit import CollapseError, fit_alpha_network
from labelmill.pipeline.labelers.alpha_network.fitted import FittedAlphaNetwork
from labelmill.pipeline.labelers.alpha_network.labeler import AlphaNetworkLabeler, default_radius
from labelmill.pipeline.labelers.alpha_network.network import AlphaNetwork
from labelmill.pipeline.labelers.common.decision import decide
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig
from labelmill.schemas.scores import Scores

_FIRST_DEV_SEED, _FIRST_TEST_SEED = 1_000_000_000, 2_000_000_000
_LIBRARIES = ("labelmill", "torch", "numpy")
_PSIS = (0.7, 1.0)
_OLD_BACKGROUND = {"background": "zero", "background_layer": "b4.conv1"}
_SPOILT: dict[str, dict[str, object]] = {
    "no coverage term": {"coverage_weight": 0},
    "adversarial weight .1, binarised from the start": {
        "adversarial_weight": 0.1, "binarisation_start": 0, "binarisation_end": 0,
    },
    "fast discriminator, flat background": {"discriminator_learning_rate": 4e-3, "r1_gamma": 1, **_OLD_BACKGROUND},
}  # fmt: skip


@dataclass(frozen=True)
class AlphaExtent:
    """How much is measured."""

    seeds: tuple[int, ...] = (0, 1, 2)
    num_test: int = 256
    num_dev: int = 64
    settings: dict[str, object] = field(default_factory=dict)
    """Other than the defaults, of every fit."""
    spoilt: bool = True


FULL = AlphaExtent()
QUICK = AlphaExtent(seeds=(0,), num_test=64, spoilt=False)


def benchmark_alpha(
    store: Store, checkpoint: str, device: torch.device, extent: AlphaExtent, tell: Callable[[str], None]
) -> AlphaBenchmark:
    """Measure what the store does not hold yet, and write alpha.json and alpha.md into it.

    tell: gets a line for each fit. Raises CheckpointError, or LabelmillError for a generator whose images the oracles
    do not take.
    """
    loaded = open_judged(checkpoint, device)
    numerics = NumericsConfig(threads=1)
    torch.set_num_threads(numerics.threads)
    samplers = {
        psi: Sampler(loaded.generator, GeneratorConfig(checkpoint=checkpoint, truncation_psi=psi), numerics, device)
        for psi in _PSIS
    }
    machine = Machine.here(device, numerics.threads, _LIBRARIES)
    judge = open_oracle("b", loaded.generator.spec.resolution, device)
    bench = AlphaBench(store, samplers, judge, extent, machine)
    fits: dict[str, dict[str, object]] = {f"seed {seed}": {"seed": seed} for seed in extent.seeds}
    if extent.spoilt:
        fits |= {name: {"restarts": 0, **settings} for name, settings in _SPOILT.items()}
    benchmark = AlphaBenchmark(
        checkpoint=loaded.info.name,
        checkpoint_sha256=loaded.sha256,
        device=machine.device,
        threads=machine.threads,
        num_test=extent.num_test,
        num_dev=extent.num_dev,
        results=tuple(bench.result(name, settings, tell) for name, settings in fits.items()),
    )
    store.replace("alpha.json", benchmark.model_dump_json(indent=1).encode())
    store.replace("alpha.md", markdown(benchmark).encode())
    return benchmark


class AlphaBench:
    """Fits one after the other."""

    def __init__(
        self, store: Store, samplers: dict[float, Sampler], judge: Oracle, extent: AlphaExtent, machine: Machine
    ) -> None:
        self._store, self._samplers, self._judge, self._extent = store, samplers, judge, extent
        self._machine = machine

    def result(self, name: str, settings: dict[str, object], tell: Callable[[str], None]) -> AlphaResult:
        """Of a fit, measured where it is missing."""
        values = {"method": "alpha_network", **self._extent.settings, **settings}
        config = AlphaNetworkConfig.model_validate(values)
        key = row_key(
            (AlphaBench,),
            self._samplers[1.0],
            judge=network_sha256(self._judge.network),
            num_images=[self._extent.num_test, self._extent.num_dev],
            config=config.model_dump(mode="json"),
            machine=asdict(self._machine),
        )
        path = f"alpha/{name.replace(' ', '-').replace(',', '')}.json"
        result = read_row(self._store, path, AlphaResult, key=key)
        if result is None:
            result = self._measured(name, config, key)
            write_row(self._store, path, result)
            mious = ", ".join(f"{100 * (scores.miou or 0):.1f} at psi {psi}" for psi, scores in result.scores.items())
            tell(f"{name}: mIoU {mious or 'none'}; {result.attempts[-1].words or 'no collapse'}")
        return result

    def _measured(self, name: str, config: AlphaNetworkConfig, key: str) -> AlphaResult:
        curve: list[CurvePoint] = []
        aside = 0.0

        def on_look(step: int, network: AlphaNetwork) -> None:
            nonlocal aside
            started = time.process_time()
            if curve and step <= curve[-1].step:  # another training begins
                curve.clear()
            curve.append(CurvePoint(step=step, miou=round(self._dev_miou(network), 4)))
            aside += time.process_time() - started

        started, step, scores = time.process_time(), None, {}
        try:
            with TemporaryDirectory(prefix="labelmill-alpha-") as work:
                fitted = fit_alpha_network(config, self._samplers[0.7], Path(work), on_look=on_look)
            seconds = time.process_time() - started - aside
            attempts, step = fitted.provenance.attempts, fitted.provenance.step
            scores = {f"{psi:g}": self._test_scores(config, sampler, fitted) for psi, sampler in self._samplers.items()}
        except CollapseError as error:
            seconds, attempts = time.process_time() - started - aside, error.attempts
        return AlphaResult(
            key=key,
            name=name,
            config=config,
            fit_seconds=round(seconds, 1),
            attempts=attempts,
            step=step,
            curve=tuple(curve),
            scores=scores,
        )

    @torch.no_grad()
    def _dev_miou(self, network: AlphaNetwork) -> float:
        sampler, evaluator = self._samplers[1.0], MaskEvaluator(AlphaNetworkLabeler.classes)
        radius = default_radius(sampler.generator.spec.image_size)
        for batch in sampler.batches(range(_FIRST_DEV_SEED, _FIRST_DEV_SEED + self._extent.num_dev), network.layers):
            alphas_BHW = torch.sigmoid(network(batch.features))
            decision = decide(alphas_BHW[:, None], batch.images_BCHW, radius)
            self._count(evaluator, decision.masks_BHW, batch.images_BCHW)
        return evaluator.scores().miou or 0.0

    def _test_scores(self, config: AlphaNetworkConfig, sampler: Sampler, fitted: FittedAlphaNetwork) -> Scores:
        labeler, evaluator = AlphaNetworkLabeler(config, sampler, fitted), MaskEvaluator(AlphaNetworkLabeler.classes)
        for batch in sampler.batches(range(_FIRST_TEST_SEED, _FIRST_TEST_SEED + self._extent.num_test), labeler.layers):
            self._count(evaluator, labeler.label(batch).masks_BHW, batch.images_BCHW)
        return evaluator.scores()

    def _count(self, evaluator: MaskEvaluator, masks_BHW: Tensor, images_BCHW: Tensor) -> None:
        truth_BHW = (self._judge.segment(images_BCHW) != 0).byte().cpu().numpy()
        for mask_HW, truth_HW in zip(masks_BHW.cpu().numpy(), truth_BHW, strict=True):
            evaluator.add(mask_HW, truth_HW)
