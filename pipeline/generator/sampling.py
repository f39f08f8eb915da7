"""Seeds to images: a sample's identity is its seed.

z = numpy.random.RandomState(seed).randn(z_dim), so that with constant noise, the same psi and class, NVIDIA's tools
show the same picture. Every batch is padded to one fixed size, because the size of a batch chooses kernels and
thereby bits: a picture does not depend on which seeds were asked for beside its own.

Shape suffixes: B batch, C channels, H height, W width, Z latent or classes, D style, L rows of w.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, row_resolution
from labelmill.pipeline.process.device import best_precision, repeatable_kernels
from labelmill.pipeline.process.host_copy import to_device
from labelmill.pipeline.process.memory import free_bytes
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.sample import sample_key
from labelmill.schemas.secrets import plain_address
from labelmill.schemas.section import SEED_LIMIT

Item = TypeVar("Item")

BatchNoise = Literal["const", "none"] | tuple[Tensor, ...]
"""What `Generator.synthesize` takes: stored buffers, nothing, or a tensor [B, 1, h, w] for each convolution."""

# Keeps the numbers of noise apart from those of z, which RandomState(seed) alone gives.
_NOISE_STREAM = 1


@dataclass(frozen=True)
class Batch:
    """One synthesis, on the device."""

    seeds: tuple[int, ...]
    class_ids: tuple[int | None, ...]
    ws_BLD: Tensor
    """Truncated rows of w, float32."""
    images_BCHW: Tensor
    """float32, nominally in [-1, 1]."""
    noise: BatchNoise
    features: dict[str, Tensor] = field(default_factory=dict)
    """Tapped activations [B, C, h, w] by convolution name."""
    names: tuple[str, ...] | None = None
    """Of what came from no seed, such as photos; None where seeds name samples."""

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def keys(self) -> tuple[str, ...]:
        """What each sample is called."""
        return tuple(map(sample_key, self.seeds)) if self.names is None else self.names

    def rgb(self) -> Tensor:
        """The images [B, 3, H, W] float32, gray ones with three equal channels: for models that know RGB alone."""
        return self.images_BCHW.float().expand(-1, 3, -1, -1)

    def padded(self, size: int) -> "Batch":
        """At least so many samples, the last one repeated."""
        last = len(self) - 1
        return self if len(self) >= size else self.select([min(position, last) for position in range(size)])

    def select(self, indices: Sequence[int]) -> "Batch":
        """The samples at these positions, which may repeat."""
        index = torch.tensor(list(indices), device=self.ws_BLD.device)
        return Batch(
            seeds=tuple(self.seeds[i] for i in indices),
            class_ids=tuple(self.class_ids[i] for i in indices),
            ws_BLD=self.ws_BLD[index],
            images_BCHW=self.images_BCHW[index],
            noise=self.noise if isinstance(self.noise, str) else tuple(n_B1HW[index] for n_B1HW in self.noise),
            features={name: tensor[index] for name, tensor in self.features.items()},
            names=None if self.names is None else tuple(self.names[i] for i in indices),
        )


def latents(seeds: Sequence[int], z_dim: int) -> Tensor:
    """z [B, z_dim] float32 on the CPU, each row from its seed alone. Raises ValueError on seeds past 2^32."""
    for seed in seeds:
        if not 0 <= seed < SEED_LIMIT:
            raise ValueError(f"seed {seed}: must be 0 or more and below 2^32 = {SEED_LIMIT}")
    source = np.random.RandomState()  # seeding one anew takes a twelfth of the time that making another does
    rows = []
    for seed in seeds:
        source.seed(seed)
        rows.append(source.randn(z_dim))
    return torch.from_numpy(np.asarray(rows, dtype=np.float32).reshape(len(seeds), z_dim))


def noise_of_seeds(seeds: Sequence[int], spec: GeneratorSpec) -> tuple[Tensor, ...]:
    """Noise [B, 1, h, w] float32 on the CPU for each convolution in the order of rows, from each seed alone."""
    sources = [np.random.default_rng([seed, _NOISE_STREAM]) for seed in seeds]
    noise = []
    for row in range(spec.num_ws - 1):
        shape = (1, *spec.size_at(row_resolution(row)))
        drawn = np.stack([source.standard_normal(shape, dtype=np.float32) for source in sources])
        noise.append(torch.from_numpy(drawn))
    return tuple(noise)


def to_uint8(images_BCHW: Tensor) -> Tensor:
    """Images in [-1, 1] to bytes [B, H, W, C]: x * 127.5 + 128, cut off at 0 and 255, as NVIDIA's tools do."""
    scaled = images_BCHW.float() * 127.5 + 128
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class ClassChooser:
    """The class of each seed, from the seed alone. Raises ConfigError where classes and generator do not fit."""

    def __init__(self, config: GeneratorConfig, c_dim: int) -> None:
        self.c_dim = c_dim
        weights = _class_weights(config, c_dim)
        self.ids = tuple(weights)
        total = sum(weights.values())
        self.upper_bounds = np.cumsum([weight / total for weight in weights.values()]) if weights else None

    def __call__(self, seed: int) -> int | None:
        if self.upper_bounds is None:
            return None
        digest = hashlib.sha256(f"class of seed {seed}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        index = int(np.searchsorted(self.upper_bounds, position, side="right"))
        return self.ids[min(index, len(self.ids) - 1)]

    def one_hot(self, class_ids: Sequence[int | None]) -> Tensor | None:
        """Classes [B, c_dim] float32 on the CPU, None for an unconditional generator."""
        if self.upper_bounds is None:
            return None
        classes_BZ = torch.zeros(len(class_ids), self.c_dim)
        for row, class_id in enumerate(class_ids):
            assert class_id is not None
            classes_BZ[row, class_id] = 1.0
        return classes_BZ


def _class_weights(config: GeneratorConfig, c_dim: int) -> dict[int, float]:
    """Positive weights by class id in ascending order; empty for an unconditional generator."""
    classes, source = config.classes, plain_address(config.checkpoint)
    if c_dim == 0:
        if classes is not None:
            raise ConfigError(f"generator.classes: {classes!r}, but {source} is not class-conditional; remove the key")
        return {}
    if classes is None:
        raise ConfigError(
            f"generator.classes: missing, but {source} is conditional on {c_dim} classes; give a list of ids "
            f"from 0 to {c_dim - 1}, a mapping of id to weight, or `all`"
        )
    if classes == "all":
        return dict.fromkeys(range(c_dim), 1.0)
    weights = dict(classes) if isinstance(classes, dict) else dict.fromkeys(classes, 1.0)
    unknown = [class_id for class_id in weights if not 0 <= class_id < c_dim]
    if unknown:
        raise ConfigError(f"generator.classes: {unknown} not in 0 to {c_dim - 1}, the classes of {source}")
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or sum(weights.values()) <= 0:
        raise ConfigError(f"generator.classes: weights must be 0 or more, one above 0, got {classes!r}")
    return {class_id: weights[class_id] for class_id in sorted(weights) if weights[class_id] > 0}


class Sampler:
    """A generator with its settings, on a device: seeds to batches.

    Raises ConfigError where configuration and generator do not fit together.
    """

    def __init__(
        self,
        generator: Generator,
        config: GeneratorConfig,
        numerics: NumericsConfig,
        device: str | torch.device,
    ) -> None:
        self.device = torch.device(device)
        if numerics.precision == "auto":
            numerics = numerics.model_copy(update={"precision": best_precision(self.device)})
        num_ws, cutoff = generator.spec.num_ws, config.truncation_cutoff
        if cutoff is not None and cutoff > num_ws:
            raise ConfigError(
                f"generator.truncation_cutoff: {cutoff}, but {plain_address(config.checkpoint)} has {num_ws} rows of "
                f"w; 1 to {num_ws}, or null for all of them"
            )
        if numerics.precision != "float32" and self.device.type != "cuda":
            raise ConfigError(
                f"numerics.precision: {numerics.precision} needs a GPU, this run is on the "
                f"{self.device.type.upper()}; use float32"
            )
        self.config = config
        self.numerics = numerics
        """With the precision that `auto` means on the device."""
        self.choose_class = ClassChooser(config, generator.spec.c_dim)
        self.generator = generator.eval().requires_grad_(False).to(self.device)
        self.generator.compute_dtype = getattr(torch, numerics.precision)

    def ws(self, seeds: Sequence[int], psi: float | None = None) -> tuple[Tensor, tuple[int | None, ...]]:
        """Truncated ws [B, num_ws, w_dim] of any number of seeds, and their classes.

        psi stands for the configured truncation_psi.
        """
        class_ids = tuple(self.choose_class(seed) for seed in seeds)
        size = self.numerics.batch_size
        parts = [
            self._map(seeds[start : start + size], class_ids[start : start + size])
            for start in range(0, len(seeds), size)
        ]
        psi = self.config.truncation_psi if psi is None else psi
        with repeatable_kernels():
            return self.generator.truncate(torch.cat(parts), psi, self.config.truncation_cutoff), class_ids

    def _map(self, seeds: Sequence[int], class_ids: Sequence[int | None]) -> Tensor:
        size = self.numerics.batch_size
        z_BZ = to_device(latents(_padded(seeds, size), self.generator.spec.z_dim), self.device)
        classes_BZ = self.choose_class.one_hot(_padded(class_ids, size))
        with repeatable_kernels():
            ws_BLD = self.generator.map(z_BZ, None if classes_BZ is None else to_device(classes_BZ, self.device))
            return ws_BLD[: len(seeds)].contiguous()

    def sample(self, seeds: Sequence[int], layers: Collection[str] = (), edit_D: Tensor | None = None) -> Batch:
        """Synthesise 1 to batch_size seeds, tapping `layers`. edit_D: added to every row of w, after truncation."""
        size = self.numerics.batch_size
        if not 1 <= len(seeds) <= size:
            raise ValueError(f"a batch takes 1 to {size} seeds, got {len(seeds)}")
        ws_BLD, class_ids = self.ws(_padded(seeds, size))
        if edit_D is not None:
            ws_BLD = ws_BLD + edit_D
        noise = self.noise(_padded(seeds, size))
        with repeatable_kernels():
            synthesis = self.generator.synthesize(ws_BLD, noise, taps=tuple(layers))
        whole = Batch(tuple(_padded(seeds, size)), class_ids, ws_BLD, synthesis.images_BCHW, noise, synthesis.features)
        return whole if len(seeds) == size else whole.select(range(len(seeds)))

    def batches(
        self, seeds: Sequence[int], layers: Collection[str] = (), edit_D: Tensor | None = None
    ) -> Iterator[Batch]:
        """Synthesise any number of seeds in order, batch_size of them at once; see `sample`."""
        size = self.numerics.batch_size
        return (self.sample(seeds[start : start + size], layers, edit_D) for start in range(0, len(seeds), size))

    def of_ws(self, ws_BLD: Tensor, layers: Collection[str] = (), names: Sequence[str] | None = None) -> Batch:
        """Synthesise 1 to batch_size ws [B, num_ws, w_dim] float32 as they are, which came from no seed, tapping
        `layers`. The batch's seeds number its samples; noise per seed is a ValueError. names: of the samples."""
        size, count = self.numerics.batch_size, len(ws_BLD)
        if not 1 <= count <= size:
            raise ValueError(f"a batch takes 1 to {size} rows of ws, got {count}")
        if self.config.noise == "per_seed":
            raise ValueError("noise: per_seed, but these ws came from no seed; const or none works")
        padded_BLD = torch.cat([ws_BLD, ws_BLD[-1:].expand(size - count, -1, -1)]).to(self.device)
        with repeatable_kernels():
            synthesis = self.generator.synthesize(padded_BLD, self.config.noise, taps=tuple(layers))
        images_BCHW = synthesis.images_BCHW
        whole = Batch(
            tuple(range(size)),
            (None,) * size,
            padded_BLD,
            images_BCHW,
            self.config.noise,
            synthesis.features,
            None if names is None else tuple(_padded(names, size)),
        )
        return whole if count == size else whole.select(range(count))

    def noise(self, seeds: Sequence[int]) -> BatchNoise:
        """The noise that the configuration gives these seeds."""
        if self.config.noise != "per_seed":
            return self.config.noise
        drawn = noise_of_seeds(seeds, self.generator.spec)
        return tuple(to_device(noise_B1HW, self.device) for noise_B1HW in drawn)


def check_memory(sampler: Sampler) -> None:
    """Raises ConfigError where a batch does not fit into the device's memory."""
    spec, size = sampler.generator.spec, sampler.numerics.batch_size
    per_image, free = spec.bytes_to_synthesize(spec.resolution), free_bytes(sampler.device)
    if size * per_image <= free:
        return
    fits = f"{free // per_image} fit" if free >= per_image else "not even one image fits"
    raise ConfigError(
        f"numerics.batch_size: {size} images of {spec.size_in_words} need {size * per_image / 1e9:.1f} GB beside the "
        f"generator, and the {sampler.device.type.upper()} has {free / 1e9:.1f} GB left; {fits}"
    )


def _padded(items: Sequence[Item], size: int) -> list[Item]:
    return [*items, *([items[-1]] * (size - len(items)))]
