"""Trains a judge: `python -m labelmill.pipeline.benchmark.oracle.train --oracle a --resolution 64 --out FOLDER`.

It resumes what the folder holds, and leaves `state/`, `log.jsonl` and, after every checkpoint,
`oracle-a-64.safetensors` there.

Shape suffixes: B batch, H, W height and width, N classes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.augmentation import training_batch
from labelmill.pipeline.avatars.avatars import CLASSES
from labelmill.pipeline.avatars.renders import RESOLUTION, TRAINING_SEEDS, VALIDATION_SEEDS, Renders, load_renders
from labelmill.pipeline.benchmark.oracle.images import as_images
from labelmill.pipeline.benchmark.oracle.networks import DilatedNet, UNet
from labelmill.pipeline.benchmark.oracle.oracle import (
    Oracle,
    OracleInfo,
    OracleName,
    build_network,
    oracle_file,
    save_oracle,
)
from labelmill.pipeline.benchmark.training_loop import AdamWTrainer, AdamWTraining
from labelmill.pipeline.process.interruption import Interrupted, interrupted_words
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.training.state import locked
from labelmill.schemas.errors import EXIT_RESUMABLE, LabelmillError
from labelmill.schemas.scores import Scores

ARCHITECTURE_OF = {"a": "u-net", "b": "dilated"}


@dataclass(frozen=True, kw_only=True)
class OracleTraining(AdamWTraining):
    """One training."""

    oracle: OracleName
    """Which oracle: its architecture and its seeds."""
    resolution: int = RESOLUTION
    """Height and width of the images that it will judge: 32 px or a power of two above it."""
    steps: int = 2000
    batch_size: int = 64
    peak_rate: float = 3e-3
    warm_up_steps: int = 150
    checkpoint_interval_seconds: float = 60.0


class OracleTrainer(AdamWTrainer[OracleTraining, UNet | DilatedNet]):
    """Leaves the oracle's weights after every checkpoint."""

    def __init__(self, config: OracleTraining, folder: Path, renders: Renders, validation: Renders) -> None:
        self.renders, self.validation = renders, validation
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = build_network(info_of(config, {}))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(config, folder, network)

    def losses(self, random: np.random.Generator) -> dict[str, Tensor]:
        """Of some renders, augmented."""
        indices = random.integers(len(self.renders), size=self.config.batch_size)
        images_BCHW, masks_BHW = training_batch(self.renders, indices, random)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            sight = self.network(images_BCHW.contiguous(memory_format=torch.channels_last))
        return {"loss": oracle_loss(sight.logits_BNHW.float(), masks_BHW)}

    def publish(self) -> None:
        """Save the oracle with what it scores on the validation's renders."""
        oracle = Oracle(build_network(self._info({})), self._info({}))
        oracle.network.load_state_dict(self.network.state_dict())
        scores = score_oracle(oracle, self.validation)
        seeds = TRAINING_SEEDS[self.config.oracle]
        provenance = {
            "data": f"exact renders of avatars, seeds {seeds.start:,} to {seeds.stop - 1:,}, augmented",
            "validation": (
                f"{len(self.validation):,} exact renders from seed {VALIDATION_SEEDS.start:,}: "
                f"mIoU {scores.miou:.4f} over {len(CLASSES)} classes"
            ),
            **self.provenance(),
        }
        file = self.folder / oracle_file(self.config.oracle, self.config.resolution)
        save_oracle(file, self.network, self._info(provenance))

    def _info(self, provenance: dict[str, str]) -> OracleInfo:
        return info_of(self.config, provenance)


def info_of(config: OracleTraining, provenance: dict[str, str]) -> OracleInfo:
    """What the oracle of a training is."""
    return OracleInfo(ARCHITECTURE_OF[config.oracle], CLASSES, config.resolution, provenance)


def oracle_loss(logits_BNHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """Cross entropy plus 1 - IoU of soft masks over the batch, averaged over the classes that occur in it.

    Cross entropy alone gives away classes of few pixels, such as brows; the soft IoU is what is judged.
    """
    probabilities_BNHW = functional.softmax(logits_BNHW, dim=1)
    truth_BNHW = functional.one_hot(masks_BHW, logits_BNHW.shape[1]).permute(0, 3, 1, 2)
    both_N = (probabilities_BNHW * truth_BNHW).sum(dim=(0, 2, 3))
    either_N = (probabilities_BNHW + truth_BNHW).sum(dim=(0, 2, 3)) - both_N
    occurs_N = truth_BNHW.sum(dim=(0, 2, 3)) > 0
    iou_N = both_N / either_N
    return functional.cross_entropy(logits_BNHW, masks_BHW) + (1 - iou_N[occurs_N]).mean()


def score_oracle(oracle: Oracle, renders: Renders) -> Scores:
    """The oracle's masks of exact renders against their true masks."""
    evaluator = MaskEvaluator(CLASSES)
    guesses_NHW = oracle.segment(as_images(renders.images_NHWC)).numpy()
    for guess_HW, truth_HW in zip(guesses_NHW, renders.masks_NHW, strict=True):
        evaluator.add(guess_HW, np.asarray(truth_HW))
    return evaluator.scores()


def train_oracle(config: OracleTraining, folder: Path, cache: Path) -> None:
    """Train or resume until the last step, or until a signal. Raises Interrupted then: the same call goes on."""
    if config.resolution < RESOLUTION or config.resolution & (config.resolution - 1):
        raise LabelmillError(f"--resolution: {RESOLUTION} or a power of two above it, got {config.resolution}")
    torch.set_num_threads(config.threads)
    renders, validation = (
        load_renders(seeds, cache, config.threads, resolution=config.resolution)
        for seeds in (TRAINING_SEEDS[config.oracle], VALIDATION_SEEDS)
    )
    with locked(folder):
        OracleTrainer(config, folder, renders, validation).run()


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m labelmill.pipeline.benchmark.oracle.train", description=main.__doc__
    )
    parser.add_argument("--oracle", choices=get_args(OracleName), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of state, log and weights")
    parser.add_argument("--cache", type=Path, help="folder of renders; the default is OUT/cache")
    for field in fields(OracleTraining):
        if field.name != "oracle":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args(arguments))
    out, cache = given.pop("out"), given.pop("cache")
    try:
        train_oracle(OracleTraining(**given), out, cache or out / "cache")
    except LabelmillError as error:
        print(f"train_oracle: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as error:
        print(f"train_oracle: {interrupted_words(str(error))}", file=sys.stderr)
        return EXIT_RESUMABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
