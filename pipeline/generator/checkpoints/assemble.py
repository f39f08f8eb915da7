"""Networks from named tensors: the configuration follows from names and shapes, then everything must fit.

A network is only laid out when its size is in proportion to the file: one long bias alone could otherwise announce
layers of its square.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.generator.checkpoints.inert import MAX_WIDTH, OTHER_NETWORK, UnreadableError
from labelmill.pipeline.generator.checkpoints.named_tensors import NamedTensor, fill_network
from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.networks import (
    Architecture,
    Generator,
    GeneratorSpec,
    SynthesisError,
    normalise_second_moment,
)

NUM_AVERAGED_LATENTS = 4096
_SEED = 0
# Half precision in the file doubles, noise that the file lacks is added: 12 MiB at 1024 px.
_MAX_GROWTH = 4
_ALLOWANCE_BYTES = 64 * 2**20
_AVERAGE_GRID = 2.0**20
_AVERAGED_NUMBERS = 2**20


@dataclass(frozen=True)
class ReadNetworks:
    """What a format's reader returns."""

    format: str
    generator: Generator
    discriminator: Discriminator | None
    """None unless asked for and present."""
    has_discriminator: bool
    provenance: dict[str, str] = field(default_factory=dict)


def build_generator(
    tensors: Mapping[str, NamedTensor], *, conv_clamp: float | None, num_file_bytes: int
) -> tuple[Generator, dict[str, str]]:
    """A generator (float32, gradients off) from tensors under NVIDIA's names, and what had to be filled in.

    Noise buffers and w_avg may be missing; noise strengths that are missing mean none. Raises UnreadableError.
    """
    spec = infer_spec({name: tensor.shape for name, tensor in tensors.items()}, conv_clamp)
    check_generator_size(spec, num_file_bytes)
    generator = Generator(spec)
    state, provenance = _without_omissions(generator, tensors)
    fill_network(generator, state)
    generator.eval().requires_grad_(False)
    if "mapping.w_avg" not in tensors:
        generator.mapping.w_avg = estimate_average(generator)
        provenance["w_avg"] = f"estimated: mean of {NUM_AVERAGED_LATENTS} latents of RandomState({_SEED})"
    return generator, provenance


def infer_spec(shapes: Mapping[str, tuple[int, ...]], conv_clamp: float | None) -> GeneratorSpec:
    """The configuration that tensors of these names and shapes have. Raises UnreadableError."""

    def axis(name: str, index: int) -> int:
        shape = shapes.get(name)
        if shape is None or len(shape) <= index:
            raise UnreadableError(f"incomplete: a StyleGAN2 generator has {name}, this file does not", OTHER_NETWORK)
        if not 1 <= shape[index] <= MAX_WIDTH:
            raise UnreadableError(f"damaged: {name} has shape {shape}")
        return shape[index]

    resolution = 4
    blocks = {name.split(".")[1] for name in shapes if name.startswith("synthesis.")}
    while f"b{2 * resolution}" in blocks:
        resolution *= 2
    sizes = [2**power for power in range(2, resolution.bit_length())]
    num_layers = 0
    while f"mapping.fc{num_layers}.weight" in shapes:
        num_layers += 1
    w_dim = axis("synthesis.b4.conv1.affine.weight", 1)
    is_conditional = "mapping.embed.weight" in shapes
    if is_conditional and axis("mapping.embed.weight", 0) != w_dim:
        raise embedding_width_error(axis("mapping.embed.weight", 0), w_dim)
    hidden = axis("mapping.fc0.weight", 0)
    try:
        return GeneratorSpec(
            resolution=resolution,
            z_dim=axis("mapping.fc0.weight", 1) - (w_dim if is_conditional else 0),
            w_dim=w_dim,
            c_dim=axis("mapping.embed.weight", 1) if is_conditional else 0,
            mapping_layers=num_layers,
            mapping_width=None if num_layers < 2 or hidden == w_dim else hidden,
            channels=tuple((size, axis(f"synthesis.b{size}.conv1.weight", 0)) for size in sizes),
            architecture=_architecture(shapes),
            conv_clamp=conv_clamp,
            img_channels=axis(f"synthesis.b{resolution}.torgb.weight", 0),
            const_size=(axis("synthesis.b4.const", 1), axis("synthesis.b4.const", 2)),
        )
    except SynthesisError as error:
        raise UnreadableError(f"not a StyleGAN2 generator that can be used: {error}", OTHER_NETWORK) from error


def embedding_width_error(width: int, w_dim: int) -> UnreadableError:
    """What to raise for a class embedding of another width than w."""
    return UnreadableError(
        f"unknown architecture option 'embed_features' = {width}: its class embedding has another width than w "
        f"({w_dim}), which this StyleGAN2 cannot have",
        "Give a network whose embedding is as wide as w",
    )


def _architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    if "synthesis.b8.skip.weight" in shapes:
        return "resnet"
    return "skip" if "synthesis.b4.torgb.weight" in shapes else "orig"


def _without_omissions(
    generator: Generator, tensors: Mapping[str, NamedTensor]
) -> tuple[dict[str, NamedTensor | Tensor], dict[str, str]]:
    """The tensors with resampling filters, missing noise and a placeholder for a missing average added."""
    expected, provenance = generator.state_dict(), {}
    state: dict[str, NamedTensor | Tensor] = dict(tensors)
    missing_noise = [n for n in expected if n.endswith(".noise_const") and n not in tensors]
    if missing_noise:
        source = np.random.RandomState(_SEED)
        for name in missing_noise:
            drawn = source.randn(*expected[name].shape).astype(np.float32)
            state[name] = torch.from_numpy(drawn)
        provenance["noise"] = f"{len(missing_noise)} buffers, absent from the file: RandomState({_SEED})"
    for name in expected:
        if name.endswith(".noise_strength") and name not in tensors:
            state[name] = torch.zeros([])
    if "mapping.w_avg" not in tensors:
        state["mapping.w_avg"] = torch.zeros(generator.spec.w_dim)
    return state, provenance


def check_generator_size(spec: GeneratorSpec, num_file_bytes: int) -> None:
    """Raises UnreadableError when a generator would be far larger than its file."""
    widths = dict(spec.channels)
    hidden = max(spec.w_dim, spec.mapping_width or 0)
    numbers = spec.w_dim * (spec.w_dim + spec.c_dim) + hidden * (spec.z_dim + hidden * spec.mapping_layers)
    numbers += spec.channels[0][1] * spec.const_size[0] * spec.const_size[1]
    for size, width in spec.channels:
        below = widths.get(size // 2, width)
        height, across = spec.size_at(size)
        numbers += width * (10 * below + 9 * width) + spec.w_dim * (below + 2 * width) + 2 * height * across
    _check_proportion(numbers, num_file_bytes)


def _check_discriminator_size(
    channels: list[tuple[int, int]], lowest_size: tuple[int, int], c_dim: int, num_file_bytes: int
) -> None:
    lowest, (height, width) = channels[0][1], lowest_size
    numbers = lowest * ((10 + height * width) * lowest + 9 * lowest + c_dim)
    for (_, below), (_, width) in pairwise(channels):
        numbers += width * (9 * width + 10 * below)
    _check_proportion(numbers, num_file_bytes)


def _check_proportion(num_numbers: int, num_file_bytes: int) -> None:
    if 4 * num_numbers > _MAX_GROWTH * num_file_bytes + _ALLOWANCE_BYTES:
        raise UnreadableError(
            f"damaged: a file of {num_file_bytes:,} bytes describes a network of {4 * num_numbers:,} bytes"
        )


def estimate_average(generator: Generator) -> Tensor:
    """The mean of w [w_dim] over latents of a fixed seed, classes in turn; for files that lack it.

    In float64 and on a grid of 2^-20, far below its sampling error, so that no thread count changes a bit.
    """
    spec, mapping = generator.spec, generator.mapping.double()
    source, total_D = np.random.RandomState(_SEED), torch.zeros(spec.w_dim, dtype=torch.float64)
    rows = max(1, min(NUM_AVERAGED_LATENTS, _AVERAGED_NUMBERS // (spec.z_dim + spec.w_dim)))
    for start in range(0, NUM_AVERAGED_LATENTS, rows):
        ids = torch.arange(start, min(start + rows, NUM_AVERAGED_LATENTS))
        x_BF = normalise_second_moment(torch.from_numpy(source.randn(len(ids), spec.z_dim)))
        if spec.c_dim > 0:
            # The embedding of a one-hot class, without the one-hot matrix: classes may be many.
            chosen_BD = mapping.embed.weight.t()[ids % spec.c_dim] * mapping.embed.weight_gain
            embedded_BD = chosen_BD + mapping.embed.bias * mapping.embed.bias_gain
            x_BF = torch.cat([x_BF, normalise_second_moment(embedded_BD)], dim=1)
        for index in range(spec.mapping_layers):
            x_BF = mapping.get_submodule(f"fc{index}")(x_BF)
        total_D += x_BF.sum(dim=0)
    mapping.float()
    return (torch.round(total_D / NUM_AVERAGED_LATENTS * _AVERAGE_GRID) / _AVERAGE_GRID).float()


def build_discriminator(
    tensors: Mapping[str, NamedTensor],
    *,
    spec: GeneratorSpec,
    conv_clamp: float | None,
    group_size: int,
    num_file_bytes: int,
) -> Discriminator:
    """A discriminator from tensors under NVIDIA's names. Raises UnreadableError; only residual ones work.

    spec: of the generator, whose images it looks at.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def axis(name: str, index: int) -> int:
        if len(shapes.get(name, ())) <= index or not 1 <= shapes[name][index] <= MAX_WIDTH:
            raise UnreadableError(
                f"its discriminator has no usable {name}; residual ones, StyleGAN2's standard, work", ""
            )
        return shapes[name][index]

    channels = [(4, axis("b4.conv.weight", 0))]
    while f"b{2 * channels[-1][0]}.conv0.weight" in shapes:
        size = 2 * channels[-1][0]
        channels.append((size, axis(f"b{size}.conv0.weight", 0)))
    c_dim = axis("mapping.embed.weight", 1) if "mapping.embed.weight" in shapes else 0
    image_channels = axis(f"b{channels[-1][0]}.fromrgb.weight", 1)
    _check_discriminator_size(channels, spec.const_size, c_dim, num_file_bytes)
    discriminator = Discriminator(
        tuple(channels),
        c_dim=c_dim,
        image_channels=image_channels,
        lowest_size=spec.const_size,
        conv_clamp=conv_clamp,
        group_size=group_size,
    )
    fill_network(discriminator, tensors)
    return discriminator.eval().requires_grad_(False)
