"""Few shots from fit to masks, with a small random generator whose classes are told by brightness."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.random_sampler import make_sampler
from helpers.small_annotations import CLASSES
from safetensors.torch import load, save

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.few_shot.fit import fit_few_shot
from labelmill.pipeline.labelers.few_shot.fitted import FittedFewShot
from labelmill.pipeline.labelers.few_shot.label_free import LabelFree, fit_label_free
from labelmill.pipeline.labelers.few_shot.shots import Mask, Shots, shots_of_seeds
from labelmill.pipeline.labelers.fitted_file import FittedLabelerError
from labelmill.schemas.labelers.few_shot import FewShotConfig

MIXING = {"variants": 4, "crossover": 3, "clusters": 4, "restarts": 2, "iterations": 3, "fit_samples": 16}
SMALL = {
    "method": "few_shot",
    "annotations": "annotations",
    "head": {"type": "linear", "components": 12, "steps": 15, "members": 3},
    "style_mixing": MIXING,
    "statistics_samples": 8,
    "statistics_variants": 2,
    "calibration_samples": 16,
}
SEEDS = (3, 1, 8, 40, 7)


def make_config(**settings: object) -> FewShotConfig:
    return FewShotConfig.model_validate({**SMALL, **settings})


def by_brightness(sampler: Sampler, seeds: Sequence[int]) -> Mask:
    """What is darker than most is `dark`, what is brighter `bright`."""
    images_BCHW = torch.cat([batch.images_BCHW for batch in sampler.batches(list(seeds))])
    gray_BHW = images_BCHW.mean(dim=1)
    dark, bright = 0.3, 0.85
    return ((gray_BHW < dark).int() + 2 * (gray_BHW > bright).int()).numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return make_sampler()


@pytest.fixture(scope="module")
def shots(sampler: Sampler) -> Shots:
    return shots_of_seeds(sampler, SEEDS, by_brightness(sampler, SEEDS), CLASSES)


@pytest.fixture(scope="module")
def label_free(sampler: Sampler) -> LabelFree:
    return fit_label_free(make_config(), sampler)


@pytest.fixture(scope="module")
def fitted(sampler: Sampler, shots: Shots, label_free: LabelFree) -> FittedFewShot:
    return fit_few_shot(make_config(drop_portion=0.25), sampler, shots, "a" * 64, label_free)


def test_what_was_taught_is_found_in_other_images(sampler: Sampler, fitted: FittedFewShot) -> None:
    labeler, seeds = fitted.labeler(sampler), list(range(100, 120))
    labels = [labeler.label(batch) for batch in sampler.batches(seeds, labeler.layers)]
    masks_BHW, truth_BHW = torch.cat([some.masks_BHW for some in labels]).numpy(), by_brightness(sampler, seeds)
    most = np.bincount(truth_BHW.ravel(), minlength=3).max() / truth_BHW.size
    assert (masks_BHW == truth_BHW).mean() > most + 0.1
    assert masks_BHW.dtype == np.uint8 and set(np.unique(masks_BHW)) == {0, 1, 2}
    confidence_B = torch.cat([some.confidence_B for some in labels])
    assert bool(((confidence_B >= 0) & (confidence_B <= 1)).all())


def test_the_same_annotations_give_the_same_bytes(sampler: Sampler, shots: Shots, fitted: FittedFewShot) -> None:
    again = fit_few_shot(make_config(drop_portion=0.25), sampler, shots, "a" * 64)
    assert again.to_bytes() == fitted.to_bytes()
    other = replace(shots, masks_NHW=shots.masks_NHW[:, ::-1].copy())
    assert fit_few_shot(make_config(drop_portion=0.25), sampler, other, "a" * 64).to_bytes() != fitted.to_bytes()


def test_the_wanted_share_is_dropped_of_the_images_of_calibration(sampler: Sampler, fitted: FittedFewShot) -> None:
    labeler, first = fitted.labeler(sampler), make_config().calibration_first_seed
    labels = [labeler.label(batch) for batch in sampler.batches(range(first, first + 16), labeler.layers)]
    uncertain = [bool(value) for some in labels if some.uncertain_B is not None for value in some.uncertain_B]
    assert len(uncertain) == 16 and 1 <= sum(uncertain) <= 4  # as many as are no tie with the limit
    without = replace(fitted, provenance=fitted.provenance.model_copy(update={"limit": None})).labeler(sampler)
    assert without.label(sampler.sample([first], without.layers)).uncertain_B is None


def test_a_mask_depends_on_its_own_sample_alone(sampler: Sampler, fitted: FittedFewShot) -> None:
    labeler = fitted.labeler(sampler)
    together = labeler.label(sampler.sample([5, 6, 7], labeler.layers))
    for index, seed in enumerate((5, 6, 7)):
        alone = labeler.label(sampler.sample([seed], labeler.layers))
        assert torch.equal(alone.masks_BHW[0], together.masks_BHW[index])
        assert torch.equal(alone.confidence_B[0], together.confidence_B[index])


def test_probabilities_on_demand_are_those_that_masks_are_made_of(sampler: Sampler, fitted: FittedFewShot) -> None:
    config = fitted.provenance.config.model_copy(update={"probabilities": True})
    wanting = replace(fitted, provenance=fitted.provenance.model_copy(update={"config": config})).labeler(sampler)
    assert (fitted.labeler(sampler).optional_files, wanting.optional_files) == ((), ("probabilities.png",))
    batch = sampler.sample([5, 6, 7], wanting.layers)
    labels, plain = wanting.label(batch), fitted.labeler(sampler).label(batch)
    assert plain.probabilities_BKHW is None and torch.equal(labels.masks_BHW, plain.masks_BHW)
    assert labels.probabilities_BKHW is not None and labels.probabilities_BKHW.shape == (
        3,
        3,
        *labels.masks_BHW.shape[1:],
    )
    torch.testing.assert_close(labels.probabilities_BKHW.sum(dim=1), torch.ones(labels.masks_BHW.shape))
    assert torch.equal(labels.masks_BHW != 0, labels.probabilities_BKHW[:, 0] < 0.5)
    part_BHW = (labels.probabilities_BKHW[:, 1:].argmax(dim=1) + 1).byte()
    assert torch.equal(labels.masks_BHW[labels.masks_BHW > 0], part_BHW[labels.masks_BHW > 0])
    alone = wanting.label(sampler.sample([6], wanting.layers)).probabilities_BKHW
    assert alone is not None and torch.equal(alone[0], labels.probabilities_BKHW[1])


def test_the_file_is_read_back_and_others_are_refused(sampler: Sampler, fitted: FittedFewShot) -> None:
    content, config, spec = fitted.to_bytes(), make_config(drop_portion=0.25), sampler.generator.spec
    read = FittedFewShot.from_bytes(content, config, spec, "cpu", "a" * 64)
    batch = sampler.sample([9, 10], fitted.labeler(sampler).layers)
    assert torch.equal(read.labeler(sampler).label(batch).masks_BHW, fitted.labeler(sampler).label(batch).masks_BHW)
    moved = config.model_copy(update={"annotations": "elsewhere"})
    FittedFewShot.from_bytes(content, moved, spec, "cpu", "a" * 64)
    with pytest.raises(FittedLabelerError, match=r"another checkpoint \(sha256 aaaaaaaaaaaa"):
        FittedFewShot.from_bytes(content, config, spec, "cpu", "b" * 64)
    with pytest.raises(FittedLabelerError, match="another configuration"):
        FittedFewShot.from_bytes(content, make_config(drop_portion=0.5), spec, "cpu")
    tensors = load(content)
    text = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["labelmill"]
    del tensors["head.bias"]
    with pytest.raises(FittedLabelerError, match="holds tensors"):
        FittedFewShot.from_bytes(save(tensors, metadata={"labelmill": text}), config, spec, "cpu")
