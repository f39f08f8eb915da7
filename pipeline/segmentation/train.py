"""`labelmill train`: train a segmentation network on a labelmill dataset, resumably, on one or more CPUs or GPUs.

Batches, augmentation and dropout of step t follow from (seed, rank, t), the learning rate from t, so a training that
was killed and resumed takes the same steps as one that was not.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labelmill.pipeline.networks.segmenter import build, save_segmenter
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.segmentation.augment import Augmentation
from labelmill.pipeline.segmentation.curves import draw_curves
from labelmill.pipeline.segmentation.held_out import check_photos, open_held_out_split, score
from labelmill.pipeline.segmentation.loader_processes import Patience
from labelmill.pipeline.segmentation.loss import segmentation_loss, shares_of_alpha, shares_of_levels
from labelmill.pipeline.segmentation.progress import TrainingPace, say_what_was_found
from labelmill.pipeline.segmentation.ranks import Ranks, joined_ranks
from labelmill.pipeline.segmentation.reading import PairBatch, Split, open_split, training_loader
from labelmill.pipeline.segmentation.seed_overlap import check_apart
from labelmill.pipeline.segmentation.targets import target_file
from labelmill.pipeline.training.log import TrainingLog
from labelmill.pipeline.training.randomness import seed_of
from labelmill.pipeline.training.resume import refuse_changes
from labelmill.pipeline.training.state import (
    latest_state,
    locked,
    read_progress,
    read_tensors,
    write_state,
)
from labelmill.pipeline.training.stop import Stop, stop_on_signals
from labelmill.schemas.errors import ConfigError, LabelmillError
from labelmill.schemas.segmentation import (
    DatasetSplit,
    Evaluation,
    PhotoFolder,
    SegmentationModelCard,
    SegmentationTrainingConfig,
    TrainingMetrics,
)

MODEL_FILE, METRICS_FILE, CURVES_FILE, LOG_FILE, STATE_FOLDER = (
    "model.safetensors", "metrics.json", "curves.png", "log.jsonl", "state",
)  # fmt: skip

# Fields that a resumed training may change: they move no step. Ranks and the dataset's content are compared as well.
_FREE_FIELDS = {
    "output", "device", "threads", "max_seconds", "checkpoint_interval_seconds", "evaluation_interval_steps",
    "held_out", "allow_shared_seeds", "loader_timeout_seconds", "log_interval_steps",
}  # fmt: skip
_LEAST_LOG_LINES = 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def train(config: SegmentationTrainingConfig) -> TrainingMetrics:
    """Train, or resume the training in config.output, until its last step, max_seconds, SIGTERM or SIGINT.

    Leaves model.safetensors, metrics.json, curves.png, log.jsonl and the state there. Under torchrun every rank calls
    this, with an output that all of them see. Raises Interrupted after a signal, once everything is saved, and
    LabelmillError kinds that name the file or field to mend.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    split = open_split(config.data.dataset, config.data.split)
    with joined_ranks(config.device) as ranks, stop_on_signals(config.max_seconds) as stop:
        return _train(config, split, ranks, stop)


def _train(config: SegmentationTrainingConfig, split: Split, ranks: Ranks, stop: Stop) -> TrainingMetrics:
    """The trainer ends with this function: see joined_ranks."""
    trainer = SegmentationTrainer(config, split, ranks)
    if ranks.is_first:
        say_what_was_found(config, split, ranks, sum(weights.numel() for weights in trainer.segmenter.parameters()))
    with locked(config.output) if ranks.is_first else nullcontext():
        trainer.restore()
        trainer.run(stop)
        return trainer.metrics()


class SegmentationTrainer:
    """The network, its optimiser and the counters of one training, on one rank."""

    def __init__(self, config: SegmentationTrainingConfig, split: Split, ranks: Ranks) -> None:
        """Raises ConfigError for settings that do not fit the dataset or the device."""
        _check(config, split, ranks.device)
        self.config, self.split, self.ranks = config, split.reading(target_file(config, split)), ranks
        model = config.model
        self.segmenter = build(
            model,
            num_classes=len(split.classes),
            mean=split.mean,
            std=split.std,
            seed=config.seed,
            turns_gray=split.image_shape.channels == 1,
        ).to(ranks.device)
        self.segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parallel = (
            DistributedDataParallel(self.segmenter, device_ids=None if ranks.device.type == "cpu" else [ranks.device])
            if ranks.count > 1
            else self.segmenter
        )
        self.optimiser = _optimiser(self.segmenter, config)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.optimisation.precision == "float16")
        self.num_steps = 0
        self.seconds = 0.0
        self.evaluations: list[Evaluation] = []
        # A short training has a curve, too.
        log_interval = min(config.log_interval_steps, max(1, config.optimisation.steps // _LEAST_LOG_LINES))
        self.log = TrainingLog(config.output / LOG_FILE, log_interval)

    @property
    def is_done(self) -> bool:
        return self.num_steps >= self.config.optimisation.steps

    def run(self, stop: Stop) -> None:
        """Take the steps that are left; score and save when due, and at the end."""
        next_save = time.monotonic() + self.config.checkpoint_interval_seconds
        first_step = self.num_steps
        total = self.config.optimisation.steps
        pace = TrainingPace(first_step, total, self._images_per_step) if self.ranks.is_first else None
        due = self.ranks.any(stop.is_due)
        try:
            with closing(self._batches(stop)) as batches:
                for batch in () if due else batches:
                    self.step(batch)
                    if pace is not None:
                        pace.step(self.num_steps)
                    if self.num_steps % self.config.evaluation_interval_steps == 0 or self.is_done:
                        self.evaluate()
                    if time.monotonic() > next_save:
                        self.save()
                        next_save = time.monotonic() + self.config.checkpoint_interval_seconds
                    if self.ranks.any(stop.is_due):
                        break
        except LabelmillError:
            if self.num_steps > first_step:
                self.save()
            raise
        assert self.is_done or due or stop.is_due or self.ranks.count > 1, "the loader gave too few batches"
        if self.is_done and not self._is_scored:
            self.evaluate()
        self.save()
        stop.is_finished = self.is_done

    def _batches(self, stop: Stop) -> Generator[PairBatch, None, None]:
        config, optimisation, crop = self.config, self.config.optimisation, self.config.augmentation.crop
        return training_loader(
            self.split,
            batch_size=optimisation.batch_size,
            seed=config.seed,
            batches=range(self.num_steps, optimisation.steps),
            shuffle_shards=config.shuffle_shards,
            workers=config.workers,
            rank=self.ranks.rank,
            num_ranks=self.ranks.count,
            augment=Augmentation(config.augmentation, (crop, crop) if crop else self.split.image_shape.size),
            pin_memory=self.ranks.device.type == "cuda",
            patience=Patience(config.loader_timeout_seconds, lambda: stop.is_due),
        )

    # One step.

    def step(self, batch: PairBatch) -> None:
        """Learn from a batch."""
        started, settings, device = time.monotonic(), self.config.optimisation, self.ranks.device
        rate = settings.learning_rate * (1 - self.num_steps / settings.steps) ** settings.poly_power
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        images_BCHW = batch.images_BCHW.to(device, non_blocking=True).float() / 255
        masks_BHW = batch.masks_BHW.to(device, non_blocking=True).long()
        self.parallel.train()
        with (
            self._seeded(),
            torch.autocast(device.type, _DTYPES[settings.precision], enabled=settings.precision != "float32"),
        ):
            logits_BKHW = self.parallel(images_BCHW.contiguous(memory_format=torch.channels_last))
        loss = segmentation_loss(logits_BKHW, masks_BHW, self._shares(batch))
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if settings.gradient_limit is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_value_(self.segmenter.parameters(), settings.gradient_limit)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.num_steps += 1
        self.seconds += time.monotonic() - started
        self.log.add("loss", loss)
        self.log.add("learning_rate", torch.tensor(rate))
        if self.ranks.is_first:
            self.log.step(self.num_steps, self.num_images, self.seconds)

    def _shares(self, batch: PairBatch) -> Tensor | None:
        """Soft targets [B, K, H, W] on the device; None where masks are the targets."""
        device = self.ranks.device
        if batch.probabilities_BKHW is not None:
            return shares_of_levels(batch.probabilities_BKHW.to(device, non_blocking=True))
        if batch.alphas_BHW is not None:
            return shares_of_alpha(batch.alphas_BHW.to(device, non_blocking=True))
        return None

    @property
    def num_images(self) -> int:
        return self.num_steps * self._images_per_step

    @property
    def _images_per_step(self) -> int:
        return self.config.optimisation.batch_size * self.ranks.count

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Dropout draws from PyTorch's global generators: they are lent to this step, and follow from it."""
        device = self.ranks.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.config.seed, self.ranks.rank, self.num_steps))
            yield

    # Scores.

    @property
    def _is_scored(self) -> bool:
        return bool(self.evaluations) and self.evaluations[-1].step == self.num_steps

    def evaluate(self) -> None:
        """Score on held_out, on the first rank; the others wait at their next word with it."""
        held_out = self.config.held_out
        if held_out is None or not self.ranks.is_first:
            return
        self.segmenter.eval()
        scores = score(self.segmenter, held_out, self.split.classes, min(self.split.image_shape.size))
        self.evaluations.append(Evaluation(step=self.num_steps, scores=scores))

    def metrics(self) -> TrainingMetrics:
        """What metrics.json says."""
        return TrainingMetrics(
            steps=self.num_steps,
            images=self.num_images,
            seconds=round(self.seconds, 3),
            final=self.evaluations[-1].scores if self.is_done and self._is_scored else None,
            evaluations=tuple(self.evaluations),
        )

    # State.

    def save(self) -> None:
        """Publish the state of this step, the network, its scores and its curves. The first rank's task."""
        if not self.ranks.is_first:
            return
        output = self.config.output
        progress = {
            "identity": self._identity(),
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
            "log_sums": self.log.sums(),
            "held_out": self._held_out(),
            "evaluations": [evaluation.model_dump(mode="json") for evaluation in self.evaluations],
        }
        tensors = {"model": self.segmenter.state_dict(), "optimiser": self._optimiser_tensors()}
        write_state(output / STATE_FOLDER, self.num_steps, tensors, progress)
        save_segmenter(output / MODEL_FILE, self.segmenter, self.card())
        write_atomically(output / METRICS_FILE, self.metrics().model_dump_json(indent=1).encode())
        write_atomically(output / CURVES_FILE, draw_curves(output / LOG_FILE, self.evaluations))

    def card(self) -> SegmentationModelCard:
        """What the network is, for those who use it."""
        return SegmentationModelCard(
            model=self.config.model,
            classes=self.split.classes,
            image_shape=self.split.image_shape,
            mean=self.split.mean,
            std=self.split.std,
            dataset_fingerprint=self.split.fingerprint,
            steps=self.num_steps,
        )

    def restore(self) -> None:
        """Continue from the newest state of config.output, if there is one. Raises TrainingStateError for one of
        another training."""
        state = latest_state(self.config.output / STATE_FOLDER)
        if state is None:
            if self.ranks.is_first:
                self.log.truncate(0, {})
            return
        progress: Mapping[str, Any] = read_progress(state)
        refuse_changes(
            state, progress["identity"], self._identity(), free=_FREE_FIELDS, way_out="choose another output"
        )
        self.segmenter.load_state_dict(read_tensors(state, "model"))
        self._load_optimiser(read_tensors(state, "optimiser"))
        self.scaler.load_state_dict(progress["scaler"])
        self.num_steps, self.seconds = int(progress["num_steps"]), float(progress["seconds"])
        # Scores on something else would be taken for scores on this.
        if progress.get("held_out") == self._held_out():
            self.evaluations = [Evaluation.model_validate(evaluation) for evaluation in progress["evaluations"]]
        if self.ranks.is_first:
            self.log.truncate(self.num_steps, progress["log_sums"])

    def _identity(self) -> dict[str, Any]:
        """What decides the steps of a training, as JSON-ready values."""
        values = self.config.model_dump(mode="json", exclude=_FREE_FIELDS)
        del values["data"]["dataset"]
        values["data"]["fingerprint"] = self.split.fingerprint
        values["data"]["samples"] = self.split.num_samples
        return {**values, "ranks": self.ranks.count}

    def _held_out(self) -> dict[str, Any] | None:
        """What scores are of, as JSON-ready values."""
        held_out = self.config.held_out
        return None if held_out is None else held_out.model_dump(mode="json")

    def _optimiser_tensors(self) -> dict[str, Tensor]:
        """`NAME/PARAMETER`, such as momentum_buffer/network.classifier.weight. Empty before the first step."""
        return {
            f"{name}/{parameter}": tensor
            for parameter, own in self.segmenter.named_parameters()
            for name, tensor in self.optimiser.state[own].items()
            if isinstance(tensor, Tensor)  # SGD without momentum keeps a None
        }

    def _load_optimiser(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = dict(self.segmenter.named_parameters())
        for key, tensor in tensors.items():
            name, _, parameter = key.partition("/")
            own = parameters[parameter]
            # Adam counts its steps on the CPU.
            is_count = name == "step"
            stored = tensor if is_count else tensor.to(own.device).contiguous(memory_format=_layout(own))
            self.optimiser.state[own][name] = stored


def _layout(parameter: Tensor) -> torch.memory_format:
    return torch.channels_last if parameter.dim() == 4 else torch.contiguous_format


def _optimiser(module: nn.Module, config: SegmentationTrainingConfig) -> torch.optim.Optimizer:
    settings, parameters = config.optimisation, list(module.parameters())
    if settings.optimiser == "adam":
        return torch.optim.Adam(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def _check(config: SegmentationTrainingConfig, split: Split, device: torch.device) -> None:
    """Raises ConfigError, or what a score would raise, for what would fail, or score nonsense, only later."""
    held_out, precision = config.held_out, config.optimisation.precision
    if precision != "float32" and device.type == "cpu":
        raise ConfigError(f"optimisation.precision: {precision} needs a GPU; on a CPU use float32")
    if isinstance(held_out, PhotoFolder):
        check_photos(held_out, split.classes)
    if isinstance(held_out, DatasetSplit):
        held_out_split = open_held_out_split(held_out, split.classes)
        if not config.allow_shared_seeds:
            check_apart(split, held_out_split)
