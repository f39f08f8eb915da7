"""Training the networks of a few annotated images: on the CPU, where all repeats to the bit, resumable at any epoch.

Shape suffixes: S pixels, P directions kept, F outputs of the first layer, K classes, N images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.labelers.few_shot.pixels import LabeledPixels
from labelmill.pipeline.process.log import log
from labelmill.pipeline.training.state import latest_state, read_progress, read_tensors, write_state
from labelmill.schemas.sample import IGNORE

_SECONDS_BETWEEN_STATES = 20
# From its fifth epoch on, an MLP stops after this many batches in a row without a new lowest loss of a batch;
# batches of earlier epochs do not count (DatasetGAN's code).
_PATIENT_EPOCHS, _PATIENCE = 4, 50


@dataclass(frozen=True)
class Example:
    """One annotated image, for networks that look at whole ones; all on the CPU."""

    features: Mapping[str, Tensor]
    """[1, C, h, w] float32 by layer."""
    labels_HW: Tensor
    """int64, at the images' resolution; 255 says nothing."""


@dataclass
class Loop:
    """A network in training: its optimiser, and how far it is."""

    name: str
    """Of its folder below the work folder, and in the log."""
    network: nn.Module
    optimiser: torch.optim.Optimizer
    epoch: int = 0
    lowest_loss: float = float("inf")
    batches_since_lowest: int = 0

    def run(self, num_epochs: int, train_epoch: Callable[["Loop"], bool], work: Path, seed: int) -> None:
        """Train for `num_epochs`, or until `train_epoch` returns False; resume from what is in `work`.

        Within an epoch random numbers come from the seed and the epoch alone.
        """
        folder, saved = work / self.name, monotonic()
        self._resume(folder)
        while self.epoch < num_epochs:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.manual_seed(seed * 1_000_003 + self.epoch)
                is_unfinished = train_epoch(self)
            self.epoch = self.epoch + 1 if is_unfinished else num_epochs
            if self.epoch >= num_epochs or monotonic() - saved > _SECONDS_BETWEEN_STATES:
                self._save(folder)
                saved = monotonic()
        self.network.eval().requires_grad_(False)

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def _save(self, folder: Path) -> None:
        moments = self.optimiser.state_dict()["state"]
        tensors = {
            "network": dict(self.network.state_dict()),
            "optimiser": {f"{index}.{key}": value for index, some in moments.items() for key, value in some.items()},
        }
        progress = {"epoch": self.epoch, "lowest_loss": self.lowest_loss, "since": self.batches_since_lowest}
        write_state(folder, self.epoch, tensors, progress)

    def _resume(self, folder: Path) -> None:
        state = latest_state(folder) if folder.exists() else None
        if state is None:
            return
        progress = read_progress(state)
        self.network.load_state_dict(read_tensors(state, "network", self.network.state_dict()))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in read_tensors(state, "optimiser").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": moments})
        self.epoch, self.batches_since_lowest = int(str(progress["epoch"])), int(str(progress["since"]))
        self.lowest_loss = float(str(progress["lowest_loss"]))
        log(f"fit: {self.name} resumes at epoch {self.epoch}")


def train_on_pixels(
    logits: Callable[[Tensor], Tensor], pixels: LabeledPixels, batch_pixels: int
) -> Callable[[Loop], bool]:
    """An epoch over all pixels, shuffled, in batches of `batch_pixels`; see DatasetGAN's rule for stopping above.

    Of images with too many labeled pixels some are read, which then weigh as much as the ones they stand for.
    """
    x_SP, labels_S = pixels.x_SP.float(), pixels.labels_S
    weights_S = (pixels.weights_S / pixels.weights_S.mean()).float()

    def epoch(loop: Loop) -> bool:
        loop.network.train()
        # Batch normalisation has nothing to go by in a batch of one.
        for chosen in torch.randperm(len(x_SP)).split(batch_pixels):
            if len(chosen) == 1:
                continue
            each_S = functional.cross_entropy(logits(x_SP[chosen]), labels_S[chosen], reduction="none")
            loss = (each_S * weights_S[chosen]).mean()
            loop.step(loss)
            if loop.epoch < _PATIENT_EPOCHS:
                continue
            if loss.item() < loop.lowest_loss:
                loop.lowest_loss, loop.batches_since_lowest = loss.item(), 0
            else:
                loop.batches_since_lowest += 1
            if loop.batches_since_lowest > _PATIENCE:
                return False
        return True

    return epoch


def train_on_images(
    logits: Callable[[Mapping[str, Tensor]], Tensor],
    examples: Sequence[Example],
    images_per_epoch: int,
    schedule: Callable[[int], float],
) -> Callable[[Loop], bool]:
    """An epoch over whole images, one a step, in random order.

    images_per_epoch: fewer images than these are shown more often. schedule: the learning rate of an epoch.
    """

    def epoch(loop: Loop) -> bool:
        loop.network.train()
        for group in loop.optimiser.param_groups:
            group["lr"] = schedule(loop.epoch)
        count = max(len(examples), images_per_epoch)
        order = torch.cat([torch.randperm(len(examples)) for _ in range(-(-count // len(examples)))])[:count]
        for index in order.tolist():
            example = examples[index]
            maps_1KHW = logits(example.features)
            labels_HW = example.labels_HW
            if maps_1KHW.shape[2:] != labels_HW.shape:
                maps_1KHW = functional.interpolate(maps_1KHW, size=labels_HW.shape, mode="bilinear")
            loop.step(functional.cross_entropy(maps_1KHW, labels_HW[None], ignore_index=IGNORE))
        return True

    return epoch
