"""One network of a benchmark: trained from scratch on pairs, scored on others.

Shape suffixes: B batch, N images, H height, W width, C channels.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.benchmark.downstream.data import Pairs
from labelmill.pipeline.networks.segmenter import Segmenter, build
from labelmill.pipeline.segmentation.augment import Augmentation
from labelmill.pipeline.segmentation.loss import segmentation_loss
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.segmentation.reading import LabeledPixels
from labelmill.schemas.sample import ImageShape
from labelmill.schemas.scores import Scores
from labelmill.schemas.segmentation import AugmentationConfig, SegmentationModelCard, SegmentationModelConfig

# Images are of the domain's range; one normalisation for all keeps rows alike.
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_POLY_POWER = 0.9
_TEST_BATCH = 100
_REGIME_SIDE = 32
AUGMENTATION = AugmentationConfig(flip=0.5, scale=(0.8, 1.25), colour_jitter=0.2)


@dataclass(frozen=True)
class Regime:
    """How every network of a benchmark is trained, whatever it learns from."""

    model: SegmentationModelConfig
    """Its upscale is meant for images of 32 px."""
    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    augmentation: AugmentationConfig = AUGMENTATION

    def for_images_of(self, side: int) -> "Regime":
        """The same regime with images of the same size inside the network, where they are no larger already."""
        upscale = max(1, self.model.upscale * _REGIME_SIDE // side)
        return replace(self, model=self.model.model_copy(update={"upscale": upscale}))


def train_on(pairs: Pairs, regime: Regime, seed: int, device: torch.device) -> tuple[Segmenter, float]:
    """A network from random weights, in eval mode, and the seconds that its training took. Adam with poly decay."""
    segmenter = build(regime.model, num_classes=len(pairs.classes), mean=_MEAN, std=_STD, seed=seed).to(device)
    segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(segmenter.parameters(), regime.learning_rate, weight_decay=regime.weight_decay)
    started = time.monotonic()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)  # dropout
        for step, (images_BCHW, masks_BHW) in enumerate(_batches(pairs, regime, seed)):
            for group in optimiser.param_groups:
                group["lr"] = regime.learning_rate * (1 - step / regime.steps) ** _POLY_POWER
            images_BCHW = images_BCHW.to(device).contiguous(memory_format=torch.channels_last)
            loss = segmentation_loss(segmenter(images_BCHW), masks_BHW.to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return segmenter.eval(), time.monotonic() - started


def card_of(pairs: Pairs, regime: Regime, side: int) -> SegmentationModelCard:
    """What says how a network of `train_on` is used, for images of side x side."""
    return SegmentationModelCard(
        model=regime.model,
        classes=pairs.classes,
        image_shape=ImageShape(height=side, width=side, channels=3),
        mean=_MEAN,
        std=_STD,
        dataset_fingerprint="none: drawings",
        steps=regime.steps,
    )


def _batches(pairs: Pairs, regime: Regime, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images float32 in [0, 1] and masks int64, in an order that reshuffles whenever all pairs have been seen."""
    augment = Augmentation(regime.augmentation, pairs.images_NHWC.shape[1:3])
    random = np.random.default_rng([seed, len(pairs)])
    order: list[int] = []
    for _ in range(regime.steps):
        while len(order) < regime.batch_size:
            order += random.permutation(len(pairs)).tolist()
        chosen, order = order[: regime.batch_size], order[regime.batch_size :]
        samples = [augment(LabeledPixels(pairs.images_NHWC[index], pairs.masks_NHW[index]), random) for index in chosen]
        images_BHWC = torch.from_numpy(np.stack([sample.image_HWC for sample in samples]))
        masks_BHW = torch.from_numpy(np.stack([sample.mask_HW for sample in samples]))
        yield images_BHWC.permute(0, 3, 1, 2).float() / 255, masks_BHW.long()


@torch.no_grad()
def score_on(segmenter: Segmenter, pairs: Pairs) -> Scores:
    """How well a network, in eval mode, labels pairs."""
    device, evaluator = segmenter.mean_C11.device, MaskEvaluator(pairs.classes)
    for start in range(0, len(pairs), _TEST_BATCH):
        images_BHWC = torch.from_numpy(pairs.images_NHWC[start : start + _TEST_BATCH])
        images_BCHW = images_BHWC.permute(0, 3, 1, 2).to(device).float() / 255
        masks_BHW = segmenter(images_BCHW).argmax(dim=1).to(torch.uint8).cpu().numpy()
        for pred_HW, truth_HW in zip(masks_BHW, pairs.masks_NHW[start:], strict=False):
            evaluator.add(pred_HW, truth_HW)
    return evaluator.scores()


def score_all_background(pairs: Pairs) -> Scores:
    """What a network scores that answers background everywhere."""
    evaluator = MaskEvaluator(pairs.classes)
    for truth_HW in pairs.masks_NHW:
        evaluator.add(np.zeros_like(truth_HW), truth_HW)
    return evaluator.scores()
