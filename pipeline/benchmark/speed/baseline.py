"""Style mixing as one would write it down: what labelmill's speed is measured against.

Weights are modulated for each sample and applied by a grouped convolution, in NCHW, as the public StyleGAN2
implementations do; every variant is a full synthesis; scikit-learn's k-means runs on each image, with 2 clusters, 10
starts and its own stopping rule (Feng et al., CVPR 2023, do not publish theirs).

Shape suffixes: B batch, N variants, C channels in, O channels out, H height, W width, P pixels, D style, L rows of w.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.layers import SynthesisLayer, ToRGBLayer
from labelmill.pipeline.generator.networks import Generator, SynthesisBlock, row_resolution

CLUSTERS, STARTS = 2, 10


def synthesise(generator: Generator, ws_BLD: Tensor) -> Tensor:
    """Images [B, C, H, W] with the stored noise; those of `Generator.synthesize`, to rounding."""
    x_BCHW: Tensor | None = None
    image_BCHW: Tensor | None = None
    for resolution, _ in generator.spec.channels:
        block = generator.synthesis.get_submodule(f"b{resolution}")
        assert isinstance(block, SynthesisBlock)
        first = 2 * int(math.log2(resolution)) - 5
        if x_BCHW is None:
            x_BCHW = block.const.repeat(len(ws_BLD), 1, 1, 1)
        else:
            x_BCHW = _layer(block.conv0, x_BCHW, ws_BLD[:, first], up=True)
        x_BCHW = _layer(block.conv1, x_BCHW, ws_BLD[:, first + 1], up=False)
        rgb_BCHW = _to_rgb(block.torgb, x_BCHW, ws_BLD[:, first + 2])
        above = (
            None if image_BCHW is None else _up_filtered(_zero_stuffed(image_BCHW), block.resample_filter, pad=(2, 1))
        )
        image_BCHW = rgb_BCHW if above is None else above + rgb_BCHW
    assert image_BCHW is not None
    return image_BCHW


def mixed(generator: Generator, ws_BLD: Tensor, donors_NLD: Tensor, crossover: int, batch_size: int) -> Tensor:
    """Variants [B, N, C, H, W], every one synthesised from the start."""
    rows_BNLD = torch.cat(
        [
            ws_BLD[:, None, :crossover].expand(-1, len(donors_NLD), -1, -1),
            donors_NLD[None, :, crossover:].expand(len(ws_BLD), -1, -1, -1),
        ],
        dim=2,
    )
    images = [synthesise(generator, some_BLD) for some_BLD in rows_BNLD.flatten(0, 1).split(batch_size)]
    return torch.cat(images).unflatten(0, (len(ws_BLD), len(donors_NLD)))


def cluster(variants_NCHW: Tensor) -> NDArray[np.int32]:
    """Cluster of each pixel [H, W] by its colours over the variants."""
    vectors_PD = variants_NCHW.flatten(0, 1).flatten(1).t().numpy()
    labels_P = KMeans(CLUSTERS, n_init=STARTS, random_state=0).fit_predict(vectors_PD)
    return labels_P.reshape(variants_NCHW.shape[-2:])


def _layer(layer: SynthesisLayer, x_BCHW: Tensor, w_BD: Tensor, *, up: bool) -> Tensor:
    y_BOHW = _modulated(x_BCHW, layer.weight, layer.affine(w_BD), layer.resample_filter, up=up, demodulate=True)
    y_BOHW = y_BOHW + layer.noise_const * layer.noise_strength + layer.bias[:, None, None]
    return functional.leaky_relu(y_BOHW, 0.2) * math.sqrt(2)


def _to_rgb(layer: ToRGBLayer, x_BCHW: Tensor, w_BD: Tensor) -> Tensor:
    styles_BC = layer.affine(w_BD) / math.sqrt(layer.weight.shape[1])
    y_BOHW = _modulated(x_BCHW, layer.weight, styles_BC, None, up=False, demodulate=False)
    return y_BOHW + layer.bias[:, None, None]


def _modulated(
    x_BCHW: Tensor, weight_OCKK: Tensor, styles_BC: Tensor, filter_KK: Tensor | None, *, up: bool, demodulate: bool
) -> Tensor:
    batch = len(x_BCHW)
    weight_BOCKK = weight_OCKK[None] * styles_BC[:, None, :, None, None]
    if demodulate:
        weight_BOCKK = weight_BOCKK * weight_BOCKK.square().sum(dim=(2, 3, 4), keepdim=True).add(1e-8).rsqrt()
    grouped = x_BCHW.reshape(1, -1, *x_BCHW.shape[2:])
    if not up:
        weight = weight_BOCKK.flatten(0, 1)
        y = functional.conv2d(grouped, weight, padding=weight.shape[-1] // 2, groups=batch)
    else:
        assert filter_KK is not None
        weight = weight_BOCKK.transpose(1, 2).flatten(0, 1)
        y = _up_filtered(functional.conv_transpose2d(grouped, weight, stride=2, groups=batch), filter_KK, pad=(1, 1))
    return y.reshape(batch, -1, *y.shape[2:])


def _zero_stuffed(image_BCHW: Tensor) -> Tensor:
    batch, channels, height, width = image_BCHW.shape
    stuffed = image_BCHW.new_zeros(batch, channels, height * 2, width * 2)
    stuffed[:, :, ::2, ::2] = image_BCHW
    return stuffed


def _up_filtered(x_BCHW: Tensor, filter_KK: Tensor, *, pad: tuple[int, int]) -> Tensor:
    kernel = (filter_KK * 4).expand(x_BCHW.shape[1], 1, -1, -1)
    padded = functional.pad(x_BCHW, (*pad, *pad))
    return functional.conv2d(padded, kernel, groups=x_BCHW.shape[1])


assert row_resolution(1) == 8, "row 1 is the first of 8 px, on which `first` above relies"
