"""Pictures of several people, and how their instances are scored."""

import pytest
import torch
from helpers.random_sampler import make_sampler

from labelmill.pipeline.benchmark.instances.pictures import SHARED_COLUMNS, draw_people, features_of, variants_of
from labelmill.pipeline.benchmark.instances.score import InstanceEvaluator
from labelmill.pipeline.benchmark.oracle.oracle import Oracle, open_oracle
from labelmill.pipeline.generator.sampling import Sampler


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return open_oracle("b", 32)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return make_sampler(32, noise="none")


def test_one_person_is_the_generators_own_picture(sampler: Sampler, oracle: Oracle) -> None:
    picture, batch = draw_people(sampler, oracle, [7]), sampler.sample([7], ["b32.conv1"])
    assert torch.allclose(picture.image_CHW, batch.images_BCHW[0], atol=1e-5)
    features_1Chw = features_of(sampler.generator, picture, ["b32.conv1"])["b32.conv1"]
    assert torch.allclose(features_1Chw, batch.features["b32.conv1"], atol=1e-4)
    assert torch.equal(picture.truths[0], oracle.segment(batch.images_BCHW)[0] != 0)


def test_people_stand_side_by_side_and_variants_keep_rows_before(sampler: Sampler, oracle: Oracle) -> None:
    picture = draw_people(sampler, oracle, [7, 8, 9])
    assert picture.image_CHW.shape == (3, 32, 96) and len(picture.truths) == 3
    assert not (sum(truth_HW.long() for truth_HW in picture.truths) > 1).any()  # type: ignore[union-attr]
    donors_NLD, _ = sampler.ws([1, 2])
    own_NLD = picture.rows_LD.expand(2, -1, -1)
    assert torch.allclose(variants_of(sampler.generator, picture, own_NLD, 3)[1], picture.image_CHW, atol=1e-5)
    last_NLD = own_NLD.clone()
    last_NLD[:, 7:] = donors_NLD[:, 7:]
    variants_NCHW = variants_of(sampler.generator, picture, donors_NLD, 7)
    assert torch.equal(variants_NCHW, variants_of(sampler.generator, picture, last_NLD, 3))
    assert (variants_NCHW - picture.image_CHW).abs().mean() > 0.01


def test_overlapping_people_share_columns(sampler: Sampler, oracle: Oracle) -> None:
    picture = draw_people(sampler, oracle, [7, 8], overlap=True)
    assert picture.image_CHW.shape == (3, 32, 64 - 4 * SHARED_COLUMNS)
    assert not (picture.truths[0] & picture.truths[1]).any()


def test_instances_are_scored_one_by_one_and_together() -> None:
    evaluator = InstanceEvaluator()
    first, second = torch.zeros(2, 4, 4, dtype=torch.bool)
    first[:2], second[2:] = True, True
    half = first.clone()
    half[0] = False
    evaluator.add([half, second], [first, second])
    scores = evaluator.scores()
    assert (scores.iou_of_instances, scores.iou_of_things, scores.iou_of_rest) == (0.75, 0.75, 0.0)
    assert InstanceEvaluator().scores().miou is None
