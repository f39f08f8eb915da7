"""Networks, optimisers and counters of one generator training, its steps and its state.

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style.
"""

import copy
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.networks import Generator, Noise, Trunk
from labelmill.pipeline.generator.training.augmentation import augment, is_augmented
from labelmill.pipeline.generator.training.draws import Draws, Latents
from labelmill.pipeline.generator.training.growth import (
    Phase,
    RankWatch,
    TrainingFailedError,
    new_parameters,
    phase_at,
    plain_phase,
)
from labelmill.pipeline.generator.training.images import TrainingImages
from labelmill.pipeline.generator.training.losses import discriminator_loss, generator_loss, path_lengths, r1_penalty
from labelmill.pipeline.generator.training.optimiser import SecondMomentAdam, update_average
from labelmill.pipeline.generator.training.quality import QualityMonitor
from labelmill.pipeline.generator.training.start import Source, Start, growth_of, spec_as_json
from labelmill.pipeline.process.device import choose_device
from labelmill.pipeline.training.log import TrainingLog
from labelmill.pipeline.training.resume import refuse_changes
from labelmill.pipeline.training.state import (
    GENERATOR_FILE,
    TrainingStateError,
    latest_state,
    read_progress,
    read_tensors,
    write_state,
)
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.training import TrainGeneratorConfig

PATH_LENGTH_DECAY = 0.01
RAMP_FLOOR_IMAGES = 500
# Fields that a resumed training may change.
FREE_FIELDS = (
    "output", "total_images", "max_seconds", "device", "threads", "cache", "checkpoint_interval_seconds",
    "sample_interval_images", "initialise_from", "log_interval_steps", "monitor", "growth",
)  # fmt: skip


class Trainer:
    """Networks, optimisers and counters of one training."""

    def __init__(self, config: TrainGeneratorConfig, start: Start, data: TrainingImages) -> None:
        self.config, self.start, self.data = config, start, data
        self.device = device_of(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = Generator(start.spec).to(self.device)
            self.discriminator = Discriminator(
                start.discriminator_channels, conv_clamp=start.spec.conv_clamp, detail=start.detail
            ).to(self.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.small = None if start.small is None else Generator(start.small).to(self.device).requires_grad_(False)
        """The generator that this one grows from, as it was."""
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        for module in (self.generator, self.discriminator, self.small):
            if module is not None:
                module.compute_dtype = dtype[config.optimisation.precision]
        self._make_optimisers()
        self.mean_path_length = torch.zeros([], device=self.device)
        self.num_steps = 0
        self.seconds_trained = 0.0
        self.log = TrainingLog(config.output / "log.jsonl", config.log_interval_steps)
        self.watch = None if start.small is None else RankWatch(growth_of(config))
        self.augmented = is_augmented(config.optimisation.augmentation, config.data, len(data))
        self.monitor = QualityMonitor(config.monitor, data, self.device)

    def _make_optimisers(self) -> None:
        """One for what is new in the generator (all of it unless it grows), one for what is old."""
        rates, parameters = self.config.optimisation, dict(self.generator.named_parameters())
        growing = self.small is not None
        new = new_parameters(parameters, self.generator.spec.resolution) if growing else frozenset(parameters)
        lazy = rates.generator_learning_rate, rates.path_length_weight, rates.path_length_interval
        self.generator_optimiser = self._optimiser({n: p for n, p in parameters.items() if n in new}, *lazy)
        self.old_optimiser = self._optimiser({n: p for n, p in parameters.items() if n not in new}, *lazy)
        self.discriminator_optimiser = self._optimiser(
            dict(self.discriminator.named_parameters()), rates.discriminator_learning_rate, 1.0, rates.r1_interval
        )

    def _optimiser(
        self, parameters: Mapping[str, nn.Parameter], rate: float, weight: float, interval: int
    ) -> SecondMomentAdam:
        """Lazy regularisation takes extra steps: rate and decay shrink so that both together are as before."""
        ratio = interval / (interval + 1) if weight > 0 else 1.0
        return SecondMomentAdam(
            parameters,
            rate=rate * ratio,
            beta2=0.99**ratio,
            may_overflow=self.config.optimisation.precision == "float16",
        )

    @property
    def images_seen(self) -> int:
        return self.num_steps * self.config.optimisation.batch_size

    # One step.

    def step(self) -> None:
        """Train both networks once on a batch. Raises TrainingFailedError where growing cannot go on."""
        started, settings = time.monotonic(), self.config.optimisation
        halvings = self.images_seen / settings.rate_images if settings.rate_images else 0.0
        self.rate_scale = 0.5**halvings
        phase = self._phase()
        self.old_optimiser.requires_grad_(phase.old_rate > 0)
        if phase.generator_learns:
            fake_BCHW = self._generator_step(phase)
            regularised = phase.path_length and settings.path_length_weight > 0
            if regularised and self.num_steps % settings.path_length_interval == 0:
                self._path_length_step(phase)
        else:
            fake_BCHW = self._fake_images()
        self._discriminator_step(fake_BCHW)
        if self.num_steps % settings.r1_interval == 0:
            self._r1_step()
        self.num_steps += 1
        half_life = min(
            settings.average_half_life_images,
            max(self.images_seen * settings.average_ramp, RAMP_FLOOR_IMAGES),
        )
        update_average(self.average, self.generator, 0.5 ** (settings.batch_size / half_life))
        self.seconds_trained += time.monotonic() - started

    def write_log(self) -> None:
        """A line of the log, when one is due."""
        self.log.step(self.num_steps, self.images_seen, self.seconds_trained)

    def check_finite(self) -> None:
        """Raises TrainingFailedError where a weight is not: then nothing is saved over the last good state."""
        for group in ("generator", "average", "discriminator"):
            for name, tensor in self._groups[group].items():
                if not bool(torch.isfinite(tensor).all()):
                    raise TrainingFailedError(
                        f"after {self.images_seen:,} images {name} of the {group} is not finite: the training has "
                        f"diverged. The last good state is kept in {self.config.output / 'state'}: start from it in "
                        f"another output with lower learning rates"
                    )

    def distances(self) -> dict[str, float]:
        """Of the averaged generator from the data, by their names in the log."""
        return self.monitor.measure(self.average)

    def _phase(self) -> Phase:
        if self.small is None:
            return plain_phase(self.start.head_start_images, self.images_seen)
        return phase_at(growth_of(self.config), self.images_seen)

    def _generator_step(self, phase: Phase) -> Tensor:
        """Returns the images that the generator was judged by, for the discriminator to learn from."""
        self.discriminator.requires_grad_(False)
        batch_size, frozen = self.config.optimisation.batch_size, phase.old_rate == 0
        latents = self._draw_latents("generator", batch_size)
        noise = self._draw_noise("generator", batch_size)
        ws_BLD = self._map(self.generator, latents, track_mean=not frozen)
        trunk = self._frozen_trunk(ws_BLD, noise) if frozen else None
        fake_BCHW = self.generator.synthesize(ws_BLD, noise, trunk=trunk).images_BCHW
        loss = generator_loss(self._judge(fake_BCHW, "generator"))
        self.log.add("generator_loss", loss)
        if phase.anchor > 0:
            small_BCHW = self._small_images(latents, noise)
            drift = functional.mse_loss(functional.avg_pool2d(fake_BCHW, 2), small_BCHW)
            self.log.add("drift", drift)
            loss = loss + phase.anchor * drift
        loss.backward()
        self._move_generator(phase)
        self.discriminator.requires_grad_(True)
        return fake_BCHW.detach()

    @torch.no_grad()
    def _frozen_trunk(self, ws_BLD: Tensor, noise: Noise) -> Trunk:
        """All that frozen blocks do, short of their last toRGB."""
        assert self.start.small is not None
        return self.generator.trunk(ws_BLD, self.start.small.num_ws - 1, noise)

    @torch.no_grad()
    def _small_images(self, latents: Latents, noise: Sequence[Tensor]) -> Tensor:
        """What the generator that this one grows from shows."""
        assert self.small is not None
        return self.small.synthesize(self._map(self.small, latents), noise).images_BCHW

    def _move_generator(self, phase: Phase) -> None:
        self.generator_optimiser.step(self.rate_scale)
        self.old_optimiser.step(self.rate_scale * phase.old_rate)

    def _path_length_step(self, phase: Phase) -> None:
        settings = self.config.optimisation
        batch_size = max(1, settings.batch_size // settings.path_length_batch_shrink)
        ws_BLD = self._map(self.generator, self._draw_latents("path_length", batch_size))
        fake_BCHW = self.generator.synthesize(ws_BLD, self._draw_noise("path_length", batch_size)).images_BCHW
        directions = self._draws.normal("path_length_direction", *fake_BCHW.shape)
        lengths_B = path_lengths(fake_BCHW, ws_BLD, directions)
        # A generator that has grown is regularised late: its first mean is what it finds.
        is_first = self.small is not None and float(self.mean_path_length) == 0.0
        share = 1.0 if is_first else PATH_LENGTH_DECAY
        mean = torch.lerp(self.mean_path_length, lengths_B.detach().mean(), share)
        if bool(torch.isfinite(mean)):
            self.mean_path_length = mean
        penalty = (lengths_B - mean).square().mean()
        (penalty * (settings.path_length_weight * settings.path_length_interval)).backward()
        self._move_generator(phase)
        self.log.add("path_length", lengths_B.mean())

    @torch.no_grad()
    def _fake_images(self) -> Tensor:
        """Images of a generator that does not learn."""
        batch_size = self.config.optimisation.batch_size
        ws_BLD = self._map(self.generator, self._draw_latents("discriminator", batch_size))
        return self.generator.synthesize(ws_BLD, self._draw_noise("discriminator", batch_size)).images_BCHW

    def _discriminator_step(self, fake_BCHW: Tensor) -> None:
        real_logits = self._judge(self._real_images(), "real")
        fake_logits = self._judge(fake_BCHW, "fake")
        loss = discriminator_loss(real_logits, fake_logits)
        loss.backward()
        self.discriminator_optimiser.step(self.rate_scale)
        rank = (real_logits > fake_logits.t()).float().mean()
        self.log.add("discriminator_loss", loss)
        self.log.add("real_logit", real_logits.mean())
        self.log.add("fake_logit", fake_logits.mean())
        self.log.add("discriminator_rank", rank)
        if self.watch is not None:
            self.watch.add(float(rank), self.images_seen)

    def _judge(self, images_BCHW: Tensor, purpose: str) -> Tensor:
        """The discriminator's logits of images, augmented where few images ask for that."""
        if self.augmented:
            images_BCHW = augment(images_BCHW, self._draws.source(f"{purpose}/augmentation"))
        return self.discriminator(images_BCHW)

    def _r1_step(self) -> None:
        settings = self.config.optimisation
        gamma = settings.r1_gamma
        if gamma is None:
            gamma = 0.0002 * self.generator.spec.resolution**2 / settings.batch_size
        penalty = r1_penalty(lambda images_BCHW: self._judge(images_BCHW, "r1"), self._real_images())
        (penalty * (gamma * settings.r1_interval)).backward()
        self.discriminator_optimiser.step(self.rate_scale)
        self.log.add("r1_penalty", penalty)

    # Randomness, all of it a function of (seed, step, purpose).

    @property
    def _draws(self) -> Draws:
        return Draws(self.config.seed, self.num_steps, self.device)

    def _real_images(self) -> Tensor:
        return self.data.batch(self.images_seen, self.config.optimisation.batch_size).to(self.device)

    def _draw_latents(self, purpose: str, batch_size: int) -> Latents:
        return self._draws.latents(
            purpose, batch_size, self.generator.spec, self.config.optimisation.style_mixing_probability
        )

    def _map(self, generator: Generator, latents: Latents, *, track_mean: bool = False) -> Tensor:
        """ws [B, L, D] of latents, which another generator may share."""
        first_BLD, second_BLD = generator.map(latents.z_BZ).chunk(2)
        if track_mean:
            decay = self.config.optimisation.mean_w_decay
            generator.mapping.w_avg.lerp_(first_BLD[:, 0].detach().mean(dim=0), 1 - decay)
        rows_L = torch.arange(generator.spec.num_ws, device=self.device)
        return torch.where((rows_L < latents.crossover_B[:, None])[:, :, None], first_BLD, second_BLD)

    def _draw_noise(self, purpose: str, batch_size: int) -> list[Tensor]:
        return self._draws.noise(purpose, batch_size, self.generator.spec)

    # State.

    @property
    def _groups(self) -> dict[str, dict[str, Tensor]]:
        return {
            "generator": self.generator.state_dict(),
            "average": dict(self.average.named_parameters()),  # its buffers are the generator's
            "discriminator": self.discriminator.state_dict(),
            "generator_moments": {**self.generator_optimiser.moments, **self.old_optimiser.moments},
            "discriminator_moments": self.discriminator_optimiser.moments,
            **({} if self.small is None else {"small": self.small.state_dict()}),
        }

    def save(self) -> None:
        """Publish the state of this step and the averaged generator. Raises TrainingFailedError, see check_finite."""
        self.check_finite()
        progress = {
            "config": comparable(self.config),
            "spec": spec_as_json(self.start.spec),
            "small": spec_as_json(self.start.small),
            "discriminator_detail": self.start.detail,
            "head_start_images": self.start.head_start_images,
            "data_sha256": self.data.sha256,
            "num_steps": self.num_steps,
            "images_seen": self.images_seen,
            "seconds_trained": self.seconds_trained,
            "mean_path_length": float(self.mean_path_length),
            "generator_optimiser_steps": self.generator_optimiser.num_steps,
            "old_optimiser_steps": self.old_optimiser.num_steps,
            "discriminator_optimiser_steps": self.discriminator_optimiser.num_steps,
            "rank_total": 0.0 if self.watch is None else self.watch.total,
            "rank_steps": 0 if self.watch is None else self.watch.steps,
            "log_sums": self.log.sums(),
        }
        write_state(self.config.output / "state", self.num_steps, self._groups, progress)
        provenance = {"images_seen": str(self.images_seen), "data": self.config.data.model_dump_json()}
        save_generator(self.config.output / GENERATOR_FILE, self.average, provenance)

    def restore(self) -> None:
        """Resume from the newest state of config.output; without one, take the weights of the start."""
        state = latest_state(self.config.output / "state")
        if state is None:
            if self.start.source is not None:
                self._take_weights(self.start.source)
            self.log.truncate(0, {})
            return
        progress = read_progress(state)
        elsewhere = (
            f"choose another output and start there from {state.parent}, named in initialise_from (without grow_from)"
        )
        refuse_changes(state, progress["config"], comparable(self.config), free=FREE_FIELDS, way_out=elsewhere)
        if progress["data_sha256"] != self.data.sha256:
            raise TrainingStateError(
                f"{state}: learned from other images than there are now. Restore them, or {elsewhere}"
            )
        for name, own in self._groups.items():
            for key, tensor in read_tensors(state, name, like=own).items():
                own[key].data.copy_(tensor)
        update_average(self.average, self.generator, decay=1.0)
        numbers = {key: value for key, value in progress.items() if isinstance(value, int | float)}
        self.num_steps = int(numbers["num_steps"])
        self.seconds_trained = float(numbers["seconds_trained"])
        self.mean_path_length = torch.tensor(numbers["mean_path_length"], device=self.device)
        self.generator_optimiser.num_steps = int(numbers["generator_optimiser_steps"])
        self.old_optimiser.num_steps = int(numbers["old_optimiser_steps"])
        self.discriminator_optimiser.num_steps = int(numbers["discriminator_optimiser_steps"])
        if self.watch is not None:
            self.watch.total, self.watch.steps = float(numbers["rank_total"]), int(numbers["rank_steps"])
        self.log.truncate(self.num_steps, progress["log_sums"])

    @torch.no_grad()
    def _take_weights(self, source: Source) -> None:
        """Those of a generator of the same sizes as they are; a smaller one's average for all old blocks, beside a new
        toRGB layer that adds nothing yet."""
        if self.small is None:
            self.generator.load_state_dict(source.generator)
            self.average.load_state_dict(source.average)
            if self.start.discriminator_comes_along:
                assert source.discriminator is not None
                self.discriminator.load_state_dict(source.discriminator)
            return
        self.small.load_state_dict(source.average)
        self.generator.load_state_dict(source.average, strict=False)
        torgb = self.generator.synthesis.get_submodule(f"b{self.generator.spec.resolution}.torgb")
        torgb.get_parameter("weight").zero_()
        update_average(self.average, self.generator, decay=0.0)


def device_of(config: TrainGeneratorConfig) -> torch.device:
    """The device to train on. Raises ConfigError where this machine has none such, or none for the precision."""
    device = choose_device(config.device)
    if device.type == "cpu" and config.optimisation.precision == "float16":
        raise ConfigError("optimisation.precision: float16 needs a GPU; on a CPU choose float32 or bfloat16")
    return device


def comparable(config: TrainGeneratorConfig) -> dict[str, object]:
    """The fields that must not change when a training is resumed."""
    values = config.model_dump(mode="json", exclude=set(FREE_FIELDS))
    values["data"].pop("num_processes", None)  # which changes no image
    return values
