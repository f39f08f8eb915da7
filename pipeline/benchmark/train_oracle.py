"""`python -m pipeline.benchmark.train_oracle --oracle a --out FOLDER`: train a judge, resumably, on a CPU.

Every random number of step t comes from (seed, t), so a training that was killed and resumed takes the same steps as
one that was not. Leaves `state/`, `log.jsonl` and, after every checkpoint, `oracle-a.safetensors` in the folder.

Shape suffixes: B batch, H, W height and width, N classes.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.benchmark.avatars import CLASSES
from pipeline.benchmark.oracle import Oracle, OracleInfo, OracleName, build_network, save_oracle
from pipeline.benchmark.oracle_augmentation import training_batch
from pipeline.benchmark.oracle_data import TRAINING_SEEDS, VALIDATION_SEEDS, Renders, load_renders
from pipeline.benchmark.oracle_images import as_images
from pipeline.generator.train import StopSignals
from pipeline.generator.training_log import TrainingLog
from pipeline.generator.training_state import TrainingStateError, latest_state, read_progress, read_tensors, write_state
from pipeline.segmentation.metrics import MaskEvaluator
from schemas.errors import LabelmillError
from schemas.scores import Scores

ARCHITECTURE_OF = {"a": "u-net", "b": "dilated"}
EXIT_INTERRUPTED = 75
LICENCE = "Apache-2.0"
ATTRIBUTION = "trained on avataaars by Pablo Stanley, free for personal and commercial use, drawn with DiceBear (MIT)"


@dataclass(frozen=True)
class OracleTraining:
    """One training. All but the last two fields must stay when it is resumed."""

    oracle: OracleName
    """Which oracle: its architecture and its seeds."""
    steps: int = 2000
    """Batches to learn from."""
    batch_size: int = 64
    """Renders a batch."""
    peak_rate: float = 3e-3
    """AdamW's rate after the warm-up; from there it falls to 0 along a half cosine."""
    warm_up_steps: int = 150
    """Steps over which the rate rises from 0."""
    weight_decay: float = 1e-3
    """AdamW's decoupled decay."""
    precision: str = "bfloat16"
    """Arithmetic of convolutions: float32, or bfloat16, which is three times faster on CPUs with matrix units."""
    seed: int = 0
    """Of initial weights, order and augmentation."""
    threads: int = 1
    """Threads of PyTorch."""
    checkpoint_interval_seconds: float = 60.0
    """Seconds between saved states."""


FREE_FIELDS = ("threads", "checkpoint_interval_seconds")


class OracleTrainer:
    """Network, optimiser and counter of one training, resumed from `folder` if it holds a state."""

    def __init__(self, config: OracleTraining, folder: Path, renders: Renders, validation: Renders) -> None:
        self.config, self.folder, self.renders, self.validation = config, folder, renders, validation
        self.architecture = ARCHITECTURE_OF[config.oracle]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = build_network(OracleInfo(self.architecture, CLASSES, {}))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(self.network.parameters(), weight_decay=config.weight_decay, foreach=True)
        self.num_steps, self.seconds = 0, 0.0
        self.log = TrainingLog(folder / "log.jsonl", interval=50)
        self._restore()

    def step(self) -> None:
        """Learn from one batch."""
        started, config = time.monotonic(), self.config
        random = np.random.default_rng([config.seed, self.num_steps])
        indices = random.integers(len(self.renders), size=config.batch_size)
        images_BCHW, masks_BHW = training_batch(self.renders, indices, random)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            sight = self.network(images_BCHW.contiguous(memory_format=torch.channels_last))
        loss = segmentation_loss(sight.logits_BNHW.float(), masks_BHW)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.num_steps += 1
        self.seconds += time.monotonic() - started
        self.log.add("loss", loss)
        self.log.step(self.num_steps, self.num_steps * config.batch_size, self.seconds)

    def rate(self) -> float:
        """The optimiser's rate at the coming step."""
        step, config = self.num_steps, self.config
        if step < config.warm_up_steps:
            return config.peak_rate * (step + 1) / config.warm_up_steps
        share = (step - config.warm_up_steps) / max(1, config.steps - config.warm_up_steps)
        return config.peak_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, share))))

    def save(self) -> None:
        """Publish the state of this step and the oracle as it is."""
        weights = self.folder / f"oracle-{self.config.oracle}.safetensors"
        save_oracle(weights, self.network, self._info(self._provenance()))
        moments = {}
        for name, parameter in self.network.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                moments[f"{name}/{key}"] = self.optimiser.state[parameter][key]
        progress = {
            "config": _fixed(self.config),
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "log_sums": self.log.sums(),
        }
        groups = {"network": self.network.state_dict(), "moments": moments}
        write_state(self.folder / "state", self.num_steps, groups, progress)

    def _restore(self) -> None:
        state = latest_state(self.folder / "state")
        if state is None:
            self.log.truncate(0, {})
            return
        progress, asked = read_progress(state), _fixed(self.config)
        saved = progress["config"]
        assert isinstance(saved, dict)
        differing = [
            f"{key} was {saved.get(key)!r}, now {asked[key]!r}" for key in asked if saved.get(key) != asked[key]
        ]
        if differing:
            raise TrainingStateError(
                f"{state}: trained with other settings: {'; '.join(differing)}; choose another --out"
            )
        self.network.load_state_dict(read_tensors(state, "network"))
        moments = read_tensors(state, "moments")
        numbers = {key: value for key, value in progress.items() if isinstance(value, int | float)}
        self.num_steps, self.seconds = int(numbers["num_steps"]), float(numbers["seconds"])
        for name, parameter in self.network.named_parameters():
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(self.num_steps)),
                "exp_avg": torch.empty_like(parameter).copy_(moments[f"{name}/exp_avg"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(moments[f"{name}/exp_avg_sq"]),
            }
        self.log.truncate(self.num_steps, progress["log_sums"])

    def _info(self, provenance: dict[str, str]) -> OracleInfo:
        return OracleInfo(self.architecture, CLASSES, provenance)

    def _provenance(self) -> dict[str, str]:
        oracle = Oracle(build_network(self._info({})), self._info({}))
        oracle.network.load_state_dict(self.network.state_dict())
        scores = score(oracle, self.validation)
        seeds = TRAINING_SEEDS[self.config.oracle]
        return {
            "data": f"exact renders of avatars, seeds {seeds.start:,} to {seeds.stop - 1:,}, augmented",
            "steps": f"{self.num_steps:,} of {self.config.steps:,}, {self.config.batch_size} renders each",
            "training": f"{self.seconds / 60:.1f} minutes, {self.config.precision}, {self.config.threads} thread",
            "validation": (
                f"{len(self.validation):,} exact renders from seed {VALIDATION_SEEDS.start:,}: "
                f"mIoU {scores.miou:.4f} over {len(CLASSES)} classes"
            ),
            "licence": LICENCE,
            "attribution": ATTRIBUTION,
        }


def segmentation_loss(logits_BNHW: Tensor, masks_BHW: Tensor) -> Tensor:
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


def score(oracle: Oracle, renders: Renders) -> Scores:
    """The oracle's masks of exact renders against their true masks."""
    evaluator = MaskEvaluator(CLASSES)
    guesses_NHW = oracle.segment(as_images(renders.images_NHWC)).numpy()
    for guess_HW, truth_HW in zip(guesses_NHW, renders.masks_NHW, strict=True):
        evaluator.add(guess_HW, np.asarray(truth_HW))
    return evaluator.scores()


def train_oracle(config: OracleTraining, folder: Path, cache: Path) -> bool:
    """Train or resume until the last step, SIGTERM or SIGINT; whether it is finished."""
    torch.set_num_threads(config.threads)
    trainer = OracleTrainer(
        config,
        folder,
        load_renders(TRAINING_SEEDS[config.oracle], cache, config.threads),
        load_renders(VALIDATION_SEEDS, cache, config.threads),
    )
    next_save = time.monotonic() + config.checkpoint_interval_seconds
    with StopSignals() as stop:
        while trainer.num_steps < config.steps and stop.requested is None:
            trainer.step()
            if time.monotonic() > next_save:
                trainer.save()
                next_save = time.monotonic() + config.checkpoint_interval_seconds
        if trainer.num_steps > 0:  # a signal may come before the first step
            trainer.save()
    return trainer.num_steps >= config.steps


def _fixed(config: OracleTraining) -> dict[str, object]:
    return {key: value for key, value in asdict(config).items() if key not in FREE_FIELDS}


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.benchmark.train_oracle", description=main.__doc__)
    parser.add_argument("--oracle", choices=get_args(OracleName), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of state, log and weights")
    parser.add_argument("--cache", type=Path, help="folder of renders; the default is OUT/cache")
    for field in fields(OracleTraining):
        if field.name != "oracle":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args(arguments))
    out, cache = given.pop("out"), given.pop("cache")
    try:
        finished = train_oracle(OracleTraining(**given), out, cache or out / "cache")
    except LabelmillError as error:
        print(f"train_oracle: {error}", file=sys.stderr)
        return error.exit_code
    if not finished:
        print("train_oracle: interrupted; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
