"""What trainings on drawn avatars share: AdamW on a CPU, killed and resumed at any moment; rate, state, log, signals.

Every random number of step t comes from (seed, t), so a training that was killed and resumed takes the same steps as
one that was not.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from labelmill.pipeline.training.log import TrainingLog
from labelmill.pipeline.training.resume import refuse_changes
from labelmill.pipeline.training.state import (
    latest_state,
    read_progress,
    read_tensors,
    write_state,
)
from labelmill.pipeline.training.stop import stop_on_signals

_FREE_FIELDS = ("threads", "checkpoint_interval_seconds")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class AdamWTraining:
    """One training. All but the last two fields must stay when it is resumed."""

    steps: int
    """Batches to learn from."""
    batch_size: int
    """Images a batch."""
    peak_rate: float
    """AdamW's rate after the warm-up; from there it falls to 0 along a half cosine."""
    warm_up_steps: int
    """Steps over which the rate rises from 0."""
    weight_decay: float = 1e-3
    """AdamW's decoupled decay."""
    precision: str = "bfloat16"
    """Arithmetic of the networks: float32, or bfloat16, which is three times faster on CPUs with matrix units."""
    seed: int = 0
    """Of initial weights, order and augmentation."""
    threads: int = 1
    """Threads of PyTorch."""
    checkpoint_interval_seconds: float
    """Seconds between saved states."""

    def fixed(self) -> dict[str, object]:
        """The fields that must stay."""
        return {key: value for key, value in asdict(self).items() if key not in _FREE_FIELDS}


Config = TypeVar("Config", bound=AdamWTraining)
Network = TypeVar("Network", bound=nn.Module)


class AdamWTrainer(ABC, Generic[Config, Network]):
    """Network, optimiser and counter of one training, resumed from `folder` if it holds a state.

    Leaves `state/` and `log.jsonl` there, and what `publish` does. Raises TrainingStateError where the state is of
    other settings.
    """

    def __init__(self, config: Config, folder: Path, network: Network) -> None:
        self.config, self.folder, self.network = config, folder, network
        self.optimiser = torch.optim.AdamW(network.parameters(), weight_decay=config.weight_decay, foreach=True)
        self.num_steps, self.seconds = 0, 0.0
        self.log = TrainingLog(folder / "log.jsonl", interval=50)
        self._restore()

    @abstractmethod
    def losses(self, random: np.random.Generator) -> Mapping[str, Tensor]:
        """Of the coming step's batch, by name; their sum is what is minimised."""

    @abstractmethod
    def publish(self) -> None:
        """Save the network as it is for those who use it."""

    def step(self) -> None:
        """Learn from one batch."""
        started, config = time.monotonic(), self.config
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.network.train()
        losses = self.losses(np.random.default_rng([config.seed, self.num_steps]))
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.num_steps += 1
        self.seconds += time.monotonic() - started
        for name, loss in losses.items():
            self.log.add(name, loss)
        self.log.step(self.num_steps, self.num_steps * config.batch_size, self.seconds)

    def rate(self) -> float:
        """The optimiser's rate at the coming step."""
        step, config = self.num_steps, self.config
        if step < config.warm_up_steps:
            return config.peak_rate * (step + 1) / config.warm_up_steps
        share = (step - config.warm_up_steps) / max(1, config.steps - config.warm_up_steps)
        return config.peak_rate * 0.5 * (1 + float(np.cos(np.pi * min(1.0, share))))

    def run(self) -> None:
        """Train until the last step, or until a signal. Raises Interrupted then: made anew, the trainer goes on."""
        next_save = time.monotonic() + self.config.checkpoint_interval_seconds
        with stop_on_signals() as stop:
            while self.num_steps < self.config.steps and not stop.is_due:
                self.step()
                if time.monotonic() > next_save:
                    self.save()
                    next_save = time.monotonic() + self.config.checkpoint_interval_seconds
            if self.num_steps > 0:  # a signal may come before the first step
                self.save()
            stop.is_finished = self.num_steps >= self.config.steps

    def save(self) -> None:
        """Publish the network and the state of this step."""
        self.publish()
        moments = {
            f"{name}/{key}": self.optimiser.state[parameter][key]
            for name, parameter in self.network.named_parameters()
            for key in _MOMENTS
        }
        progress = {
            "config": self.config.fixed(),
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "log_sums": self.log.sums(),
        }
        groups = {"network": self.network.state_dict(), "moments": moments}
        write_state(self.folder / "state", self.num_steps, groups, progress)

    def provenance(self) -> dict[str, str]:
        """What goes with the network: how far it is and what it took."""
        config = self.config
        return {
            "steps": f"{self.num_steps:,} of {config.steps:,}, {config.batch_size} images each",
            "training": f"{self.seconds / 60:.1f} minutes, {config.precision}, {config.threads} thread",
            "licence": "Apache-2.0",
            "attribution": (
                "trained on avataaars by Pablo Stanley, free for personal and commercial use, drawn with DiceBear (MIT)"
            ),
        }

    def _restore(self) -> None:
        state = latest_state(self.folder / "state")
        if state is None:
            self.log.truncate(0, {})
            return
        progress = read_progress(state)
        refuse_changes(state, progress["config"], self.config.fixed(), way_out="choose another --out")
        self.network.load_state_dict(read_tensors(state, "network"))
        moments = read_tensors(state, "moments")
        numbers = {key: value for key, value in progress.items() if isinstance(value, int | float)}
        self.num_steps, self.seconds = int(numbers["num_steps"]), float(numbers["seconds"])
        for name, parameter in self.network.named_parameters():
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(self.num_steps)),
                **{key: torch.empty_like(parameter).copy_(moments[f"{name}/{key}"]) for key in _MOMENTS},
            }
        self.log.truncate(self.num_steps, progress["log_sums"])
