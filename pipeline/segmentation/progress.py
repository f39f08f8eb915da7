"""What a training says while it runs: what it found, how fast it goes, and when it will be done."""

import time

from labelmill.pipeline.pictures.photos import find_photos
from labelmill.pipeline.process.log import log
from labelmill.pipeline.segmentation.ranks import Ranks
from labelmill.pipeline.segmentation.reading import Split, open_split
from labelmill.pipeline.segmentation.targets import target_file
from labelmill.schemas.segmentation import DatasetSplit, SegmentationTrainingConfig

_FIRST_LINE_SECONDS, _LINE_SECONDS = 3.0, 15.0


def say_what_was_found(config: SegmentationTrainingConfig, split: Split, ranks: Ranks, num_weights: int) -> None:
    """Before the first step: images, what is held out, network and device."""
    name = "all splits" if split.name is None else f"split {split.name}"
    log(
        f"data: {split.num_samples} images of {split.image_shape.size_in_words} in {len(split.shards)} shards of "
        f"{split.url} ({name}); {len(split.classes)} classes: {', '.join(split.classes)}"
    )
    log(f"targets: {target_file(config, split).name}")
    log(f"held out: {_held_out(config)}")
    network = f"{config.model.architecture}, {num_weights / 1e6:.1f} million weights"
    device = f"{ranks.device}, {ranks.count} ranks" if ranks.count > 1 else str(ranks.device)
    log(f"network: {network}, on {device}; {config.workers} loader processes")


def _held_out(config: SegmentationTrainingConfig) -> str:
    held_out = config.held_out
    if held_out is None:
        return "nothing, so nothing is scored"
    if isinstance(held_out, DatasetSplit):
        return f"{open_split(held_out.dataset, held_out.split).num_samples} images of {held_out.dataset}"
    photos = find_photos(held_out.photos)
    skipped = f"; {photos.skipped_text}" if photos.skipped else ""
    return f"{len(photos.files)} photo{'s' * (len(photos.files) != 1)} of {held_out.photos}{skipped}"


class TrainingPace:
    """Says where a training is after its first seconds, then every quarter of a minute."""

    def __init__(self, num_steps: int, total_steps: int, images_per_step: int) -> None:
        """num_steps: taken before this run."""
        self._total, self._images_per_step = total_steps, images_per_step
        self._first: tuple[int, float] | None = None
        self._next_line = time.monotonic() + _FIRST_LINE_SECONDS
        if num_steps >= total_steps:
            log(f"all {total_steps} steps were taken before")
        elif num_steps:
            log(f"resuming after step {num_steps} of {total_steps}")
        else:
            log(f"starting: {total_steps} steps of {images_per_step} images")

    def step(self, num_steps: int) -> None:
        """A step was taken. The first one of a run, which waits for processes to start, is not measured."""
        now = time.monotonic()
        if self._first is None:
            self._first = num_steps, now
            return
        if now < self._next_line:
            return
        self._next_line = now + _LINE_SECONDS
        seconds_per_step = (now - self._first[1]) / (num_steps - self._first[0])
        left = (self._total - num_steps) * seconds_per_step
        log(
            f"step {num_steps} of {self._total}: {self._images_per_step / seconds_per_step:.1f} images/s, "
            f"about {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
