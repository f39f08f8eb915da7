"""Networks, optimisers and counters of one generator training, and its steps.

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style.
"""

import copy
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

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
from labelmill.pipeline.generator.training.start import TrainingStart, growth_of
from labelmill.pipeline.process.device import choose_device
from labelmill.pipeline.training.log import TrainingLog
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.training import TrainGeneratorConfig

PATH_LENGTH_DECAY = 0.01
RAMP_FLOOR_IMAGES = 500


class GeneratorTrainer:
    """Networks, optimisers and counters of one training."""

    def __init__(self, config: TrainGeneratorConfig, start: TrainingStart, data: TrainingImages) -> None:
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
        networks = {"generator": self.generator, "average": self.average, "discriminator": self.discriminator}
        for group, network in networks.items():
            for name, tensor in network.state_dict().items():
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


def device_of(config: TrainGeneratorConfig) -> torch.device:
    """The device to train on. Raises ConfigError where this machine has none such, or none for the precision."""
    device = choose_device(config.device)
    if device.type == "cpu" and config.optimisation.precision == "float16":
        raise ConfigError("optimisation.precision: float16 needs a GPU; on a CPU choose float32 or bfloat16")
    return device
