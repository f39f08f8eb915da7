"""What a segmenter learns from: cross-entropy with masks, or with shares of foreground.

Shape suffixes: B batch, H height, W width, K classes.
"""

from torch import Tensor
from torch.nn import functional

from labelmill.schemas.sample import IGNORE


def segmentation_loss(logits_BKHW: Tensor, masks_BHW: Tensor, alphas_BHW: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over pixels whose mask is not 255; 0 where there is none.

    logits_BKHW: float32. masks_BHW: int64 class indices. alphas_BHW: float32 in [0, 1]; the targets are then
    (1 - alpha, alpha) for classes 0 and 1 in place of the mask's class, and K is 2.
    """
    known_BHW = masks_BHW != IGNORE
    if alphas_BHW is None:
        total = functional.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORE, reduction="sum")
    else:
        assert logits_BKHW.shape[1] == 2
        background_BHW, foreground_BHW = functional.log_softmax(logits_BKHW, dim=1).unbind(dim=1)
        entropy_BHW = -((1 - alphas_BHW) * background_BHW + alphas_BHW * foreground_BHW)
        total = (entropy_BHW * known_BHW).sum()
    return total / known_BHW.sum().clamp_min(1)
