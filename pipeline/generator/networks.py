"""The StyleGAN2 generator in plain PyTorch (Karras et al. 2020), with feature taps and partial synthesis.

Modules, parameters and buffers carry NVIDIA's names, weights are stored unscaled, so every public checkpoint maps
onto this one class. Synthesis is a walk over the rows of w: row 0 styles b4.conv1; an odd row styles the toRGB of
the block just finished and the next block's conv0; an even row styles that block's conv1; the last row styles the
last toRGB alone. What depends on rows below some row only can therefore be computed once (a `Trunk`) and shared.

Shape suffixes: B batch, C channels, H height, W width, Z latent or classes, D style, L rows of w.
"""

import math
from collections.abc import Callable, Collection, Sequence
from collections.abc import Mapping as MappingType
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from labelmill.pipeline.generator.layers import (
    Conv2dLayer,
    FullyConnected,
    SynthesisLayer,
    ToRGBLayer,
    binomial_filter,
    upsample_2x,
)
from labelmill.pipeline.generator.spec import (
    ARCHITECTURES,
    Architecture,
    GeneratorSpec,
    SynthesisError,
    channels_by_resolution,
    conv_name,
    is_half_resolution,
    num_rows,
    row_resolution,
)
from labelmill.pipeline.process.device import tf32_convolutions

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Generator",
    "GeneratorSpec",
    "Mapping",
    "Noise",
    "Synthesis",
    "SynthesisError",
    "Trunk",
    "channels_by_resolution",
    "conv_name",
    "is_half_resolution",
    "num_rows",
    "row_resolution",
]

MAPPING_RATE_MULTIPLIER = 0.01
RESIDUAL_GAIN = math.sqrt(0.5)

Noise = Literal["const", "none"] | Sequence[Tensor] | MappingType[str, Tensor]


@dataclass(frozen=True)
class Synthesis:
    """What one synthesis returns."""

    images_BCHW: Tensor
    """float32, nominally in [-1, 1]."""
    features: dict[str, Tensor]
    """Tapped activations [B, C, h, w] at native resolution, by convolution name."""


@dataclass(frozen=True)
class Trunk:
    """The state of a synthesis before a row of w: everything that depends on earlier rows only."""

    row: int
    x_BCHW: Tensor
    images_BCHW: Tensor | None = None
    shortcut_BCHW: Tensor | None = None
    """The residual branch of a half-finished block ('resnet' only)."""
    features: dict[str, Tensor] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        return self.x_BCHW.shape[0]

    def repeat_interleave(self, repeats: int) -> "Trunk":
        """Each sample `repeats` times in a row, for that many variants of it."""
        return self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def __getitem__(self, index: slice | Tensor) -> "Trunk":
        """A part of the batch."""
        return self._map(lambda tensor: tensor[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Trunk":
        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        features = {name: change(tensor) for name, tensor in self.features.items()}
        return Trunk(self.row, change(self.x_BCHW), changed(self.images_BCHW), changed(self.shortcut_BCHW), features)


def normalise_second_moment(x_BF: Tensor) -> Tensor:
    """Scale each row to mean square 1."""
    return x_BF * torch.rsqrt(x_BF.square().mean(dim=1, keepdim=True) + 1e-8)


class Mapping(nn.Module):
    """z [B, Z] and one-hot classes [B, Z'] to w [B, D]; latent and class embedding are normalised separately."""

    w_avg: Tensor

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, *, num_layers: int, width: int | None = None) -> None:
        """width: of all layers but the last, which has w_dim; None: w_dim too."""
        super().__init__()
        self.z_dim, self.c_dim, self.num_layers = z_dim, c_dim, num_layers
        width = w_dim if width is None else width
        if c_dim > 0:
            self.embed = FullyConnected(c_dim, w_dim)
        in_features = z_dim + (w_dim if c_dim > 0 else 0)
        for index in range(num_layers):
            layer = FullyConnected(
                in_features if index == 0 else width,
                w_dim if index == num_layers - 1 else width,
                leaky=True,
                rate_multiplier=MAPPING_RATE_MULTIPLIER,
            )
            self.add_module(f"fc{index}", layer)
        if z_dim > 0:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z_BZ: Tensor | None, classes_BZ: Tensor | None = None) -> Tensor:
        parts = []
        if self.z_dim > 0:
            assert z_BZ is not None
            parts.append(normalise_second_moment(z_BZ.float()))
        if self.c_dim > 0:
            assert classes_BZ is not None
            parts.append(normalise_second_moment(self.embed(classes_BZ.float())))
        x_BF = torch.cat(parts, dim=1)
        for index in range(self.num_layers):
            x_BF = self.get_submodule(f"fc{index}")(x_BF)
        return x_BF


class SynthesisBlock(nn.Module):
    """The layers of one resolution; the walk over them is the generator's."""

    resample_filter: Tensor

    def __init__(self, spec: GeneratorSpec, resolution: int) -> None:
        super().__init__()
        widths = dict(spec.channels)
        width, size, clamp = widths[resolution], spec.size_at(resolution), spec.conv_clamp
        self.register_buffer("resample_filter", binomial_filter())
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(width, *size))
        else:
            below = widths[resolution // 2]
            self.conv0 = SynthesisLayer(below, width, w_dim=spec.w_dim, size=size, up=True, conv_clamp=clamp)
            if spec.architecture == "resnet":
                self.skip = Conv2dLayer(below, width, 1, linear=True, up=True)
        self.conv1 = SynthesisLayer(width, width, w_dim=spec.w_dim, size=size, conv_clamp=clamp)
        if spec.architecture == "skip" or resolution == spec.resolution:
            self.torgb = ToRGBLayer(width, spec.img_channels, w_dim=spec.w_dim, conv_clamp=clamp)


class Generator(nn.Module):
    """mapping (z to w) and synthesis (w to image). `compute_dtype` sets the precision of the top four resolutions.

    float16 needs a GPU; everything else, the RGB sum included, stays float32, with convolutions in TF32 beside a half
    precision.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.compute_dtype = torch.float32
        self.mapping = Mapping(
            spec.z_dim, spec.c_dim, spec.w_dim, num_layers=spec.mapping_layers, width=spec.mapping_width
        )
        self.synthesis = nn.Module()
        for resolution, _ in spec.channels:
            self.synthesis.add_module(f"b{resolution}", SynthesisBlock(spec, resolution))

    def map(self, z_BZ: Tensor, c_BZ: Tensor | None = None) -> Tensor:
        """Latents [B, z_dim] (and one-hot classes [B, c_dim]) to untruncated ws [B, num_ws, w_dim], float32."""
        spec = self.spec
        if z_BZ.ndim != 2 or z_BZ.shape[1] != spec.z_dim:
            raise SynthesisError(f"z must be [batch, {spec.z_dim}], got {tuple(z_BZ.shape)}")
        if spec.c_dim > 0 and (c_BZ is None or c_BZ.shape != (z_BZ.shape[0], spec.c_dim)):
            found = None if c_BZ is None else tuple(c_BZ.shape)
            raise SynthesisError(
                f"this generator has {spec.c_dim} classes: pass one-hot classes "
                f"[{z_BZ.shape[0]}, {spec.c_dim}], got {found}"
            )
        w_BD = self.mapping(z_BZ, c_BZ if spec.c_dim > 0 else None)
        return w_BD.unsqueeze(1).expand(-1, spec.num_ws, -1)

    def truncate(self, ws_BLD: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
        """Pull ws towards the average: w_avg + psi (w - w_avg), in the first `cutoff` rows (all when None)."""
        if psi == 1.0:
            return ws_BLD
        truncated = torch.lerp(self.mapping.w_avg, ws_BLD, psi)
        if cutoff is None:
            return truncated
        return torch.cat([truncated[:, :cutoff], ws_BLD[:, cutoff:]], dim=1)

    def synthesize(
        self,
        ws_BLD: Tensor,
        noise: Noise = "const",
        *,
        resolution: int | None = None,
        taps: Collection[str] = (),
        trunk: Trunk | None = None,
    ) -> Synthesis:
        """Images and tapped features of ws [B, L, w_dim].

        noise: 'const' (the stored buffers), 'none', or a tensor broadcastable to [B, 1, h, w] for each
        convolution, by row in a sequence or by name in a mapping (a missing name: no noise there).
        resolution: stop there and return the RGB summed so far ('skip' generators only below full resolution).
        taps: convolutions such as 'b32.conv1' whose activations to return.
        trunk: resume from it; rows of ws below trunk.row are then ignored.
        Raises SynthesisError for anything the network does not have.
        """
        stop = self.spec.resolution if resolution is None else resolution
        self._check_request(ws_BLD, stop, taps, trunk)
        state = self._start(ws_BLD.shape[0]) if trunk is None else trunk
        state = self._walk(state, ws_BLD, noise, num_rows(stop), frozenset(taps), last=True)
        assert state.images_BCHW is not None
        return Synthesis(state.images_BCHW, {name: state.features[name] for name in taps})

    def trunk(self, ws_BLD: Tensor, row: int, noise: Noise = "const", taps: Collection[str] = ()) -> Trunk:
        """The synthesis up to, not including, a row of w (1 to num_ws - 1), to be resumed by `synthesize`."""
        if not 1 <= row < self.spec.num_ws:
            raise SynthesisError(f"a trunk ends before row 1 to {self.spec.num_ws - 1} of w, got {row}")
        self._check_request(ws_BLD, self.spec.resolution, taps, None)
        early = frozenset(taps) & frozenset(self.spec.conv_names[:row])
        return self._walk(self._start(ws_BLD.shape[0]), ws_BLD, noise, row, early, last=False)

    def _check_request(self, ws_BLD: Tensor, stop: int, taps: Collection[str], trunk: Trunk | None) -> None:
        spec = self.spec
        sizes = [size for size, _ in spec.channels]
        if stop not in sizes:
            raise SynthesisError(f"this generator can stop at {sizes} px, not at {stop}")
        if stop < spec.resolution and spec.architecture != "skip":
            raise SynthesisError(
                f"a generator of architecture {spec.architecture!r} has no RGB below its full resolution of "
                f"{spec.resolution} px: synthesise fully, or tap features"
            )
        if ws_BLD.ndim != 3 or ws_BLD.shape[2] != spec.w_dim or ws_BLD.shape[1] < num_rows(stop):
            raise SynthesisError(f"ws must be [batch, {spec.num_ws}, {spec.w_dim}], got {tuple(ws_BLD.shape)}")
        if trunk is not None and trunk.batch_size != ws_BLD.shape[0]:
            raise SynthesisError(
                f"the trunk holds {trunk.batch_size} samples but ws {ws_BLD.shape[0]}: repeat or index it first"
            )
        if trunk is not None and trunk.row >= num_rows(stop):
            raise SynthesisError(f"the trunk ends at row {trunk.row}, past what {stop} px needs")
        self._check_taps(stop, taps, trunk)

    def _check_taps(self, stop: int, taps: Collection[str], trunk: Trunk | None) -> None:
        reachable = self.spec.conv_names[: num_rows(stop) - 1]
        for name in taps:
            if name not in reachable:
                raise SynthesisError(f"no convolution {name!r} to tap; there are {', '.join(reachable)}")
            if trunk is not None and reachable.index(name) < trunk.row and name not in trunk.features:
                raise SynthesisError(f"{name!r} lies inside the trunk, which was made without tapping it")

    def _block(self, resolution: int) -> SynthesisBlock:
        block = self.synthesis.get_submodule(f"b{resolution}")
        assert isinstance(block, SynthesisBlock)
        return block

    def _start(self, batch_size: int) -> Trunk:
        const_CHW = self._block(4).const
        return Trunk(0, const_CHW.unsqueeze(0).expand(batch_size, -1, -1, -1))

    def _walk(
        self, state: Trunk, ws_BLD: Tensor, noise: Noise, num_steps: int, taps: frozenset[str], *, last: bool
    ) -> Trunk:
        """Run rows state.row to num_steps - 1; with `last`, the final row is RGB only."""
        # Beside half precision, float32 blocks would be most of the time at 1024 px.
        is_half = self.compute_dtype != torch.float32
        with tf32_convolutions() if is_half else nullcontext():
            return self._walk_rows(state, ws_BLD, noise, num_steps, taps, last=last)

    def _walk_rows(
        self, state: Trunk, ws_BLD: Tensor, noise: Noise, num_steps: int, taps: frozenset[str], *, last: bool
    ) -> Trunk:
        x_BCHW, images_BCHW, shortcut_BCHW = state.x_BCHW, state.images_BCHW, state.shortcut_BCHW
        features = dict(state.features)
        for row in range(state.row, num_steps):
            w_BD = ws_BLD[:, row]
            if row % 2 == 1:
                images_BCHW = self._add_rgb(row_resolution(row) // 2, x_BCHW, images_BCHW, w_BD)
                if last and row == num_steps - 1:
                    break
                shortcut_BCHW = self._shortcut(row_resolution(row), x_BCHW)
            x_BCHW = self._convolve(row, x_BCHW, w_BD, noise)
            if row % 2 == 0 and shortcut_BCHW is not None:
                x_BCHW, shortcut_BCHW = x_BCHW + shortcut_BCHW, None
            name = conv_name(row)
            if name in taps:
                features[name] = x_BCHW
        return Trunk(num_steps, x_BCHW, images_BCHW, shortcut_BCHW, features)

    def _precision(self, x_BCHW: Tensor, resolution: int) -> Tensor:
        half = is_half_resolution(resolution, self.spec.resolution)
        dtype = self.compute_dtype if half else torch.float32
        return x_BCHW.to(dtype=dtype, memory_format=torch.channels_last)

    def _convolve(self, row: int, x_BCHW: Tensor, w_BD: Tensor, noise: Noise) -> Tensor:
        resolution = row_resolution(row)
        block = self._block(resolution)
        layer = block.conv1 if row % 2 == 0 else block.conv0
        halfway = self.spec.architecture == "resnet" and row % 2 == 0 and row > 0
        return layer(
            self._precision(x_BCHW, resolution),
            w_BD,
            self._noise_for(row, layer, noise),
            gain=RESIDUAL_GAIN if halfway else 1.0,
        )

    def _noise_for(self, row: int, layer: SynthesisLayer, noise: Noise) -> Tensor | None:
        if isinstance(noise, str):
            if noise not in ("const", "none"):
                raise SynthesisError(f"noise must be 'const', 'none' or tensors a layer, got {noise!r}")
            return layer.noise_const[None, None] if noise == "const" else None
        if isinstance(noise, MappingType):
            return noise.get(conv_name(row))
        if row >= len(noise):
            raise SynthesisError(f"noise has {len(noise)} tensors, {conv_name(row)} needs number {row}")
        return noise[row]

    def _shortcut(self, resolution: int, x_BCHW: Tensor) -> Tensor | None:
        if self.spec.architecture != "resnet":
            return None
        return self._block(resolution).skip(self._precision(x_BCHW, resolution), gain=RESIDUAL_GAIN)

    def _add_rgb(self, resolution: int, x_BCHW: Tensor, images_BCHW: Tensor | None, w_BD: Tensor) -> Tensor | None:
        block = self._block(resolution)
        if images_BCHW is not None:
            images_BCHW = upsample_2x(images_BCHW, block.resample_filter)
        if not hasattr(block, "torgb"):
            return images_BCHW
        rgb_BCHW = block.torgb(x_BCHW, w_BD)
        return rgb_BCHW if images_BCHW is None else images_BCHW + rgb_BCHW
