"""Scores that are linear in a layer's features.

Shape suffixes: B batch, C channels, Q outputs, S pixels, H height, W width.
"""

import torch
from torch import Tensor


def layer_scores(features_BCHW: Tensor, weights_CQ: Tensor) -> Tensor:
    """[B, Q, H, W] float32: a product an image, so that none depends on its neighbours in the batch."""
    x_BSC = features_BCHW.float().permute(0, 2, 3, 1).flatten(1, 2)
    scores_BSQ = torch.bmm(x_BSC, weights_CQ.expand(len(x_BSC), -1, -1))
    return scores_BSQ.transpose(1, 2).unflatten(2, features_BCHW.shape[2:])
