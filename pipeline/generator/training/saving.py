"""What a generator training saves, and how it is resumed from there or begun from other weights."""

import torch
from torch import Tensor

from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.training.optimiser import update_average
from labelmill.pipeline.generator.training.start import Source, spec_as_json
from labelmill.pipeline.generator.training.trainer import GeneratorTrainer
from labelmill.pipeline.training.resume import refuse_changes
from labelmill.pipeline.training.state import (
    GENERATOR_FILE,
    TrainingStateError,
    latest_state,
    read_progress,
    read_tensors,
    write_state,
)
from labelmill.schemas.training import TrainGeneratorConfig

# Fields that a resumed training may change.
FREE_FIELDS = (
    "output", "total_images", "max_seconds", "device", "threads", "cache", "checkpoint_interval_seconds",
    "sample_interval_images", "initialise_from", "log_interval_steps", "monitor", "growth",
)  # fmt: skip


def save(trainer: GeneratorTrainer) -> None:
    """Publish the state of this step and the averaged generator. Raises what GeneratorTrainer.check_finite does."""
    trainer.check_finite()
    progress = {
        "config": comparable(trainer.config),
        "spec": spec_as_json(trainer.start.spec),
        "small": spec_as_json(trainer.start.small),
        "discriminator_detail": trainer.start.detail,
        "head_start_images": trainer.start.head_start_images,
        "data_sha256": trainer.data.sha256,
        "num_steps": trainer.num_steps,
        "images_seen": trainer.images_seen,
        "seconds_trained": trainer.seconds_trained,
        "mean_path_length": float(trainer.mean_path_length),
        "generator_optimiser_steps": trainer.generator_optimiser.num_steps,
        "old_optimiser_steps": trainer.old_optimiser.num_steps,
        "discriminator_optimiser_steps": trainer.discriminator_optimiser.num_steps,
        "rank_total": 0.0 if trainer.watch is None else trainer.watch.total,
        "rank_steps": 0 if trainer.watch is None else trainer.watch.steps,
        "log_sums": trainer.log.sums(),
    }
    write_state(trainer.config.output / "state", trainer.num_steps, _groups(trainer), progress)
    provenance = {"images_seen": str(trainer.images_seen), "data": trainer.config.data.model_dump_json()}
    save_generator(trainer.config.output / GENERATOR_FILE, trainer.average, provenance)


def restore(trainer: GeneratorTrainer) -> None:
    """Resume from the newest state of config.output; without one, take the weights of the start."""
    state = latest_state(trainer.config.output / "state")
    if state is None:
        if trainer.start.source is not None:
            _take_weights(trainer, trainer.start.source)
        trainer.log.truncate(0, {})
        return
    progress = read_progress(state)
    elsewhere = (
        f"choose another output and start there from {state.parent}, named in initialise_from (without grow_from)"
    )
    refuse_changes(state, progress["config"], comparable(trainer.config), free=FREE_FIELDS, way_out=elsewhere)
    if progress["data_sha256"] != trainer.data.sha256:
        raise TrainingStateError(
            f"{state}: learned from other images than the current ones. Restore them, or {elsewhere}"
        )
    for name, own in _groups(trainer).items():
        for key, tensor in read_tensors(state, name, like=own).items():
            own[key].data.copy_(tensor)
    update_average(trainer.average, trainer.generator, decay=1.0)
    numbers = {key: value for key, value in progress.items() if isinstance(value, int | float)}
    trainer.num_steps = int(numbers["num_steps"])
    trainer.seconds_trained = float(numbers["seconds_trained"])
    trainer.mean_path_length = torch.tensor(numbers["mean_path_length"], device=trainer.device)
    trainer.generator_optimiser.num_steps = int(numbers["generator_optimiser_steps"])
    trainer.old_optimiser.num_steps = int(numbers["old_optimiser_steps"])
    trainer.discriminator_optimiser.num_steps = int(numbers["discriminator_optimiser_steps"])
    if trainer.watch is not None:
        trainer.watch.total, trainer.watch.steps = float(numbers["rank_total"]), int(numbers["rank_steps"])
    trainer.log.truncate(trainer.num_steps, progress["log_sums"])


def _groups(trainer: GeneratorTrainer) -> dict[str, dict[str, Tensor]]:
    """All tensors that change, by the file and the name that they are saved under; restoring writes into them."""
    return {
        "generator": trainer.generator.state_dict(),
        "average": dict(trainer.average.named_parameters()),  # its buffers are the generator's
        "discriminator": trainer.discriminator.state_dict(),
        "generator_moments": {**trainer.generator_optimiser.moments, **trainer.old_optimiser.moments},
        "discriminator_moments": trainer.discriminator_optimiser.moments,
        **({} if trainer.small is None else {"small": trainer.small.state_dict()}),
    }


@torch.no_grad()
def _take_weights(trainer: GeneratorTrainer, source: Source) -> None:
    """Those of a generator of the same sizes as they are; a smaller one's average for all old blocks, beside a new
    toRGB layer that adds nothing yet."""
    if trainer.small is None:
        trainer.generator.load_state_dict(source.generator)
        trainer.average.load_state_dict(source.average)
        if trainer.start.discriminator_comes_along:
            assert source.discriminator is not None
            trainer.discriminator.load_state_dict(source.discriminator)
        return
    trainer.small.load_state_dict(source.average)
    trainer.generator.load_state_dict(source.average, strict=False)
    torgb = trainer.generator.synthesis.get_submodule(f"b{trainer.generator.spec.resolution}.torgb")
    torgb.get_parameter("weight").zero_()
    update_average(trainer.average, trainer.generator, decay=0.0)


def comparable(config: TrainGeneratorConfig) -> dict[str, object]:
    """The fields that must not change when a training is resumed."""
    values = config.model_dump(mode="json", exclude=set(FREE_FIELDS))
    values["data"].pop("num_processes", None)  # which changes no image
    return values
