"""The arithmetic that generator and discriminator share: equalised linear layers, the FIR resampling filter,
modulated convolution.

Everything is plain PyTorch (no compiled extension), twice differentiable, and keeps NVIDIA's parameter names and
unscaled weight storage, so that a tensor of a public checkpoint is copied as it is. Weights are scaled at run time
("equalised learning rate", Karras et al. 2018, section 4.1).

Shape suffixes: B batch, C channels in, O channels out, H height, W width, K kernel height and width,
Z latent, D style (w), F features of a linear layer.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAKY_SLOPE = 0.2
ACTIVATION_GAIN = math.sqrt(2.0)
DEMODULATION_EPSILON = 1e-8


def binomial_filter() -> Tensor:
    """The [1, 3, 3, 1] low-pass filter of StyleGAN2 as a 4x4 outer product that sums to 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    return torch.outer(taps, taps)


def separable_taps(filter_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal taps of a filter that is an outer product and sums to 1 (all StyleGAN2 ones are)."""
    return filter_KK.sum(dim=1), filter_KK.sum(dim=0)


def fir(x_BCHW: Tensor, filter_KK: Tensor, *, padding: int, gain: float = 1.0) -> Tensor:
    """Convolve each channel with the separable filter after zero padding."""
    num_channels = x_BCHW.shape[1]
    for axis, taps_K in enumerate(separable_taps(filter_KK)):
        size = taps_K.shape[0]
        kernel = (taps_K.flip(0) * math.sqrt(gain)).to(x_BCHW.dtype)
        kernel = kernel.view((1, 1, size, 1) if axis == 0 else (1, 1, 1, size))
        x_BCHW = functional.conv2d(
            x_BCHW,
            kernel.expand(num_channels, *kernel.shape[1:]),
            padding=(padding, 0) if axis == 0 else (0, padding),
            groups=num_channels,
        )
    return x_BCHW


def upsample_2x(x_BCHW: Tensor, filter_KK: Tensor) -> Tensor:
    """Double height and width: zeros between the pixels, then the filter with gain 4 (StyleGAN2's skip path)."""
    num_channels = x_BCHW.shape[1]
    kernel = (filter_KK * 4.0).to(x_BCHW.dtype).expand(num_channels, 1, *filter_KK.shape)
    return functional.conv_transpose2d(x_BCHW, kernel, stride=2, padding=1, groups=num_channels)


def convolve(x_BCHW: Tensor, weight_OCKK: Tensor, filter_KK: Tensor, *, up: bool = False, down: bool = False) -> Tensor:
    """Plain, upsampling or downsampling convolution with low-pass filtering, "same" padding.

    Upsampling is a stride-2 transposed convolution followed by the filter, downsampling the filter followed by a
    stride-2 convolution; 1x1 kernels convolve at the lower resolution (Karras et al. 2020, appendix B).
    """
    is_pointwise = weight_OCKK.shape[-1] == 1
    if up:
        if is_pointwise:
            return upsample_2x(functional.conv2d(x_BCHW, weight_OCKK), filter_KK)
        wide = functional.conv_transpose2d(x_BCHW, weight_OCKK.transpose(0, 1), stride=2)
        return fir(wide, filter_KK, padding=1, gain=4.0)
    if down:
        # The stride belongs to the dense convolution: PyTorch's strided depthwise gradient is many times slower.
        filtered = fir(x_BCHW, filter_KK, padding=1 if is_pointwise else 2)
        return functional.conv2d(filtered, weight_OCKK, stride=2)
    return functional.conv2d(x_BCHW, weight_OCKK, padding=weight_OCKK.shape[-1] // 2)


def activate(x: Tensor, clamp: float | None) -> Tensor:
    """Leaky ReLU (in place) and clamp. Callers scale by sqrt(2) beforehand: the function commutes with a gain."""
    x = functional.leaky_relu(x, LEAKY_SLOPE, inplace=True)
    if clamp is None:
        return x
    return x.clamp(-clamp, clamp) if torch.is_grad_enabled() else x.clamp_(-clamp, clamp)


class FullyConnected(nn.Module):
    """Equalised linear layer; weight [F_out, F_in], bias [F_out], both stored divided by the rate multiplier."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        leaky: bool = False,
        rate_multiplier: float = 1.0,
        bias_start: float = 0.0,
    ) -> None:
        super().__init__()
        self.leaky = leaky
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_start))
        self.weight_gain = rate_multiplier / math.sqrt(in_features)
        self.bias_gain = rate_multiplier

    def forward(self, x_BF: Tensor) -> Tensor:
        gain = ACTIVATION_GAIN if self.leaky else 1.0
        bias = self.bias * (self.bias_gain * gain)
        y_BF = torch.addmm(bias, x_BF, self.weight.t(), alpha=self.weight_gain * gain)
        return functional.leaky_relu(y_BF, LEAKY_SLOPE) if self.leaky else y_BF


class Conv2dLayer(nn.Module):
    """Equalised convolution, optionally resampling, with bias and leaky ReLU unless `linear`."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        linear: bool = False,
        up: bool = False,
        down: bool = False,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.up, self.down, self.conv_clamp = up, down, conv_clamp
        self.register_buffer("resample_filter", binomial_filter())
        self.weight = kernel_parameter(out_channels, in_channels, kernel_size)
        self.bias = None if linear else nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1.0 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x_BCHW: Tensor, gain: float = 1.0) -> Tensor:
        """`gain` multiplies the output; it is applied to the small weight, not to the large activation."""
        total_gain = gain if self.bias is None else gain * ACTIVATION_GAIN
        weight = (self.weight * (self.weight_gain * total_gain)).to(x_BCHW.dtype)
        y_BOHW = convolve(x_BCHW, weight, self.resample_filter, up=self.up, down=self.down)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        if self.bias is None:
            return y_BOHW if clamp is None else y_BOHW.clamp(-clamp, clamp)
        bias = (self.bias * total_gain).to(x_BCHW.dtype).view(1, -1, 1, 1)
        return activate(y_BOHW + bias, clamp)


def kernel_parameter(out_channels: int, in_channels: int, kernel_size: int) -> nn.Parameter:
    """A unit-variance convolution weight, stored channels-last so that no call has to reorder it."""
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
    return nn.Parameter(weight.to(memory_format=torch.channels_last))


def modulated_conv(
    x_BCHW: Tensor, weight_OCKK: Tensor, styles_BC: Tensor, filter_KK: Tensor, *, up: bool
) -> tuple[Tensor, Tensor]:
    """Convolution whose input channels each sample scales by its own style; returns it with its demodulation.

    A dense convolution of scaled activations stands for the grouped one with scaled weights. The second result
    scale_BO makes each output channel unit variance (Karras et al. 2020, section 2.2, equation 3), and is left to
    the caller to multiply in, together with gain, noise and bias.

    Half precision first divides weights and styles by their largest magnitudes, which demodulation undoes exactly.
    """
    if x_BCHW.dtype != torch.float32:
        fan_in = weight_OCKK[0].numel()
        weight_OCKK = weight_OCKK / (weight_OCKK.abs().amax(dim=(1, 2, 3), keepdim=True) * math.sqrt(fan_in))
        styles_BC = styles_BC / styles_BC.abs().amax(dim=1, keepdim=True)
    energy_OC = weight_OCKK.square().sum(dim=(2, 3))
    scale_BO = torch.rsqrt(styles_BC.square() @ energy_OC.t() + DEMODULATION_EPSILON)
    scaled_BCHW = x_BCHW * styles_BC.to(x_BCHW.dtype)[:, :, None, None]
    y_BOHW = convolve(scaled_BCHW, weight_OCKK.to(x_BCHW.dtype), filter_KK, up=up)
    return y_BOHW, scale_BO


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU, clamp: one row of w."""

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        w_dim: int,
        size: tuple[int, int],
        up: bool = False,
        conv_clamp: float | None = None,
    ) -> None:
        """size: height and width of the output."""
        super().__init__()
        self.up, self.conv_clamp = up, conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_start=1.0)
        self.weight = kernel_parameter(out_channels, in_channels, 3)
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("noise_const", torch.randn(*size))
        self.register_buffer("resample_filter", binomial_filter())

    def forward(self, x_BCHW: Tensor, w_BD: Tensor, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        """x [B, C, H, W] (half of both when upsampling), w [B, D], noise broadcastable to [B, 1, H, W] or None."""
        y_BOHW, scale_BO = modulated_conv(x_BCHW, self.weight, self.affine(w_BD), self.resample_filter, up=self.up)
        dtype, total_gain = x_BCHW.dtype, gain * ACTIVATION_GAIN
        scale = (scale_BO * total_gain).to(dtype)[:, :, None, None]
        offset = (self.bias * total_gain).view(1, -1, 1, 1)
        scaled_noise = None if noise is None else noise * (self.noise_strength * total_gain)
        if scaled_noise is not None and scaled_noise.shape[0] == 1:
            # Noise that the batch shares joins the bias: one pass over the activations instead of two.
            offset = (offset + scaled_noise).contiguous(memory_format=torch.channels_last)
            scaled_noise = None
        y_BOHW = torch.addcmul(offset.to(dtype), y_BOHW, scale)
        if scaled_noise is not None:
            y_BOHW = y_BOHW.add_(scaled_noise.to(dtype))
        return activate(y_BOHW, None if self.conv_clamp is None else self.conv_clamp * gain)


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to image channels, without demodulation; float32 out."""

    def __init__(self, in_channels: int, out_channels: int, *, w_dim: int, conv_clamp: float | None = None) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_start=1.0)
        self.weight = kernel_parameter(out_channels, in_channels, 1)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1.0 / math.sqrt(in_channels)

    def forward(self, x_BCHW: Tensor, w_BD: Tensor) -> Tensor:
        styles_BC = self.affine(w_BD) * self.weight_gain
        scaled_BCHW = x_BCHW * styles_BC.to(x_BCHW.dtype)[:, :, None, None]
        y_BOHW = functional.conv2d(scaled_BCHW, self.weight.to(x_BCHW.dtype), self.bias.to(x_BCHW.dtype)).float()
        return y_BOHW if self.conv_clamp is None else y_BOHW.clamp(-self.conv_clamp, self.conv_clamp)
