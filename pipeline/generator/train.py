"""`labelmill train-generator`: train a StyleGAN2 generator, resumably, on one CPU or GPU.

Every random number of step t comes from (seed, t, purpose) and the data order from a counter, so a training that
was killed and resumed takes the same steps as one that was not. Each step trains on `batch_size` images.

Shape suffixes: B batch, C channels, H height, W width, Z latent, L rows of w, D style.
"""

import copy
import hashlib
import signal
import time
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from pipeline.generator.checkpoints.native import load_generator, save_generator
from pipeline.generator.discriminator import Discriminator
from pipeline.generator.losses import discriminator_loss, generator_loss, path_lengths, r1_penalty
from pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution, row_resolution
from pipeline.generator.sample_sheet import write_sheet
from pipeline.generator.training_data import TrainingImages, load_images
from pipeline.generator.training_log import TrainingLog
from pipeline.generator.training_resume import comparable, refuse_changes
from pipeline.generator.training_state import (
    SecondMomentAdam,
    TrainingStateError,
    copy_matching,
    latest_state,
    read_progress,
    read_tensors,
    update_average,
    write_state,
)
from pipeline.interruption import Interrupted
from schemas.training import TrainGeneratorConfig

PATH_LENGTH_DECAY = 0.01
RAMP_FLOOR_IMAGES = 500


def train_generator(config: TrainGeneratorConfig) -> None:
    """Train, or resume the training in config.output, until total_images, max_seconds, SIGTERM or SIGINT.

    Leaves `state/`, `log.jsonl`, `samples/*.png` and `generator.safetensors` (the averaged generator) there.
    Raises Interrupted after a signal, once everything is saved, and ValueError subclasses that name the file or
    field to mend.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    images = load_images(config.data, config.network.resolution, config.cache or config.output / "cache")
    data = TrainingImages(images, seed=config.seed, horizontal_flip=config.horizontal_flip)
    trainer = Trainer(config, data)
    trainer.restore()
    with StopSignals() as stop:
        run(trainer, stop)
    if stop.requested is not None and trainer.images_seen < config.total_images:
        raise Interrupted(stop.requested)


class StopSignals:
    """SIGTERM and SIGINT ask for a stop after the step in progress, instead of killing the process."""

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the signal that asked."""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name


def run(trainer: "Trainer", stop: StopSignals) -> None:
    """The loop: step; log, sample and save when due; save at the end."""
    config, started = trainer.config, time.monotonic()
    next_save = started + config.checkpoint_interval_seconds
    while trainer.images_seen < config.total_images and stop.requested is None:
        if config.max_seconds is not None and time.monotonic() - started > config.max_seconds:
            break
        before = trainer.images_seen // config.sample_interval_images
        trainer.step()
        if trainer.images_seen // config.sample_interval_images > before:
            write_sheet(config.output / "samples" / f"{trainer.images_seen:09d}.png", trainer.average)
        if time.monotonic() > next_save:
            trainer.save()
            next_save = time.monotonic() + config.checkpoint_interval_seconds
    trainer.save()
    write_sheet(config.output / "samples" / "latest.png", trainer.average)


class Trainer:
    """Networks, optimisers and counters of one training."""

    def __init__(self, config: TrainGeneratorConfig, data: TrainingImages) -> None:
        self.config, self.data = config, data
        self.device = choose_device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = Generator(spec_of(config)).to(self.device)
            self.discriminator = Discriminator(self.generator.spec.channels, conv_clamp=config.network.conv_clamp).to(
                self.device
            )
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        self.generator.compute_dtype = self.discriminator.compute_dtype = dtype[config.optimisation.precision]
        rates = config.optimisation
        self.generator_optimiser = self._optimiser(
            self.generator, rates.generator_learning_rate, rates.path_length_weight, rates.path_length_interval
        )
        self.discriminator_optimiser = self._optimiser(
            self.discriminator, rates.discriminator_learning_rate, 1.0, rates.r1_interval
        )
        self.mean_path_length = torch.zeros([], device=self.device)
        self.num_steps = 0
        self.seconds_trained = 0.0
        self.log = TrainingLog(config.output / "log.jsonl", config.log_interval_steps)

    def _optimiser(self, module: torch.nn.Module, rate: float, weight: float, interval: int) -> SecondMomentAdam:
        """Lazy regularisation takes extra steps: rate and decay shrink so that both together are as before."""
        ratio = interval / (interval + 1) if weight > 0 else 1.0
        return SecondMomentAdam(
            dict(module.named_parameters()),
            rate=rate * ratio,
            beta2=0.99**ratio,
            may_overflow=self.config.optimisation.precision == "float16",
        )

    @property
    def images_seen(self) -> int:
        return self.num_steps * self.config.optimisation.batch_size

    # One step.

    def step(self) -> None:
        """Train both networks once on a batch."""
        started, settings = time.monotonic(), self.config.optimisation
        halvings = self.images_seen / settings.rate_images if settings.rate_images else 0.0
        self.rate_scale = 0.5**halvings
        if self.images_seen >= settings.discriminator_head_start_images:
            self._generator_step()
            if settings.path_length_weight > 0 and self.num_steps % settings.path_length_interval == 0:
                self._path_length_step()
        self._discriminator_step()
        if self.num_steps % settings.r1_interval == 0:
            self._r1_step()
        self.num_steps += 1
        half_life = min(
            settings.average_half_life_images,
            max(self.images_seen * settings.average_ramp, RAMP_FLOOR_IMAGES),
        )
        update_average(self.average, self.generator, 0.5 ** (settings.batch_size / half_life))
        self.seconds_trained += time.monotonic() - started
        self.log.step(self.num_steps, self.images_seen, self.seconds_trained)

    def _generator_step(self) -> None:
        self.discriminator.requires_grad_(False)
        ws_BLD = self._draw_ws("generator", self.config.optimisation.batch_size, track_mean=True)
        fake_BCHW = self._synthesise(ws_BLD, "generator")
        loss = generator_loss(self.discriminator(fake_BCHW))
        loss.backward()
        self.generator_optimiser.step(self.rate_scale)
        self.discriminator.requires_grad_(True)
        self.log.add("generator_loss", loss)

    def _path_length_step(self) -> None:
        settings = self.config.optimisation
        batch_size = max(1, settings.batch_size // settings.path_length_batch_shrink)
        ws_BLD = self._draw_ws("path_length", batch_size)
        fake_BCHW = self._synthesise(ws_BLD, "path_length")
        directions = self._normal("path_length_direction", *fake_BCHW.shape)
        lengths_B = path_lengths(fake_BCHW, ws_BLD, directions)
        mean = torch.lerp(self.mean_path_length, lengths_B.detach().mean(), PATH_LENGTH_DECAY)
        self.mean_path_length = mean
        penalty = (lengths_B - mean).square().mean()
        (penalty * (settings.path_length_weight * settings.path_length_interval)).backward()
        self.generator_optimiser.step(self.rate_scale)
        self.log.add("path_length", lengths_B.mean())

    def _discriminator_step(self) -> None:
        batch_size = self.config.optimisation.batch_size
        with torch.no_grad():
            fake_BCHW = self._synthesise(self._draw_ws("discriminator", batch_size), "discriminator")
        real_logits = self.discriminator(self._real_images())
        fake_logits = self.discriminator(fake_BCHW)
        loss = discriminator_loss(real_logits, fake_logits)
        loss.backward()
        self.discriminator_optimiser.step(self.rate_scale)
        self.log.add("discriminator_loss", loss)
        self.log.add("real_logit", real_logits.mean())
        self.log.add("fake_logit", fake_logits.mean())

    def _r1_step(self) -> None:
        settings = self.config.optimisation
        gamma = settings.r1_gamma
        if gamma is None:
            gamma = 0.0002 * self.config.network.resolution**2 / settings.batch_size
        penalty = r1_penalty(self.discriminator, self._real_images())
        (penalty * (gamma * settings.r1_interval)).backward()
        self.discriminator_optimiser.step(self.rate_scale)
        self.log.add("r1_penalty", penalty)

    # Randomness, all of it a function of (seed, step, purpose).

    def _random(self, purpose: str) -> torch.Generator:
        text = f"{self.config.seed}/{self.num_steps}/{purpose}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def _normal(self, purpose: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random(purpose)).to(self.device)

    def _real_images(self) -> Tensor:
        return self.data.batch(self.images_seen, self.config.optimisation.batch_size).to(self.device)

    def _draw_ws(self, purpose: str, batch_size: int, *, track_mean: bool = False) -> Tensor:
        """ws [B, L, D] of random latents; most samples take their last rows from a second latent."""
        spec, random = self.generator.spec, self._random(f"{purpose}/z")
        z_BZ = torch.randn(2 * batch_size, spec.z_dim, generator=random).to(self.device)
        crossover_B = torch.randint(1, spec.num_ws, (batch_size,), generator=random)
        mixed_B = torch.rand(batch_size, generator=random) < self.config.optimisation.style_mixing_probability
        crossover_B = torch.where(mixed_B, crossover_B, spec.num_ws).to(self.device)
        first_BLD, second_BLD = self.generator.map(z_BZ).chunk(2)
        if track_mean:
            decay = self.config.optimisation.mean_w_decay
            self.generator.mapping.w_avg.lerp_(first_BLD[:, 0].detach().mean(dim=0), 1 - decay)
        rows_L = torch.arange(spec.num_ws, device=self.device)
        return torch.where((rows_L < crossover_B[:, None])[:, :, None], first_BLD, second_BLD)

    def _synthesise(self, ws_BLD: Tensor, purpose: str) -> Tensor:
        random, batch_size = self._random(f"{purpose}/noise"), ws_BLD.shape[0]
        noise = []
        for row in range(self.generator.spec.num_ws - 1):
            size = row_resolution(row)
            noise.append(torch.randn(batch_size, 1, size, size, generator=random).to(self.device))
        return self.generator.synthesize(ws_BLD, noise).images_BCHW

    # State.

    @property
    def _groups(self) -> dict[str, dict[str, Tensor]]:
        return {
            "generator": self.generator.state_dict(),
            "average": dict(self.average.named_parameters()),  # its buffers are the generator's
            "discriminator": self.discriminator.state_dict(),
            "generator_moments": self.generator_optimiser.moments,
            "discriminator_moments": self.discriminator_optimiser.moments,
        }

    def save(self) -> None:
        """Publish the state of this step and the averaged generator."""
        progress = {
            "config": comparable(self.config),
            "num_steps": self.num_steps,
            "images_seen": self.images_seen,
            "seconds_trained": self.seconds_trained,
            "mean_path_length": float(self.mean_path_length),
            "generator_optimiser_steps": self.generator_optimiser.num_steps,
            "discriminator_optimiser_steps": self.discriminator_optimiser.num_steps,
            "log_sums": self.log.sums(),
        }
        write_state(self.config.output / "state", self.num_steps, self._groups, progress)
        provenance = {"images_seen": str(self.images_seen), "data": self.config.data.model_dump_json()}
        save_generator(self.config.output / "generator.safetensors", self.average, provenance)

    def restore(self) -> None:
        """Continue from the newest state of config.output; without one, apply config.initialise_from."""
        state = latest_state(self.config.output / "state")
        if state is None:
            if self.config.initialise_from is not None:
                self._initialise(self.config.initialise_from)
            self.log.truncate(0, {})
            return
        progress = read_progress(state)
        refuse_changes(state, progress["config"], comparable(self.config))
        for name, own in self._groups.items():
            for key, tensor in read_tensors(state, name, like=own).items():
                own[key].data.copy_(tensor)
        update_average(self.average, self.generator, decay=1.0)
        numbers = {key: value for key, value in progress.items() if isinstance(value, int | float)}
        self.num_steps = int(numbers["num_steps"])
        self.seconds_trained = float(numbers["seconds_trained"])
        self.mean_path_length = torch.tensor(numbers["mean_path_length"], device=self.device)
        self.generator_optimiser.num_steps = int(numbers["generator_optimiser_steps"])
        self.discriminator_optimiser.num_steps = int(numbers["discriminator_optimiser_steps"])
        self.log.truncate(self.num_steps, progress["log_sums"])

    @torch.no_grad()
    def _initialise(self, source: Path) -> None:
        """Copy what another training or generator shares; a toRGB layer it lacks starts at zero."""
        if source.is_dir():
            state = latest_state(source)
            if state is None:
                raise TrainingStateError(f"initialise_from: {source} holds no complete training state")
            tensors = read_tensors(state, "generator")
            averaged = read_tensors(state, "average")
            copy_matching(self.discriminator, read_tensors(state, "discriminator"))
        else:
            tensors = averaged = load_generator(source).generator.state_dict()
        for module, given in ((self.generator, tensors), (self.average, averaged)):
            fresh = copy_matching(module, given)
            for name in fresh:
                if name.endswith((".torgb.weight", ".torgb.bias")):
                    module.get_parameter(name).zero_()
        update_average(self.average, self.generator, decay=1.0)


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def spec_of(config: TrainGeneratorConfig) -> GeneratorSpec:
    """The generator that a training configuration describes."""
    network = config.network
    channels = channels_by_resolution(
        network.resolution, channel_base=network.channel_base, channel_max=network.channel_max
    )
    return GeneratorSpec(
        resolution=network.resolution,
        z_dim=network.z_dim,
        w_dim=network.w_dim,
        c_dim=0,
        mapping_layers=network.mapping_layers,
        channels=channels,
        architecture=network.architecture,
        conv_clamp=network.conv_clamp,
    )
