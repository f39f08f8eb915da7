"""The names that libraries give to the tensors of a StyleGAN2 generator, as rules that lead to NVIDIA's.

Known: NVIDIA's PyTorch repositories; rosinality's stylegan2-pytorch and the many projects that copied it; BasicSR,
MMGeneration (MMagic), GenForce and Hammer, whose networks are the same under other names.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from labelmill.pipeline.generator.checkpoints.named_tensors import Conversion, unchanged

LICENCE_NOTE = (
    "not stated in the file; weights converted from NVIDIA's keep their Nvidia Source Code License-NC (no commercial "
    "use), weights of your own training are yours"
)
NVIDIA_LICENCE_NOTE = (
    "not stated in the file; weights published by NVIDIA are under the Nvidia Source Code License-NC (research and "
    "evaluation only, no commercial use), weights of your own training are yours"
)


@dataclass(frozen=True)
class Target:
    """Where a stored tensor goes (NVIDIA's name), how its axes are arranged, how its values are adjusted."""

    name: str
    arrange: Conversion = unchanged
    adjust: Conversion = unchanged


FILTER = Target("a resampling filter")
"""Of a tensor that is only checked."""


@dataclass(frozen=True)
class Layout:
    """One library's names."""

    format: str
    code: str
    """Whose code it is, for messages."""
    constant: str
    """The name of the constant that synthesis begins with, which tells the library."""
    target_of: Callable[[str], Target | None]
    """None for a name that the network does not have."""
    evidence: tuple[str, ...] = ()
    """Endings of names of which one must be there, where two libraries share the constant's name."""
    has_square_mapping: bool = False
    """Whether all mapping layers have the width of w: latents too."""
    required_module: str = ""
    """The ending of a module's name that tells this network from another one with the same tensors."""
    clamps: bool = False
    """Whether modules clamp at their attribute `conv_clamp`."""
    assumed: str = ""
    """What a state dict of this library does not say."""
    licence: str = LICENCE_NOTE

    def fits(self, names: Collection[str]) -> bool:
        """Whether tensors of these names, the constant's among them, are of this library."""
        return not self.evidence or any(name.endswith(self.evidence) for name in names)


def _first(values: Tensor) -> Tensor:
    return values[0]


def _first_plane(values: Tensor) -> Tensor:
    return values[0, 0]


def _flat(values: Tensor) -> Tensor:
    return values.reshape(-1)


def _number(values: Tensor) -> Tensor:
    return values.reshape(())


def _turned(kernel_OIHW: Tensor) -> Tensor:
    return kernel_OIHW.flip(2, 3)


def _plus_one(values: Tensor) -> Tensor:
    return values + 1


def _row_layer(row: int) -> str:
    """NVIDIA's convolution for a row of w, which is also the number of its noise buffer."""
    return f"synthesis.b{4 << (row + 1) // 2}.conv{1 if row % 2 == 0 else 0}"


# ---- rosinality and its descendants: conv1, convs.0, convs.1, ..., to_rgb1, to_rgbs.0, ... ----


@dataclass(frozen=True)
class _Descendant:
    """How one library calls the parts. Patterns are regular expressions of whole names."""

    constant: str
    mapping: str
    """Pattern with the number, from 1, and the parameter; the weight's ends with `weight` or `weight_orig`."""
    noise: str
    """Pattern with the row."""
    first: str
    others: str
    parts: Mapping[str, tuple[str, Conversion]]
    """NVIDIA's names of the tensors of a layer and the arrangement of their axes."""
    average: str = ""

    def target_of(self, name: str) -> Target | None:
        if name == self.constant:
            return Target("synthesis.b4.const", _first)
        if name == self.average:
            return Target("mapping.w_avg")
        if re.fullmatch(r"(convs\.\d{1,2}\.conv\.blur|to_rgbs\.\d{1,2}\.upsample)\.kernel", name):
            return FILTER
        match = re.fullmatch(self.mapping, name)
        if match is not None:
            part = "bias" if match[2] == "bias" else "weight"
            return Target(f"mapping.fc{int(match[1]) - 1}.{part}")
        match = re.fullmatch(self.noise, name)
        if match is not None:
            return Target(f"{_row_layer(int(match[1]))}.noise_const", _first_plane)
        match = re.fullmatch(rf"({self.first}|{self.others}\.\d{{1,2}}|to_rgb1|to_rgbs\.\d{{1,2}})\.(.+)", name)
        if match is None or match[2] not in self.parts:
            return None
        part, arrange = self.parts[match[2]]
        return Target(f"{self._module(match[1])}.{part}", arrange)

    def _module(self, name: str) -> str:
        """NVIDIA's name of conv1, convs.N, to_rgb1, to_rgbs.N."""
        family, _, index = name.partition(".")
        if family == self.first:
            return "synthesis.b4.conv1"
        if family == self.others:
            return _row_layer(int(index) + 1)
        return "synthesis.b4.torgb" if family == "to_rgb1" else f"synthesis.b{8 << int(index)}.torgb"


_ROSINALITY = _Descendant(
    constant="input.input",
    mapping=r"style\.([1-9]\d?)\.(weight|bias)",
    noise=r"noises\.noise_(\d{1,2})",
    first="conv1",
    others="convs",
    parts={
        "conv.weight": ("weight", _first),
        "conv.modulation.weight": ("affine.weight", unchanged),
        "conv.modulation.bias": ("affine.bias", unchanged),
        "noise.weight": ("noise_strength", _number),
        "activate.bias": ("bias", _flat),
        "bias": ("bias", _flat),
    },
)
_BASICSR = _Descendant(
    constant="constant_input.weight",
    mapping=r"style_mlp\.([1-9]\d?)\.(weight|bias)",
    noise=r"noises\.noise(\d{1,2})",
    first="style_conv1",
    others="style_convs",
    parts={
        "modulated_conv.weight": ("weight", _first),
        "modulated_conv.modulation.weight": ("affine.weight", unchanged),
        "modulated_conv.modulation.bias": ("affine.bias", unchanged),
        "weight": ("noise_strength", _number),
        "activate.bias": ("bias", _flat),
        "bias": ("bias", _flat),
    },
)
_MMGENERATION = _Descendant(
    constant="constant_input.input",
    mapping=r"style_mapping\.([1-9]\d?)\.(linear\.weight_orig|bias)",
    noise=r"injected_noise_(\d{1,2})",
    first="conv1",
    others="convs",
    parts={
        "conv.weight_orig": ("weight", _first),
        "conv.style_modulation.linear.weight_orig": ("affine.weight", unchanged),
        "conv.style_modulation.bias": ("affine.bias", unchanged),
        "noise_injector.weight": ("noise_strength", _number),
        "activate.bias": ("bias", _flat),
        "bias": ("bias", _flat),
    },
    average="w_avg",
)


# ---- GenForce and Hammer: layer0, layer1, ..., output0, output1, ... ----

_GENFORCE_PARTS: dict[str, tuple[str, Conversion]] = {
    "weight": ("weight", unchanged),
    "bias": ("bias", unchanged),
    "style.weight": ("affine.weight", unchanged),
    "style.bias": ("affine.bias", unchanged),
    "noise_strength": ("noise_strength", _number),
    "noise": ("noise_const", _first_plane),
}


def _genforce_target(name: str) -> Target | None:
    """As in TensorFlow's files, kernels of upsampling layers are turned and modulations stored less 1."""
    if name == "truncation.w_avg":
        return Target("mapping.w_avg")
    if re.fullmatch(r"synthesis\.(layer\d{1,2}\.filter|upsample)\.kernel", name):
        return FILTER
    target = _numbered_target(name)
    if target is None or target.name.startswith("mapping."):
        return target
    if target.name.endswith(".affine.bias"):
        return Target(target.name, target.arrange, _plus_one)
    turned = target.name.endswith(".conv0.weight")
    return Target(target.name, target.arrange, _turned) if turned else target


def _hammer_target(name: str) -> Target | None:
    """The values are NVIDIA's."""
    if name == "w_avg":
        return Target("mapping.w_avg")
    if re.fullmatch(r"synthesis\.((layer|residual)\d{1,2}\.)?filter", name):
        return FILTER
    match = re.fullmatch(r"synthesis\.residual(\d{1,2})\.weight", name)
    if match is not None:
        return Target(f"synthesis.b{4 << int(match[1])}.skip.weight")
    match = re.fullmatch(r"mapping\.embedding\.(weight|bias)", name)
    return Target(f"mapping.embed.{match[1]}") if match is not None else _numbered_target(name)


def _numbered_target(name: str) -> Target | None:
    if name == "synthesis.early_layer.const":
        return Target("synthesis.b4.const", _first)
    match = re.fullmatch(r"mapping\.dense(\d{1,2})\.(weight|bias)", name)
    if match is not None:
        return Target(f"mapping.fc{match[1]}.{match[2]}")
    match = re.fullmatch(r"synthesis\.(layer|output)(\d{1,2})\.(.+)", name)
    if match is None or match[3] not in _GENFORCE_PARTS:
        return None
    part, arrange = _GENFORCE_PARTS[match[3]]
    module = _row_layer(int(match[2])) if match[1] == "layer" else f"synthesis.b{4 << int(match[2])}.torgb"
    return Target(f"{module}.{part}", arrange)


def _nvidia_target(name: str) -> Target | None:
    return Target(name) if name.startswith(("mapping.", "synthesis.")) else None


NVIDIA = Layout(
    format="state dict of NVIDIA's StyleGAN2",
    code="NVIDIA's code",
    constant="synthesis.b4.const",
    target_of=_nvidia_target,
    clamps=True,
    assumed=(
        "what a state dict does not hold: no conv_clamp (the stylegan3 repository's networks clamp at 256), learning "
        "rate multiplier 0.01 in the mapping; the original .pkl holds both"
    ),
    licence=NVIDIA_LICENCE_NOTE,
)
ROSINALITY = Layout(
    format="rosinality checkpoint",
    code="rosinality's code",
    constant="input.input",
    target_of=_ROSINALITY.target_of,
    has_square_mapping=True,
)
BASICSR = Layout(
    format="BasicSR checkpoint",
    code="BasicSR's StyleGAN2Generator",
    constant="constant_input.weight",
    target_of=_BASICSR.target_of,
    has_square_mapping=True,
    required_module=".smooth",
    assumed=(
        "what the file does not hold: resampling filters [1, 3, 3, 1], learning rate multiplier 0.01 in the mapping"
    ),
)
MMGENERATION = Layout(
    format="MMGeneration checkpoint",
    code="MMGeneration's StyleGANv2Generator",
    constant="constant_input.input",
    target_of=_MMGENERATION.target_of,
    has_square_mapping=True,
    assumed=(
        "what the file does not hold: channels are red, green, blue (networks trained by MMGeneration itself give "
        "blue, green, red), learning rate multiplier 0.01 in the mapping"
    ),
)
GENFORCE = Layout(
    format="GenForce checkpoint",
    code="GenForce's code",
    constant="synthesis.early_layer.const",
    target_of=_genforce_target,
    evidence=("truncation.w_avg", ".filter.kernel", "upsample.kernel"),
    assumed="what the file does not hold: no final tanh, learning rate multiplier 0.01 in the mapping",
)
HAMMER = Layout(
    format="Hammer checkpoint",
    code="Hammer's code",
    constant="synthesis.early_layer.const",
    target_of=_hammer_target,
    evidence=(".filter", "w_avg"),
    clamps=True,
    assumed=("what the file does not hold: no conv_clamp, no final tanh, learning rate multiplier 0.01 in the mapping"),
)
LAYOUTS = (NVIDIA, ROSINALITY, BASICSR, MMGENERATION, GENFORCE, HAMMER)
