"""What a training tells in its first seconds: what it found, where it runs, how long it will take, where things go."""

import time

from labelmill.pipeline.generator.training.augmentation import FEW_IMAGES
from labelmill.pipeline.generator.training.start import TrainingStart
from labelmill.pipeline.process.log import log
from labelmill.schemas.training import TrainGeneratorConfig

PACE_STEPS = 10
"""Steps after which the pace is told."""


def introduce(
    config: TrainGeneratorConfig, start: TrainingStart, data: str, images_seen: int, device: str, *, augmented: bool
) -> None:
    """Say all that is known before the first step."""
    settings = config.optimisation
    log(f"data: {data}")
    log(f"training: {_describe_start(config, start, images_seen)}")
    if settings.augmentation == "auto":
        reason = f"fewer than {FEW_IMAGES:,} images" if augmented else f"{FEW_IMAGES:,} images or more, or drawn ones"
        log(f"augmentation: {'DiffAugment' if augmented else 'none'} ({reason}; optimisation.augmentation decides)")
    log(f"device: {device}, {settings.precision}, {settings.batch_size} images per step")
    log(f"output: {config.output}: log.jsonl, samples/ and state/; rerun the same command to resume")


def _describe_start(config: TrainGeneratorConfig, start: TrainingStart, images_seen: int) -> str:
    size = f"{start.spec.resolution} px"
    if images_seen > 0:
        return f"resumes after {images_seen:,} of {config.total_images:,} images, at {size}"
    if start.source is None:
        return f"a new generator of {size}"
    if start.small is not None:
        return f"grows {start.source.name} from {start.small.resolution} to {size}"
    if start.discriminator_comes_along:
        return f"starts from {start.source.name} and its discriminator, at {size}"
    return (
        f"starts from {start.source.name}, at {size}, with a new discriminator, which learns alone for "
        f"{start.head_start_images:,} images"
    )


class Pace:
    """Says once, after a few steps, how fast the training is and when it will be done."""

    def __init__(self, config: TrainGeneratorConfig, num_steps: int) -> None:
        self._config, self._first, self._started = config, num_steps, time.monotonic()

    def step(self, num_steps: int, images_seen: int) -> None:
        """After each step."""
        taken = num_steps - self._first
        if taken != PACE_STEPS:
            return
        seconds = time.monotonic() - self._started
        rate = taken * self._config.optimisation.batch_size / seconds
        left = max(0, self._config.total_images - images_seen) / rate
        log(f"pace: {rate:.1f} images/s at first, so about {duration(left)} to {self._config.total_images:,} images")


def duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 5 h 20 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
