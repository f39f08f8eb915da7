"""Networks, optimisers and steps of one training of an alpha network.

The losses are those of Labels4Free (Abdal et al., ICCV 2021, section 3.3). Where this training differs: the authors'
code gives foreground and background the same latent, and never saves the average that it keeps; here latents are
independent and the average labels. The binarisation sets in late, and the background has a floor, too.

Shape suffixes: B batch, C channels, H height, W width.
"""

import copy
from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.training.losses import discriminator_loss, generator_loss, r1_penalty
from labelmill.pipeline.generator.training.optimiser import SecondMomentAdam, update_average
from labelmill.pipeline.labelers.alpha_network.background import Switch, synthesise_background
from labelmill.pipeline.labelers.alpha_network.network import AlphaNetwork
from labelmill.pipeline.training.randomness import seed_of
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig

_BETA = 0.99

RealsOfStep = Callable[[int], Tensor]
"""Real images [B, C, H, W] float32 in [-1, 1] of a step."""


class Weights(BaseModel):
    """Settings that a restart adjusts; each is a field of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adversarial_weight: float
    discriminator_learning_rate: float
    r1_gamma: float
    binarisation_start: float
    binarisation_end: float
    foreground_floor: float
    background_floor: float
    coverage_weight: float

    @staticmethod
    def of(config: AlphaNetworkConfig) -> "Weights":
        """As the run file gives them."""
        return Weights(**{name: getattr(config, name) for name in Weights.model_fields})


def composite(alphas_BHW: Tensor, foregrounds_BCHW: Tensor, backgrounds_BCHW: Tensor) -> Tensor:
    """Foregrounds over backgrounds, alpha of 1 showing the foreground alone."""
    return torch.lerp(backgrounds_BCHW, foregrounds_BCHW, alphas_BHW[:, None])


def binarisation_loss(alphas_BHW: Tensor) -> Tensor:
    """Mean of min(M, 1 - M): 0 where every pixel is clear or opaque."""
    return torch.minimum(alphas_BHW, 1 - alphas_BHW).mean()


def coverage_loss(alphas_BHW: Tensor, foreground_floor: float, background_floor: float) -> Tensor:
    """What foreground and background of an image lack to their floors, on average."""
    foreground_B = alphas_BHW.mean(dim=(1, 2))
    lacking_B = (foreground_floor - foreground_B).relu() + (background_floor - (1 - foreground_B)).relu()
    return lacking_B.mean()


def ramp(share: float, start: float, end: float) -> float:
    """0 before `start`, 1 from `end` on. share: of the steps that are done."""
    return 1.0 if share >= end else max(0.0, share - start) / (end - start)


class AlphaTrainer:
    """One attempt. Every step follows from the configuration, the weights, the attempt and the step's number.

    Its images are the sampler's, at the sampler's psi.
    """

    def __init__(
        self,
        config: AlphaNetworkConfig,
        sampler: Sampler,
        layers: tuple[str, ...],
        switch: Switch,
        reals: RealsOfStep | None,
        weights: Weights,
        attempt: int,
    ) -> None:
        self.config, self.sampler, self.switch, self.weights = config, sampler, switch, weights
        self._reals, spec = reals, sampler.generator.spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(config.seed, attempt, "alpha network"))
            network = AlphaNetwork(spec, layers, config.width)
            self.discriminator = Discriminator(
                tuple((size, config.discriminator_width) for size, _ in spec.channels),
                image_channels=spec.img_channels,
                lowest_size=spec.const_size,
            ).to(sampler.device)
        self.network = network.to(sampler.device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimiser = SecondMomentAdam(dict(self.network.named_parameters()), rate=config.learning_rate, beta2=_BETA)
        # Lazy regularisation takes extra steps: rate and decay shrink so that both together are as before.
        ratio = config.r1_interval / (config.r1_interval + 1) if weights.r1_gamma else 1.0
        self.discriminator_optimiser = SecondMomentAdam(
            dict(self.discriminator.named_parameters()),
            rate=weights.discriminator_learning_rate * ratio,
            beta2=_BETA**ratio,
        )
        self.num_steps = 0

    def set_deviations(self, deviations: dict[str, float]) -> None:
        """The standard deviation of each layer's features."""
        for network in (self.network, self.average):
            network.set_deviations(deviations)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that changes, by the file and the name that it is saved under; restoring writes into them."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "network_moments": self.optimiser.moments,
            "discriminator_moments": self.discriminator_optimiser.moments,
        }

    def step(self) -> None:
        """Train both networks once."""
        config, interval = self.config, self.config.r1_interval
        fake_BCHW, real_BCHW = self._network_step(), self._real_images()
        discriminator_loss(self.discriminator(real_BCHW), self.discriminator(fake_BCHW)).backward()
        self.discriminator_optimiser.step()
        if self.weights.r1_gamma and self.num_steps % interval == 0:
            (r1_penalty(self.discriminator, real_BCHW) * (self.weights.r1_gamma * interval)).backward()
            self.discriminator_optimiser.step()
        self.num_steps += 1
        update_average(self.average, self.network, 0.5 ** (config.batch_size / config.average_half_life_images))

    def _network_step(self) -> Tensor:
        """Returns the composites that the network was judged by, for the discriminator to learn from."""
        shown_BCHW, features = self._images(0, self.network.layers)
        self.discriminator.requires_grad_(False)
        alphas_BHW = torch.sigmoid(self.network(features))
        fake_BCHW = composite(alphas_BHW, shown_BCHW, self._backgrounds())
        self._loss(alphas_BHW, fake_BCHW).backward()
        self.optimiser.step()
        self.discriminator.requires_grad_(True)
        return fake_BCHW.detach()

    def _loss(self, alphas_BHW: Tensor, fake_BCHW: Tensor) -> Tensor:
        weights = self.weights
        pressing = ramp(self.num_steps / self.config.steps, weights.binarisation_start, weights.binarisation_end)
        return (
            weights.adversarial_weight * generator_loss(self.discriminator(fake_BCHW))
            + self.config.binarisation_weight * pressing * binarisation_loss(alphas_BHW)
            + weights.coverage_weight * coverage_loss(alphas_BHW, weights.foreground_floor, weights.background_floor)
        )

    def _real_images(self) -> Tensor:
        return self._images(2)[0] if self._reals is None else self._reals(self.num_steps)

    @torch.no_grad()
    def _images(self, role: int, layers: tuple[str, ...] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Images and features of this step's seeds."""
        seeds = self._seeds(role)
        ws_BLD, _ = self.sampler.ws(seeds)
        synthesis = self.sampler.generator.synthesize(ws_BLD, self.sampler.noise(seeds), taps=layers)
        return synthesis.images_BCHW, synthesis.features

    @torch.no_grad()
    def _backgrounds(self) -> Tensor:
        """Of other latents than the foregrounds'."""
        seeds = self._seeds(1)
        ws_BLD, _ = self.sampler.ws(seeds)
        return synthesise_background(self.sampler.generator, ws_BLD, self.sampler.noise(seeds), self.switch)

    def _seeds(self, role: int) -> range:
        """Behind those of the watched images; no two steps and no two roles share one."""
        size = self.config.batch_size
        first = self.config.fit_first_seed + self.config.watch_samples + (3 * self.num_steps + role) * size
        return range(first, first + size)
