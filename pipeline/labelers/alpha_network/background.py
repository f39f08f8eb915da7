"""Backgrounds out of the generator itself: a synthesis continues from activations that hold no foreground.

Labels4Free (section 3.2, and its code) switches the foreground off by zeros in place of the constant (512 px) or of
b4.conv1's output (256 and 1024 px). Here the output of any early convolution may be replaced, by zeros or by what its
four corners hold: their mean, or a bilinear blend of them, which keeps the background's own course of colours. A ground
that is flatter than true ones gives composites away, and the discriminator then rewards masks that keep some of it.

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.networks import Generator, Noise, Trunk
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec, conv_name, row_resolution
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig, BackgroundKind

CONST = "const"
# Later convolutions hold no layout any more: replacing them gives one flat colour, or a wrong one.
_HIGHEST_RESOLUTION = 16
# A corner's side as a share of the image's.
_CORNER_SHARE = 8
# A switch counts as no worse than the best one where its error is so much larger at most: the earliest one is taken,
# after which the generator still draws most of the background.
_NEARLY = 1.5


@dataclass(frozen=True)
class Switch:
    """What is replaced, and by what."""

    layer: str
    """A convolution, or `const`."""
    kind: BackgroundKind

    def __str__(self) -> str:
        return f"{self.kind} at {self.layer}"


@dataclass(frozen=True)
class SwitchFigures:
    """How good a switch's backgrounds are, in units of the image's range [-1, 1]."""

    structure: float
    """What is left beside a blend of the background's own corners, root mean square."""
    colour_error: float
    """Difference between the background's corners and the image's, root mean square."""

    @property
    def error(self) -> float:
        """Both together."""
        return self.structure + self.colour_error


def synthesise_background(generator: Generator, ws_BLD: Tensor, noise: Noise, switch: Switch) -> Tensor:
    """Images [B, C, H, W] float32 without their foreground. The RGB of lower blocks is replaced, too."""
    row = _row_after(generator.spec, switch.layer)
    trunk = _start(generator, len(ws_BLD)) if row == 0 else generator.trunk(ws_BLD, row, noise)
    replaced = _REPLACED[switch.kind]
    # Zeros would turn the RGB of lower blocks gray, unlike features, which the later blocks' biases colour.
    recoloured = _corner_mean if switch.kind == "zero" else replaced
    without = Trunk(
        row,
        replaced(trunk.x_BCHW),
        None if trunk.images_BCHW is None else recoloured(trunk.images_BCHW),
        None if trunk.shortcut_BCHW is None else replaced(trunk.shortcut_BCHW),
    )
    return generator.synthesize(ws_BLD, noise, trunk=without).images_BCHW


def candidate_layers(spec: GeneratorSpec) -> tuple[str, ...]:
    """Where foregrounds may be switched off: below 32 px, and short of the last convolution."""
    rows = range(spec.num_ws - 2)
    return (CONST, *(conv_name(row) for row in rows if row_resolution(row) <= _HIGHEST_RESOLUTION))


def check_background(config: AlphaNetworkConfig, spec: GeneratorSpec) -> None:
    """Raises ConfigError where the generator has no such convolution, or nothing behind it."""
    possible = (CONST, *spec.conv_names[:-1])
    if config.background_layer != "auto" and config.background_layer not in possible:
        raise ConfigError(
            f"labeler.background_layer: {config.background_layer}, but this generator has {', '.join(possible)}; "
            f"choose one of them, or `auto`"
        )


@torch.no_grad()
def measure_switches(config: AlphaNetworkConfig, sampler: Sampler, batches: list[Batch]) -> dict[Switch, SwitchFigures]:
    """The figures of all switches that the configuration allows, the earliest first, on some images."""
    spec = sampler.generator.spec
    layers = candidate_layers(spec) if config.background_layer == "auto" else (config.background_layer,)
    kinds = tuple(_REPLACED) if config.background == "auto" else (config.background,)
    switches = [Switch(layer, kind) for layer in layers for kind in kinds]
    return {switch: _figures(sampler, batches, switch) for switch in switches}


def choose_switch(figures: Mapping[Switch, SwitchFigures]) -> Switch:
    """The earliest of those that are nearly as good as the best."""
    most = _NEARLY * min(figure.error for figure in figures.values())
    layer = next(switch.layer for switch, figure in figures.items() if figure.error <= most)
    there = [switch for switch in figures if switch.layer == layer]
    return min(there, key=lambda switch: figures[switch].error)


def _figures(sampler: Sampler, batches: list[Batch], switch: Switch) -> SwitchFigures:
    structure, colour, count = 0.0, 0.0, 0
    for batch in batches:
        ground_BCHW = synthesise_background(sampler.generator, batch.ws_BLD, batch.noise, switch)
        blend_BCHW = functional.interpolate(
            _corner_colours(ground_BCHW), size=ground_BCHW.shape[2:], mode="bilinear", align_corners=True
        )
        difference = _corner_colours(ground_BCHW) - _corner_colours(batch.images_BCHW)
        structure += float((ground_BCHW - blend_BCHW).square().mean(dim=(1, 2, 3)).sum())
        colour += float(difference.square().mean(dim=(1, 2, 3)).sum())
        count += len(batch)
    return SwitchFigures(round((structure / count) ** 0.5, 4), round((colour / count) ** 0.5, 4))


def _corner_colours(images_BCHW: Tensor) -> Tensor:
    """Mean colours of the four corners [B, C, 2, 2]."""
    height, width = (max(1, size // _CORNER_SHARE) for size in images_BCHW.shape[2:])
    rows = images_BCHW[:, :, :height], images_BCHW[:, :, -height:]
    corners = [
        torch.stack([part[..., :width].mean(dim=(2, 3)), part[..., -width:].mean(dim=(2, 3))], dim=2) for part in rows
    ]
    return torch.stack(corners, dim=2)


def _start(generator: Generator, batch_size: int) -> Trunk:
    const_CHW = generator.get_parameter("synthesis.b4.const")
    return Trunk(0, const_CHW.expand(batch_size, -1, -1, -1))


def _row_after(spec: GeneratorSpec, layer: str) -> int:
    """The first row of w that works on what replaces the layer's output."""
    return 0 if layer == CONST else spec.conv_names.index(layer) + 1


def _corners(x_BCHW: Tensor) -> Tensor:
    """[B, C, 2, 2]."""
    return x_BCHW[:, :, (0, 0, -1, -1), (0, -1, 0, -1)].unflatten(2, (2, 2))


def _corner_mean(x_BCHW: Tensor) -> Tensor:
    return _corners(x_BCHW).mean(dim=(2, 3), keepdim=True).expand_as(x_BCHW)


def _corner_blend(x_BCHW: Tensor) -> Tensor:
    return functional.interpolate(_corners(x_BCHW), size=x_BCHW.shape[2:], mode="bilinear", align_corners=True)


_REPLACED: dict[BackgroundKind, Callable[[Tensor], Tensor]] = {
    "corner_blend": _corner_blend,
    "corner_mean": _corner_mean,
    "zero": torch.zeros_like,
}
