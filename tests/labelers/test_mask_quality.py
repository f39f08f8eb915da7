"""Masks of the bundled generator against a segmenter that was trained on the drawings themselves."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

# A smaller fit than the default, and one of the good rows.
SMALL = {"fit_samples": 48, "crossover": 4, "variants": 12}
SEEDS = range(300, 364)


@dataclass(frozen=True)
class Judged:
    labels: Labels
    truth_BHW: Tensor
    """Class ids of the domain; 0 is background."""

    @property
    def iou(self) -> Tensor:
        """Of each image [B], the mean of foreground's and background's."""
        return soft_iou((self.labels.masks_BHW != 0).float(), (self.truth_BHW != 0).float())


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    checkpoint = "bundled:avatars-32"
    generator = open_checkpoint(checkpoint).generator
    return Sampler(generator, GeneratorConfig(checkpoint=checkpoint), NumericsConfig(threads=1), "cpu")


def judged(sampler: Sampler, **settings: object) -> Judged:
    config = StyleMixingConfig.model_validate({**SMALL, **settings})
    labeler, oracle = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler, open_oracle("b", 32)
    batches = [sampler.sample(SEEDS[start : start + 16], labeler.layers) for start in range(0, len(SEEDS), 16)]
    labels = [labeler.label(batch) for batch in batches]
    return Judged(
        Labels(torch.cat([some.masks_BHW for some in labels]), torch.cat([some.confidence_B for some in labels])),
        torch.cat([oracle.segment(batch.images_BCHW) for batch in batches]),
    )


@pytest.fixture(scope="module")
def read(sampler: Sampler) -> Judged:
    return judged(sampler, parts=3)


@pytest.fixture(scope="module")
def clustered(sampler: Sampler) -> Judged:
    return judged(sampler, masks_from="clusters")


def test_masks_are_good_and_the_readouts_better(read: Judged, clustered: Judged) -> None:
    assert clustered.iou.mean() > 0.95
    assert read.iou.mean() > clustered.iou.mean() + 0.001
    assert read.iou.mean() > 0.96


@pytest.mark.parametrize("mode", ["read", "clustered"])
def test_confidence_is_a_little_below_the_iou_and_tells_the_worst(mode: str, request: pytest.FixtureRequest) -> None:
    found: Judged = request.getfixturevalue(mode)
    confidence_B, iou_B = found.labels.confidence_B, found.iou
    assert -0.01 < iou_B.mean() - confidence_B.mean() < 0.05
    assert torch.corrcoef(torch.stack([confidence_B, iou_B]))[0, 1] > 0.2
    kept = confidence_B.argsort()[len(iou_B) // 10 :]
    assert iou_B[kept].mean() > iou_B.mean()


def test_parts_are_skin_clothes_and_hair(read: Judged) -> None:
    """Each part lies mostly in one class of the domain, another for each part: classes 1, 7 and 2."""
    masks_BHW, truth_BHW = read.labels.masks_BHW, read.truth_BHW

    def iou(part: int, class_id: int) -> float:
        found, wanted = masks_BHW == part, truth_BHW == class_id
        return ((found & wanted).sum() / (found | wanted).sum()).item()

    best = {part: max((iou(part, class_id), class_id) for class_id in range(1, 11)) for part in (1, 2, 3)}
    assert sorted(class_id for _, class_id in best.values()) == [1, 2, 7]
    ious = {class_id: value for value, class_id in best.values()}
    assert ious[1] > 0.6
    assert ious[7] > 0.75
    assert ious[2] > 0.35
