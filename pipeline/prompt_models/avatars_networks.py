"""The two halves of the avatars prompt model: a ResNet with attention pooling, and a transformer over words.

As in CLIP (Radford et al. 2021, section 2.4) the image's vector is one attention over the positions of the last map,
so that value and output projection alone, applied to every position, give vectors in the same space (MaskCLIP, Zhou
et al. 2022, section 3.2).

Shape suffixes: B batch, C channels, H height, W width, h, w height and width of the map, L its h x w positions,
P prompts, T words of a prompt, D inner width, E embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.training.convolution_blocks import Residual, convolution

IMAGE_SIZE = 64
"""Side that images are brought to."""
MAX_WORDS = 24
PADDING = 0
"""Id of no word."""


@dataclass(frozen=True)
class Shape:
    """Widths of the networks."""

    stem: int = 48
    trunk: int = 96
    embedding: int = 128
    words: int = 128
    heads: int = 4
    text_layers: int = 2


class ImageEncoder(nn.Module):
    """64 px images to maps of 32 x 32: a stem at 32 x 32, residual blocks dilated 1, 2, 4, 2, 1 on 2 x 2 positions
    folded into channels, joined with the stem again."""

    DILATIONS = (1, 2, 4, 2, 1)

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        stem, trunk = shape.stem, shape.trunk
        self.stem = nn.Sequential(convolution(3, stem // 2, stride=2), convolution(stem // 2, stem))
        self.fold = nn.Sequential(nn.PixelUnshuffle(2), convolution(4 * stem, trunk, size=1))
        self.blocks = nn.ModuleList(Residual(trunk, dilation) for dilation in self.DILATIONS)
        self.unfold = nn.Sequential(convolution(trunk, 4 * stem, size=1), nn.PixelShuffle(2))
        self.join = convolution(2 * stem, trunk)
        self.pool = AttentionPool(trunk, shape.embedding)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """images float32 [B, 3, 64, 64] in [-1, 1]: the pooled vectors [B, E] and the dense map [B, E, 32, 32]."""
        stem_BDhw = self.stem(images_BCHW)
        x_BDhw = self.fold(stem_BDhw)
        for block in self.blocks:
            x_BDhw = block(x_BDhw)
        return self.pool(self.join(torch.cat([stem_BDhw, self.unfold(x_BDhw)], dim=1)))


class AttentionPool(nn.Module):
    """Attention over all positions, whose query is their mean (CLIP's, with one head and without position)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embedding)

    def forward(self, x_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [B, E] and dense [B, E, h, w]: as the weights sum to 1 and both projections are affine, the pooled
        vector is the weighted mean of the dense ones."""
        x_BLD = x_BDhw.flatten(2).transpose(1, 2)
        query_BD = self.q_proj(x_BLD.mean(dim=1))
        logits_BL = torch.einsum("bd,bld->bl", query_BD, self.k_proj(x_BLD)) / math.sqrt(x_BLD.shape[2])
        dense_BLE = self.c_proj(self.v_proj(x_BLD)).float()
        pooled_BE = torch.einsum("bl,ble->be", logits_BL.float().softmax(dim=1), dense_BLE)
        return pooled_BE, dense_BLE.transpose(1, 2).unflatten(2, x_BDhw.shape[2:])


class TextEncoder(nn.Module):
    """Words and their order to a vector: a pre-norm transformer, averaged over the words."""

    def __init__(self, num_words: int, shape: Shape) -> None:
        super().__init__()
        width = shape.words
        self.words = nn.Embedding(num_words, width, padding_idx=PADDING)
        self.positions = nn.Parameter(0.02 * torch.randn(MAX_WORDS, width))
        layer = nn.TransformerEncoderLayer(
            width, shape.heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, shape.text_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, shape.embedding)

    def forward(self, words_PT: Tensor) -> Tensor:
        """Ids int64 [P, T], PADDING after the last word: vectors [P, E]."""
        absent_PT = words_PT == PADDING
        x_PTD = self.words(words_PT) + self.positions[: words_PT.shape[1]]
        x_PTD = self.norm(self.layers(x_PTD, src_key_padding_mask=absent_PT))
        counts_P1 = (~absent_PT).sum(dim=1, keepdim=True)
        mean_PD = x_PTD.masked_fill(absent_PT[:, :, None], 0.0).sum(dim=1) / counts_P1
        return self.out(mean_PD)


class PromptNetwork(nn.Module):
    """Both encoders, and the scale and offset that turn cosines into logits."""

    def __init__(self, num_words: int, shape: Shape) -> None:
        super().__init__()
        self.image, self.text = ImageEncoder(shape), TextEncoder(num_words, shape)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.offset = nn.Parameter(torch.tensor(-1.0))


def fit_images(images_BCHW: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """Images of any size, whole, as [B, 3, size, size], averaged where they shrink."""
    if images_BCHW.shape[2:] == (size, size):
        return images_BCHW
    return functional.interpolate(images_BCHW, (size, size), mode="bilinear", antialias=True)
