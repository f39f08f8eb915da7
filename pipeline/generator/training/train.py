"""`labelmill train-generator`: train a StyleGAN2 generator, resumably, on one CPU or GPU.

Every random number of step t comes from (seed, t, purpose) and the data order from a counter, so a training that
was killed and resumed takes the same steps as one that was not. Each step trains on `batch_size` images.
"""

import time

import torch

from labelmill.pipeline.generator.sample_sheet import write_sheet
from labelmill.pipeline.generator.training.images import TrainingImages, load_images
from labelmill.pipeline.generator.training.overview import Pace, introduce
from labelmill.pipeline.generator.training.saving import restore, save
from labelmill.pipeline.generator.training.start import find_start
from labelmill.pipeline.generator.training.trainer import GeneratorTrainer, device_of
from labelmill.pipeline.process.log import log
from labelmill.pipeline.training.state import GENERATOR_FILE, TrainingStateError, locked
from labelmill.pipeline.training.stop import Stop, stop_on_signals
from labelmill.schemas.training import FolderData, TrainGeneratorConfig


def train_generator(config: TrainGeneratorConfig) -> None:
    """Train, or resume the training in config.output, until total_images, max_seconds, SIGTERM or SIGINT.

    Leaves `state/`, `log.jsonl`, `samples/*.png` and `generator.safetensors` (the averaged generator) there.
    Raises Interrupted after a signal, once everything is saved, and ValueError subclasses that name the file or
    field to mend.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with locked(config.output):
        _train(config)


def _train(config: TrainGeneratorConfig) -> None:
    device_of(config)  # what is wrong with it is told before images are decoded
    start = find_start(config)
    if isinstance(config.data, FolderData) and config.output.resolve().is_relative_to(config.data.path.resolve()):
        raise TrainingStateError(
            f"output: {config.output} lies inside data.path ({config.data.path}), whose images are learned: its sample "
            f"sheets would be among them. Choose a folder elsewhere"
        )
    if start.head_start_images >= config.total_images:
        raise TrainingStateError(
            f"total_images: {config.total_images:,} are over before the generator learns; the discriminator learns "
            f"alone from the first {start.head_start_images:,}"
        )
    loaded = load_images(config.data, start.spec.resolution, config.cache or config.output / "cache")
    data = TrainingImages(
        loaded.images_NHWC, seed=config.seed, horizontal_flip=config.horizontal_flip, sha256=loaded.sha256
    )
    trainer = GeneratorTrainer(config, start, data)
    restore(trainer)
    introduce(config, start, loaded.summary, trainer.images_seen, str(trainer.device), augmented=trainer.augmented)
    with stop_on_signals(config.max_seconds) as stop:
        run(trainer, stop)
    if trainer.images_seen >= config.total_images:
        told = ", ".join(f"{name} {value:.3g}" for name, value in trainer.distances().items())
        log(f"quality: {told} (distances from the data, {config.monitor.num_images:,} images)")
        log(f"done: {config.output / GENERATOR_FILE}, which a run file's generator.checkpoint takes")
    else:
        done = f"{trainer.images_seen:,} of {config.total_images:,} images"
        log(f"stopped after {done}; rerun the same command to resume")


def run(trainer: GeneratorTrainer, stop: Stop) -> None:
    """The loop: step; log, sample and save when due; save at the end."""
    config, pace = trainer.config, Pace(trainer.config, trainer.num_steps)
    next_save = time.monotonic() + config.checkpoint_interval_seconds
    while trainer.images_seen < config.total_images and not stop.is_due:
        before = trainer.images_seen // config.sample_interval_images
        trainer.step()
        pace.step(trainer.num_steps, trainer.images_seen)
        if trainer.images_seen // config.sample_interval_images > before:
            trainer.check_finite()
            write_sheet(config.output / "samples" / f"{trainer.images_seen:09d}.png", trainer.average)
            for name, value in trainer.distances().items():
                trainer.log.add(name, torch.tensor(value))
        trainer.write_log()
        if time.monotonic() > next_save:
            save(trainer)
            next_save = time.monotonic() + config.checkpoint_interval_seconds
    save(trainer)
    write_sheet(config.output / "samples" / "latest.png", trainer.average)
    stop.is_finished = trainer.images_seen >= config.total_images
