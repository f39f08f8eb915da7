"""TensorFlow's names and layouts of StyleGAN2's variables, as rules that lead to NVIDIA's PyTorch ones.

Kernels are [height, width, in, out], those of upsampling layers turned by 180 degrees; dense weights are transposed;
the bias of a modulation is stored less 1.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from labelmill.pipeline.generator.checkpoints.inert import OTHER_NETWORK, UnreadableError
from labelmill.pipeline.generator.checkpoints.named_tensors import unchanged


def _transposed(values: Tensor) -> Tensor:
    return values.permute(1, 0)


def _kernel(values: Tensor) -> Tensor:
    return values.permute(3, 2, 0, 1)


def _turned(kernel_OIHW: Tensor) -> Tensor:
    return kernel_OIHW.flip(2, 3)


def _plus_one(values: Tensor) -> Tensor:
    return values + 1


def _first(values: Tensor) -> Tensor:
    return values[0]


def _first_plane(values: Tensor) -> Tensor:
    return values[0, 0]


Conversion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """Variables whose names match, and where they go: a template over the match's groups, and conversions."""

    pattern: re.Pattern[str]
    template: str
    arrange: Conversion
    adjust: Conversion = unchanged


def _rules(*rows: tuple[str, str, Conversion] | tuple[str, str, Conversion, Conversion]) -> tuple[Rule, ...]:
    return tuple(Rule(re.compile(row[0]), *row[1:]) for row in rows)


def _layer_rules(ours: str, theirs: str, adjust: Conversion = unchanged) -> tuple[Rule, ...]:
    """A modulated layer at each resolution; `adjust` is for its kernel."""
    name = rf"synthesis/(\d+)x\1/{theirs}"
    target = rf"synthesis.b\1.{ours}"
    return _rules(
        (f"{name}/weight", f"{target}.weight", _kernel, adjust),
        (f"{name}/bias", f"{target}.bias", unchanged),
        (f"{name}/noise_strength", f"{target}.noise_strength", unchanged),
        (f"{name}/mod_weight", f"{target}.affine.weight", _transposed),
        (f"{name}/mod_bias", f"{target}.affine.bias", unchanged, _plus_one),
    )


GENERATOR_RULES = (
    *_rules(
        ("dlatent_avg", "mapping.w_avg", unchanged),
        ("mapping/LabelEmbed/weight", "mapping.embed.weight", _transposed),
        ("mapping/LabelEmbed/bias", "mapping.embed.bias", unchanged),
        (r"mapping/Dense(\d+)/weight", r"mapping.fc\1.weight", _transposed),
        (r"mapping/Dense(\d+)/bias", r"mapping.fc\1.bias", unchanged),
        ("synthesis/4x4/Const/const", "synthesis.b4.const", _first),
        (r"synthesis/(\d+)x\1/Skip/weight", r"synthesis.b\1.skip.weight", _kernel, _turned),
    ),
    *_layer_rules("conv1", "Conv"),
    *_layer_rules("conv0", "Conv0_up", _turned),
    *_layer_rules("conv1", "Conv1"),
    *_layer_rules("torgb", "ToRGB"),
)
DISCRIMINATOR_RULES = _rules(
    (r"(\d+)x\1/FromRGB/weight", r"b\1.fromrgb.weight", _kernel),
    (r"(\d+)x\1/FromRGB/bias", r"b\1.fromrgb.bias", unchanged),
    (r"(\d+)x\1/Conv0/weight", r"b\1.conv0.weight", _kernel),
    (r"(\d+)x\1/Conv0/bias", r"b\1.conv0.bias", unchanged),
    (r"(\d+)x\1/Conv1_down/weight", r"b\1.conv1.weight", _kernel),
    (r"(\d+)x\1/Conv1_down/bias", r"b\1.conv1.bias", unchanged),
    (r"(\d+)x\1/Skip/weight", r"b\1.skip.weight", _kernel),
    ("4x4/Conv/weight", "b4.conv.weight", _kernel),
    ("4x4/Conv/bias", "b4.conv.bias", unchanged),
    ("4x4/Dense0/weight", "b4.fc.weight", _transposed),
    ("4x4/Dense0/bias", "b4.fc.bias", unchanged),
    ("Output/weight", "b4.out.weight", _transposed),
    ("Output/bias", "b4.out.bias", unchanged),
    ("LabelEmbed/weight", "mapping.embed.weight", _transposed),
    ("LabelEmbed/bias", "mapping.embed.bias", unchanged),
    (r"Mapping(\d+)/weight", r"mapping.fc\1.weight", _transposed),
    (r"Mapping(\d+)/bias", r"mapping.fc\1.bias", unchanged),
)
_NOISE = re.compile(r"synthesis/noise(\d+)")
# Progress of progressive growing, a leftover that StyleGAN2 does not use.
IGNORED = frozenset({"lod", "synthesis/lod"})


def target_of(name: str, rules: tuple[Rule, ...]) -> tuple[str, Conversion, Conversion]:
    """Our name for a variable, how to arrange its axes, how to adjust its values. Raises UnreadableError."""
    noise = _NOISE.fullmatch(name)
    if noise is not None and len(noise[1]) < 4:
        index = int(noise[1])
        layer = "conv1" if index % 2 == 0 else "conv0"
        return f"synthesis.b{4 << (index + 1) // 2}.{layer}.noise_const", _first_plane, unchanged
    for rule in rules:
        match = rule.pattern.fullmatch(name)
        if match is not None:
            return match.expand(rule.template), rule.arrange, rule.adjust
    raise UnreadableError(f"has a variable {name[:80]!r}, unknown to StyleGAN2: a fork of NVIDIA's code", OTHER_NETWORK)
