"""A network that guesses a photo's latents, trained on the generator's own images, whose latents are known.

It is a start for the projector, no inversion of its own: a few steps from its guess beat many times as many from the
average latent. It learns from the images of its guesses, as most of a latent's variance cannot be seen; the error of
latents is there to keep guesses where latents lie. Its features also serve as a perceptual loss.

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style, N samples.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.photos.loss import ReconstructionLoss
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.log import log
from labelmill.pipeline.process.safetensors_json import (
    DamagedFileError,
    ForeignFileError,
    load_with_json,
    save_with_json,
)
from labelmill.pipeline.training.convolution_blocks import Residual, convolution
from labelmill.pipeline.training.randomness import seed_of
from labelmill.pipeline.training.state import latest_state, read_progress, read_tensors, write_state
from labelmill.schemas.errors import OutputError
from labelmill.schemas.inversion import EncoderConfig, ReconstructionLossConfig

ENCODER_FILE = "encoder.safetensors"
_STATE = ".encoder"
_LARGEST_SIDE = 64
_MOMENTS = ("exp_avg", "exp_avg_sq")
_WIDTHS = (64, 128, 192, 256, 256)
_HIDDEN = 512
_SPREAD_SAMPLES = 1024
_STEPS_PER_STATE = 32


class LatentEncoder(nn.Module):
    """Images [B, C, H, W] in [-1, 1] to ws [B, L, D], as offsets from the average in units of their spread."""

    mean_D: Tensor
    spread_D: Tensor

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.size = _reduced(spec.image_size)
        self.rows = (spec.num_ws, spec.w_dim)
        self.register_buffer("mean_D", torch.zeros(spec.w_dim))
        self.register_buffer("spread_D", torch.ones(spec.w_dim))
        blocks, width, (height, breadth) = [], spec.img_channels, self.size
        for wider in _WIDTHS:
            if min(height, breadth) <= 4:
                break
            height, breadth = -(-height // 2), -(-breadth // 2)
            block = [convolution(width, wider, stride=2)]
            blocks.append(nn.Sequential(*block, Residual(wider, 1)) if max(height, breadth) <= 8 else block[0])
            width = wider
        self.blocks = nn.ModuleList(blocks)
        last = nn.Linear(_HIDDEN, spec.num_ws * spec.w_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(width * height * breadth, _HIDDEN), nn.ReLU(), last)

    def reduced(self, images_BCHW: Tensor) -> Tensor:
        """Images at the size that the network sees."""
        if images_BCHW.shape[2:] == self.size:
            return images_BCHW
        return functional.adaptive_avg_pool2d(images_BCHW, self.size)

    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        """Activations of each block [B, C, h, w]."""
        found, x_BCHW = [], self.reduced(images_BCHW)
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
            found.append(x_BCHW)
        return found

    def offsets(self, images_BCHW: Tensor) -> Tensor:
        """[B, L, D], about 1 in size."""
        offsets_BF: Tensor = self.head(self.features(images_BCHW)[-1])
        return offsets_BF.unflatten(1, self.rows)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """ws [B, L, D]."""
        return self.mean_D + self.offsets(images_BCHW) * self.spread_D


def _reduced(size: tuple[int, int]) -> tuple[int, int]:
    """The side that a network sees of images so large, which a power of two divides."""
    factor = max(1, max(size) // _LARGEST_SIDE)
    return size[0] // factor, size[1] // factor


def latent_spread(sampler: Sampler, first_seed: int) -> tuple[Tensor, Tensor]:
    """Average [D] and standard deviation [D] of the generator's latents without truncation."""
    ws_BLD, _ = sampler.ws(range(first_seed, first_seed + _SPREAD_SAMPLES), psi=1.0)
    w_BD = ws_BLD[:, 0]
    return w_BD.mean(dim=0), w_BD.std(dim=0).clamp_min(1e-6)


@dataclass(frozen=True)
class _Samples:
    """What the encoder learns from in one step."""

    images_BCHW: Tensor
    ws_BLD: Tensor


def _draw(sampler: Sampler, config: EncoderConfig, mean_D: Tensor, step: int) -> _Samples:
    """New images of the generator, half of them of two mixed latents, with a truncation psi of each one's own."""
    spec, count = sampler.generator.spec, config.batch_size
    source = np.random.default_rng([config.first_seed, step])
    psi_B1 = torch.from_numpy(source.uniform(config.lowest_psi, 1, (count, 1)).astype(np.float32))
    crossover = np.where(source.random(count) < 0.5, spec.num_ws, source.integers(1, spec.num_ws, count))
    first = config.first_seed + 2 * count * step
    w_BD = sampler.ws(range(first, first + 2 * count), psi=1.0)[0][:, 0]
    w_BD = torch.lerp(mean_D, w_BD, psi_B1.repeat(2, 1).to(mean_D.device))
    is_second_BL = torch.arange(spec.num_ws)[None] >= torch.from_numpy(crossover)[:, None]
    ws_BLD = torch.where(is_second_BL[:, :, None].to(mean_D.device), w_BD[count:, None], w_BD[:count, None])
    parts = [sampler.of_ws(part_BLD).images_BCHW for part_BLD in ws_BLD.split(sampler.numerics.batch_size)]
    return _Samples(torch.cat(parts), ws_BLD)


def trained_encoder(
    sampler: Sampler, config: EncoderConfig, seed: int, folder: Path, checkpoint_sha256: str
) -> LatentEncoder:
    """The folder's encoder, trained first if it is not there, from where a killed training has left off.

    The same configuration, generator and device give the same weights. Raises OutputError where the file is damaged.
    """
    encoder = LatentEncoder(sampler.generator.spec)
    purpose = {"config": config.model_dump(), "seed": seed, "checkpoint_sha256": checkpoint_sha256}
    path = folder / ENCODER_FILE
    if not path.exists():
        weights = _train(sampler, config, seed, folder / _STATE)
        write_atomically(path, save_with_json(weights, json.dumps(purpose, sort_keys=True)))
    _load(encoder, path, purpose)
    return encoder.to(sampler.device).eval().requires_grad_(False)


def _load(encoder: LatentEncoder, path: Path, purpose: dict[str, Any]) -> None:
    try:
        found, weights = load_with_json(path.read_bytes())
        if found != purpose:
            raise OutputError(f"{path}: was trained with other settings or for another checkpoint; use a new output")
        encoder.load_state_dict(weights)
    except (DamagedFileError, ForeignFileError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise OutputError(f"{path}: cannot be used ({reason}); delete it and rerun to train it again") from error


def _train(sampler: Sampler, config: EncoderConfig, seed: int, state: Path) -> dict[str, Tensor]:
    training = _Training(sampler, config, seed, state)
    training.restore()
    while training.num_steps < training.total_steps:
        error, latent = training.run_to_save()
        done = training.num_steps * config.batch_size
        log(f"encoder: {done:,} of {config.samples:,} images, loss {error:.3f}, error of latents {latent:.3f}")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in training.encoder.state_dict().items()}


class _Training:
    """The projector's loss of the guess's image, and the guess's squared error in units of latents' variance, by AdamW
    with a rate that falls as a cosine. Each image is new, so that none need be kept."""

    def __init__(self, sampler: Sampler, config: EncoderConfig, seed: int, state: Path) -> None:
        self.sampler, self.config, self.state, self.num_steps = sampler, config, state, 0
        self.total_steps = max(1, config.samples // config.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "encoder", "weights"))
            self.encoder = LatentEncoder(sampler.generator.spec)
        mean_D, spread_D = latent_spread(sampler, config.first_seed)
        self.encoder.mean_D.copy_(mean_D)
        self.encoder.spread_D.copy_(spread_D)
        self.encoder.to(sampler.device)
        self.optimiser = torch.optim.AdamW(self.encoder.parameters(), lr=config.learning_rate, weight_decay=1e-4)

    def restore(self) -> None:
        """Continue where a state was saved. A damaged one is told apart by `read_tensors`."""
        found = latest_state(self.state)
        if found is None:
            return
        num_steps = read_progress(found)["num_steps"]
        assert isinstance(num_steps, int)
        self.encoder.load_state_dict(read_tensors(found, "network", self.encoder.state_dict()))
        moments = read_tensors(found, "moments")
        for name, parameter in self.encoder.named_parameters():
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(num_steps)),
                **{key: torch.empty_like(parameter).copy_(moments[f"{name}/{key}"]) for key in _MOMENTS},
            }
        self.num_steps = num_steps

    def run_to_save(self) -> tuple[float, float]:
        """Take the steps up to the next saved state; both losses' means."""
        self.encoder.train()
        last = min(self.total_steps, (self.num_steps // _STEPS_PER_STATE + 1) * _STEPS_PER_STATE)
        losses = []
        while self.num_steps < last:
            share = self.num_steps / self.total_steps
            self.optimiser.param_groups[0]["lr"] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
            losses.append(self._step(_draw(self.sampler, self.config, self.encoder.mean_D, self.num_steps)))
            self.num_steps += 1
        self._save()
        image, latent = np.mean(losses, axis=0).tolist()
        return image, latent

    def _step(self, samples: _Samples) -> tuple[float, float]:
        encoder, noise = self.encoder, self.sampler.config.noise
        assert noise != "per_seed"
        with repeatable_kernels(gradients=True):
            offsets_BLD = encoder.offsets(samples.images_BCHW)
            wanted_BLD = (samples.ws_BLD - encoder.mean_D) / encoder.spread_D
            latent = (offsets_BLD - wanted_BLD).square().mean()
            guess_BLD = encoder.mean_D + offsets_BLD * encoder.spread_D
            images_BCHW = self.sampler.generator.synthesize(guess_BLD, noise).images_BCHW
            image = ReconstructionLoss(ReconstructionLossConfig(), samples.images_BCHW)(images_BCHW).mean()
            self.optimiser.zero_grad(set_to_none=True)
            (image + self.config.latent * latent).backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            self.optimiser.step()
        return float(image.detach()), float(latent.detach())

    def _save(self) -> None:
        moments = {
            f"{name}/{key}": self.optimiser.state[parameter][key]
            for name, parameter in self.encoder.named_parameters()
            for key in _MOMENTS
        }
        groups = {"network": self.encoder.state_dict(), "moments": moments}
        write_state(self.state, self.num_steps, groups, {"num_steps": self.num_steps})
