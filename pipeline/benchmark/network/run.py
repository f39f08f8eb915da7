"""`labelmill benchmark --network`: a supervised network as labeler, and how its disagreement ranks others' masks.

The network goes the way of a user's: trained, exported to ONNX, and read back by `method: network`.

Shape suffixes: B batch, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from labelmill.pipeline.benchmark.downstream.data import FOREGROUND, TRAINING_SEEDS, drawn_pairs
from labelmill.pipeline.benchmark.downstream.run import QUICK as NETWORK
from labelmill.pipeline.benchmark.downstream.training import Regime, card_of, train_on
from labelmill.pipeline.benchmark.network.results import NetworkBenchmark, markdown
from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, open_oracle
from labelmill.pipeline.benchmark.record import Machine
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.segmentation.onnx_export import export_onnx
from labelmill.schemas.config import GeneratorConfig, LabelerConfig, NumericsConfig
from labelmill.schemas.labelers.network import NetworkLabelerConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.scores import Scores

Mask = NDArray[np.uint8]

ONNX_FILE = "network.onnx"
_FIRST_TEST_SEED = 2_000_000_000
_PSIS = (0.7, 1.0)
_LIBRARIES = ("labelmill", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class NetworkExtent:
    """How much is measured."""

    num_masks: int = 1000
    steps: int = NETWORK.steps
    num_test: int = 256


FULL = NetworkExtent()
QUICK = NetworkExtent(num_masks=100, num_test=64)


@dataclass(frozen=True)
class _Judged:
    """A labeler's masks of the test images at one psi."""

    masks: list[Mask]
    confidences: list[float]
    scores: Scores


def benchmark_network(
    out: Path, checkpoint: str, device: torch.device, extent: NetworkExtent, tell: Callable[[str], None]
) -> NetworkBenchmark:
    """Train, export, label and compare; write network.onnx, network.json and network.md into `out`.

    tell: gets a line for each step. Raises CheckpointError, ConfigError without the extras `train` and `onnx`,
    ImportError without `benchmark`, or LabelmillError for a generator whose images the oracles do not take.
    """
    loaded, numerics = open_judged(checkpoint, device), NumericsConfig()
    torch.set_num_threads(numerics.threads)
    resolution = loaded.generator.spec.resolution
    regime = Regime(NETWORK.model, extent.steps, NETWORK.batch_size).for_images_of(resolution)
    seconds = _train(out / ONNX_FILE, regime, resolution, extent, device)
    tell(f"trained on {extent.num_masks:,} exact masks in {seconds:.0f} s")
    judge, machine = open_oracle("b", resolution, device), Machine.here(device, numerics.threads, _LIBRARIES)
    of_network, of_style_mixing = dict[str, Scores](), dict[str, Scores]()
    ranks = dict[str, dict[str, float]]()
    for psi in _PSIS:
        config = GeneratorConfig(checkpoint=checkpoint, truncation_psi=psi)
        sampler = Sampler(loaded.generator, config, numerics, device)
        truths = _truths(sampler, judge, extent.num_test)
        network = NetworkLabelerConfig(method="network", model=str(out / ONNX_FILE))
        theirs = _judged(sampler, _labeler(network, sampler), truths)
        ours = _judged(sampler, _labeler(StyleMixingConfig(), sampler), truths)
        of_network[f"{psi:g}"], of_style_mixing[f"{psi:g}"] = theirs.scores, ours.scores
        ranks[f"{psi:g}"] = _ranks(ours, theirs, truths)
        tell(
            f"psi {psi:g}: mIoU {100 * (theirs.scores.miou or 0):.1f}; style mixing {100 * (ours.scores.miou or 0):.1f}"
        )
    benchmark = NetworkBenchmark(
        checkpoint=loaded.info.name,
        checkpoint_sha256=loaded.sha256,
        resolution=resolution,
        device=machine.device,
        threads=machine.threads,
        architecture=regime.model.architecture,
        num_masks=extent.num_masks,
        steps=extent.steps,
        num_test=extent.num_test,
        training_seconds=round(seconds, 1),
        of_network=of_network,
        of_style_mixing=of_style_mixing,
        rank_correlation=ranks,
    )
    write_atomically(out / "network.json", benchmark.model_dump_json(indent=1).encode())
    write_atomically(out / "network.md", markdown(benchmark).encode())
    return benchmark


def _train(path: Path, regime: Regime, resolution: int, extent: NetworkExtent, device: torch.device) -> float:
    """Write a network that learned from exact masks; the seconds that its training took."""
    pairs = drawn_pairs(TRAINING_SEEDS[: extent.num_masks], resolution).foreground()
    segmenter, seconds = train_on(pairs, regime, 0, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(segmenter.cpu(), card_of(pairs, regime, resolution), path)
    return seconds


def _labeler(config: LabelerConfig, sampler: Sampler) -> Labeler:
    return open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler


def _seeds(count: int) -> range:
    return range(_FIRST_TEST_SEED, _FIRST_TEST_SEED + count)


def _truths(sampler: Sampler, judge: Oracle, count: int) -> list[Mask]:
    truths: list[Mask] = []
    for batch in sampler.batches(_seeds(count)):
        truths += [*(judge.segment(batch.images_BCHW) != 0).byte().cpu().numpy()]
    return truths


def _judged(sampler: Sampler, labeler: Labeler, truths: list[Mask]) -> _Judged:
    masks, confidences = list[Mask](), list[float]()
    for batch in sampler.batches(_seeds(len(truths)), labeler.layers):
        labels = labeler.label(batch)
        masks += [*labels.masks_BHW.cpu().numpy()]
        confidences += labels.confidence_B.tolist()
    return _Judged(masks, confidences, _scores(masks, truths))


def _ranks(ours: _Judged, theirs: _Judged, truths: list[Mask]) -> dict[str, float]:
    """Spearman's with the own mIoU of each mask of `ours`, by score."""
    own = _each(ours.masks, truths)
    agreement = _each(ours.masks, theirs.masks)
    both = np.multiply(agreement, ours.confidences)
    values = {"agreement with the network": agreement, "confidence": ours.confidences, "their product": both}
    return {name: round(float(spearmanr(value, own).statistic), 4) for name, value in values.items()}


def _each(masks: list[Mask], truths: list[Mask]) -> list[float]:
    return [_scores([mask_HW], [truth_HW]).miou or 0.0 for mask_HW, truth_HW in zip(masks, truths, strict=True)]


def _scores(masks: list[Mask], truths: list[Mask]) -> Scores:
    evaluator = MaskEvaluator(FOREGROUND)
    for mask_HW, truth_HW in zip(masks, truths, strict=True):
        evaluator.add(mask_HW, truth_HW)
    return evaluator.scores()
