"""Masks by a network that knows nothing of the generator: it sees the images alone.

Shape suffixes: B batch, K classes, H height, W width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Batch, Sampler, to_uint8
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.networks.trained import TrainedNetwork, Verdict
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.sample import IGNORE, OptionalFile


class NetworkLabeler:
    """Labels batches with a network."""

    layers: tuple[str, ...] = ()
    optional_files: tuple[OptionalFile, ...] = ()

    def __init__(self, sampler: Sampler, network: TrainedNetwork) -> None:
        self.classes = network.classes
        self._network, self._batch_size, self._device = network, sampler.numerics.batch_size, sampler.device

    def label(self, batch: Batch) -> Labels:
        """Masks and confidences of the batch's images, as their files hold them before compression."""
        # Sizes choose kernels and thereby bits: all that follows sees batches of one size.
        count, whole = len(batch), batch.padded(self._batch_size)
        with repeatable_kernels():
            verdict = self._network.segment(to_uint8(whole.images_BCHW))
            confidence_B = expected_iou(verdict)
        return Labels(verdict.masks_BHW[:count].to(self._device), confidence_B[:count].to(self._device))


def expected_iou(verdict: Verdict) -> Tensor:
    """How near the probabilities are to the masks that were made of them [B], 0 to 1: the mean of the soft IoU (sum of
    minima over sum of maxima) of those classes that a mask shows. With exact probabilities it estimates the IoU."""
    said_BHW = verdict.masks_BHW != IGNORE
    values_BHW = verdict.masks_BHW.masked_fill(~said_BHW, 0).long()
    num_classes = verdict.probabilities_BKHW.shape[1]
    shown_BKHW = functional.one_hot(values_BHW, num_classes).permute(0, 3, 1, 2) * said_BHW[:, None]
    likely_BKHW = verdict.probabilities_BKHW * said_BHW[:, None]
    both_BK = torch.minimum(shown_BKHW, likely_BKHW).sum(dim=(2, 3))
    either_BK = torch.maximum(shown_BKHW, likely_BKHW).sum(dim=(2, 3))
    shows_BK = shown_BKHW.sum(dim=(2, 3)) > 0
    return (both_BK / either_BK.clamp_min(1e-6) * shows_BK).sum(dim=1) / shows_BK.sum(dim=1).clamp_min(1)
