"""The avatars prompt model: as good as its card says, dense where it is pooled, trained by a command that resumes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

from labelmill.pipeline.avatars import renders as oracle_data
from labelmill.pipeline.avatars.captions import vocabulary
from labelmill.pipeline.avatars.figure import CLASSES
from labelmill.pipeline.avatars.renders import Renders
from labelmill.pipeline.benchmark.downstream import data as downstream_data
from labelmill.pipeline.benchmark.oracle.images import rendered_images
from labelmill.pipeline.benchmark.prompts import captioned_images as avatars_data
from labelmill.pipeline.benchmark.prompts import train as train_avatars
from labelmill.pipeline.benchmark.prompts.captioned_images import (
    CaptionedRenders,
    load_captioned,
    piece_of,
    prompt_batch,
)
from labelmill.pipeline.benchmark.prompts.evaluate import accessories_of, name_regions, score_accessory
from labelmill.pipeline.benchmark.prompts.train import (
    WEIGHTS_FILE,
    PromptTrainer,
    PromptTraining,
    contrastive_losses,
    pool_regions,
)
from labelmill.pipeline.cli import app
from labelmill.pipeline.process.interruption import Interrupted
from labelmill.pipeline.prompt_models import PromptModelError, bundled_weights, open_prompt_model
from labelmill.pipeline.prompt_models.avatars import (
    AvatarsPrompts,
    PromptModelInfo,
    encode,
    load_avatars_prompts,
    save_avatars_prompts,
)
from labelmill.pipeline.prompt_models.avatars_networks import AttentionPool, PromptNetwork, Shape
from labelmill.pipeline.training.state import TrainingStateError

# What the card says of 1,000 held-out renders.
STATED_NAMING = 0.997
STATED_AUC = {"a hat": 0.984, "glasses": 0.996, "a beard": 0.961}
FRESH_SEEDS = range(7_500_000, 7_500_200)
BUNDLED = bundled_weights("avatars-prompts").parent
SMALL = range(7_600_000, 7_600_012)


@pytest.fixture(scope="module")
def model() -> AvatarsPrompts:
    opened = open_prompt_model("bundled:avatars-prompts", "cpu")
    assert isinstance(opened, AvatarsPrompts)
    return opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CaptionedRenders:
    return load_captioned(SMALL, tmp_path_factory.mktemp("renders"))


@pytest.fixture(scope="module")
def untrained() -> AvatarsPrompts:
    torch.manual_seed(0)
    words = vocabulary()
    return AvatarsPrompts(PromptNetwork(len(words) + 1, Shape()), PromptModelInfo(Shape(), words, {}))


def images(num: int, height: int, width: int) -> Tensor:
    return torch.rand(num, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


# The bundled weights


def test_fresh_renders_are_known_as_well_as_stated(model: AvatarsPrompts) -> None:
    images_BCHW, masks_BHW = rendered_images(FRESH_SEEDS)
    naming = name_regions(model, images_BCHW, masks_BHW)
    assert naming.mean > STATED_NAMING - 0.03
    assert naming.pooled == {name: name for name in CLASSES}
    images_BE = model.embed_images(images_BCHW)
    for words, has_B in accessories_of(FRESH_SEEDS).items():
        scores = score_accessory(model, images_BE, has_B, words)
        assert scores.auc > STATED_AUC[words] - 0.08  # of 200 renders few have a beard


def test_the_card_states_what_is_asserted_here() -> None:
    card = (BUNDLED / "avatars-prompts.md").read_text()
    for stated in (STATED_NAMING, *STATED_AUC.values()):
        assert f"{stated:.3f}" in card


def test_the_file_is_small_and_says_where_it_comes_from(model: AvatarsPrompts) -> None:
    path = BUNDLED / "avatars-prompts.safetensors"
    assert path.stat().st_size < 8 * 2**20
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert {"data", "steps", "validation", "licence", "attribution"} <= set(model.info.provenance)
    assert model.name == "bundled:avatars-prompts"
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# What it says


def test_answers_have_the_stated_forms(untrained: AvatarsPrompts) -> None:
    images_BCHW = images(3, 50, 70)
    prompts_PE, images_BE = untrained.embed_prompts(["hair", "A photo of a HAT."]), untrained.embed_images(images_BCHW)
    dense_BEhw = untrained.dense(images_BCHW)
    assert prompts_PE.shape == (2, 128) and images_BE.shape == (3, 128) and dense_BEhw.shape == (3, 128, 32, 32)
    assert {prompts_PE.dtype, images_BE.dtype, dense_BEhw.dtype} == {torch.float32}
    for vectors in (prompts_PE, images_BE):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    assert untrained.embed_prompts([]).shape == (0, 128)


def test_pooling_is_attention_and_a_weighted_mean_of_dense_features() -> None:
    torch.manual_seed(2)
    pool, x_BDhw = AttentionPool(24, 10), torch.randn(3, 24, 4, 5)
    pooled_BE, dense_BEhw = pool(x_BDhw)
    x_LBD = x_BDhw.flatten(2).permute(2, 0, 1)
    expected_1BE, weights_B1L = functional.multi_head_attention_forward(
        x_LBD.mean(dim=0, keepdim=True), x_LBD, x_LBD, 24, 1, None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    assert weights_B1L is not None
    torch.testing.assert_close(pooled_BE, expected_1BE[0], rtol=1e-4, atol=1e-5)
    mean_BE = (dense_BEhw.flatten(2) * weights_B1L).sum(dim=2)
    torch.testing.assert_close(pooled_BE, mean_BE, rtol=1e-4, atol=1e-5)
    place_BD = x_BDhw[:, :, 2, 3]
    torch.testing.assert_close(dense_BEhw[:, :, 2, 3], pool.c_proj(pool.v_proj(place_BD)))


def test_an_image_or_prompt_is_judged_alike_in_any_batch(untrained: AvatarsPrompts) -> None:
    images_BCHW = images(37, 32, 32)
    for look in (untrained.embed_images, untrained.dense):
        together = look(images_BCHW)
        assert torch.equal(look(images_BCHW[36:])[0], together[36])
        assert torch.equal(look(images_BCHW.flip(0)).flip(0), together)
    prompts = [f"a {word}" for word in vocabulary()]
    assert torch.equal(untrained.embed_prompts(prompts[40:41])[0], untrained.embed_prompts(prompts)[40])


def test_words_count_in_their_order(untrained: AvatarsPrompts) -> None:
    one, other = untrained.embed_prompts(["hat without hair", "hair without hat"])
    assert not torch.allclose(one, other, atol=1e-3)


def test_large_images_are_averaged(untrained: AvatarsPrompts) -> None:
    small_BCHW = images(2, 64, 64)
    large_BCHW = functional.interpolate(small_BCHW, scale_factor=2, mode="nearest")
    expected_BCHW = functional.interpolate(large_BCHW, (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(untrained.dense(large_BCHW), untrained.dense(expected_BCHW))
    assert torch.equal(untrained.dense(small_BCHW * 3), untrained.dense((small_BCHW * 3).clamp(-1, 1)))


def test_prompts_in_foreign_words_are_refused(untrained: AvatarsPrompts) -> None:
    with pytest.raises(PromptModelError, match=r"prompt 'a zebra, striped'.*'striped', 'zebra'.*its words are .*hair"):
        untrained.embed_prompts(["hair", "a zebra, striped"])
    for prompt in ("", "?!", "hair " * 25):
        with pytest.raises(PromptModelError, match="takes 1 to 24"):
            untrained.embed_prompts([prompt])


@pytest.mark.parametrize("shape", [(3, 32, 32), (0, 3, 32, 32), (2, 1, 32, 32), (2, 3, 0, 32)])
def test_images_of_other_shapes_are_refused(untrained: AvatarsPrompts, shape: tuple[int, ...]) -> None:
    with pytest.raises(PromptModelError, match=r"\[B, 3, H, W\]"):
        untrained.dense(torch.zeros(shape))


def test_unusable_files_are_named(untrained: AvatarsPrompts, tmp_path: Path) -> None:
    whole, short, foreign = (tmp_path / f"{name}.safetensors" for name in ("whole", "short", "foreign"))
    save_avatars_prompts(whole, untrained.network, untrained.info)
    assert load_avatars_prompts(whole).info == untrained.info
    short.write_bytes(whole.read_bytes()[:-1000])
    save_file({"weight": torch.zeros(1)}, foreign)
    for path in (short, foreign, tmp_path / "missing.safetensors"):
        with pytest.raises(PromptModelError, match=str(path)):
            load_avatars_prompts(path)


# Data


def test_seeds_are_those_of_nothing_else() -> None:
    ranges = [
        oracle_data.GENERATOR_SEEDS,
        *oracle_data.TRAINING_SEEDS.values(),
        oracle_data.VALIDATION_SEEDS,
        oracle_data.HELD_OUT_SEEDS,
        *oracle_data.DISTANCE_SEEDS,
        downstream_data.TRAINING_SEEDS,
        downstream_data.TEST_SEEDS,
        avatars_data.TRAINING_SEEDS,
        FRESH_SEEDS,
    ]
    for first, second in itertools.combinations(ranges, 2):
        assert first.stop <= second.start or second.stop <= first.start
    card = (BUNDLED / "avatars-prompts.md").read_text(encoding="utf-8")
    seeds = avatars_data.TRAINING_SEEDS
    assert f"renders of avatars, seeds {seeds.start:,} to {seeds.stop - 1:,}:" in card


def test_a_batch_depends_on_its_random_source_alone(small: CaptionedRenders) -> None:
    first, again, other = (prompt_batch(small, 6, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images_BCHW, again.images_BCHW) and torch.equal(first.truths_VK, again.truths_VK)
    assert torch.equal(first.regions_RHW, again.regions_RHW) and first.captions == again.captions
    assert not torch.equal(first.images_BCHW, other.images_BCHW)


def test_views_and_captions_fit_together(small: CaptionedRenders) -> None:
    batch = prompt_batch(small, 8, np.random.default_rng(3))
    num_images, num_regions = 8, len(batch.regions_RHW)
    assert batch.images_BCHW.shape == (8, 3, 64, 64) and batch.images_BCHW.abs().max() <= 1
    assert batch.truths_VK.shape == (num_images + num_regions, len(batch.captions))
    assert batch.regions_RHW.flatten(1).any(dim=1).all() and batch.region_images_R.max() < 8
    plain = [index for index, caption in enumerate(batch.captions) if len(caption.literals) == 1]
    parts = {batch.captions[index].literals[0][0] for index in plain}
    of_regions = batch.truths_VK[num_images:, plain]
    assert set(of_regions.unique().tolist()) <= {0.0, 0.5, 1.0}
    for row in of_regions:  # a region is of one part, so the captions that are true of it name one part
        assert len({batch.captions[plain[column]].literals[0][0] for column in torch.nonzero(row == 1.0)}) <= 1
    assert len(parts) > 5 and (batch.truths_VK == 1.0).any(dim=1).sum() > 0.9 * len(batch.truths_VK)


def test_regions_lie_on_what_they_are_of() -> None:
    """Discs are skin and white, all else is background and black: no region holds both, enlarged, warped or fine."""
    num, sides = 24, {"images_NHWC": 32, "masks_NHW": 32, "fine_images_NHWC": 64, "fine_masks_NHW": 128}
    drawn = {}
    for name, side in sides.items():
        middle = (np.arange(side) + 0.5) / side
        disc_HW = (np.hypot(middle[:, None] - 0.6, middle - 0.35) < 0.25).astype(np.uint8)
        one = disc_HW if "masks" in name else np.repeat(255 * disc_HW[:, :, None], 3, axis=2)
        drawn[name] = np.repeat(one[None], num, axis=0)
    data = CaptionedRenders(Renders(**drawn), (frozenset(),) * num, np.zeros((num, 3), bool))
    batch = prompt_batch(data, 60, np.random.default_rng(0))
    seen_BHW = functional.avg_pool2d(batch.images_BCHW, 2).mean(dim=1)
    strangers = []
    for owner, region_HW in zip(batch.region_images_R, batch.regions_RHW, strict=True):
        image_HW = seen_BHW[owner]
        white_HW = image_HW > (image_HW.max() + image_HW.min()) / 2
        share = float(white_HW[region_HW].float().mean())
        strangers.append(min(share, 1 - share))
    assert np.mean(strangers) < 0.012 and np.quantile(strangers, 0.95) < 0.05  # pixels that an edge runs through


def test_pieces_are_parts_of_regions() -> None:
    region_HW, random = np.zeros((32, 32), bool), np.random.default_rng(0)
    region_HW[4:9, 10:30] = True
    pieces = [piece_of(region_HW, random) for _ in range(200)]
    assert all(piece_HW.any() and not (piece_HW & ~region_HW).any() for piece_HW in pieces)
    assert 0.35 < np.mean([(piece_HW != region_HW).any() for piece_HW in pieces]) < 0.65


# Training


def test_regions_are_pooled_by_their_mean() -> None:
    dense_BEHW = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    regions_RHW = torch.zeros(3, 4, 4, dtype=torch.bool)
    regions_RHW[0, 1, 2] = regions_RHW[1, :2] = regions_RHW[2] = True
    pooled_RE = pool_regions(dense_BEHW, torch.tensor([1, 0, 0]), regions_RHW)
    expected_RE = [dense_BEHW[1, :, 1, 2], dense_BEHW[0, :, :2].mean(dim=(1, 2)), dense_BEHW[0].mean(dim=(1, 2))]
    torch.testing.assert_close(pooled_RE, torch.stack(expected_RE))


def test_the_loss_knows_several_captions_and_unknown_pairs() -> None:
    random = np.random.default_rng(0)
    logits, truths = random.normal(size=(5, 4)), random.choice([0.0, 0.5, 1.0], size=(5, 4))
    truths[0] = (1, 1, 0, 0.5)

    def spread(values: np.ndarray, fits: np.ndarray) -> float:
        return float(np.mean(np.log(np.exp(values[fits != 0.5]).sum()) - values[fits == 1.0]))

    found = contrastive_losses(torch.from_numpy(logits), torch.from_numpy(truths), num_images=2)
    for name, rows in (("images", slice(0, 2)), ("regions", slice(2, 5))):
        x, t = logits[rows], truths[rows]
        by_view, by_caption = (
            np.mean([spread(*pair) for pair in zip(values, fits, strict=True) if (pair[1] == 1.0).any()])
            for values, fits in ((x, t), (x.T, t.T))
        )
        odds = (np.log1p(np.exp(-x[t == 1.0])).mean() + np.log1p(np.exp(x[t == 0.0])).mean()) / 2
        expected = odds + 0.25 * (by_view + by_caption)
        assert found[name].item() == pytest.approx(expected, rel=1e-6)


def test_training_learns_and_resumes_to_the_same_weights(small: CaptionedRenders, tmp_path: Path) -> None:
    config = PromptTraining(steps=6, batch_size=5, warm_up_steps=2, precision="float32")
    whole = PromptTrainer(config, tmp_path / "whole", small, small)
    for _ in range(6):
        whole.step()
    broken = PromptTrainer(config, tmp_path / "broken", small, small)
    for _ in range(3):
        broken.step()
    broken.save()
    broken.step()  # lost with the process
    resumed = PromptTrainer(config, tmp_path / "broken", small, small)
    assert resumed.num_steps == 3
    for _ in range(3):
        resumed.step()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    assert resumed.log.sums()["regions"] == pytest.approx(whole.log.sums()["regions"], rel=1e-6)
    with pytest.raises(TrainingStateError, match="batch_size was 5, now 6"):
        PromptTrainer(PromptTraining(steps=6, batch_size=6), tmp_path / "broken", small, small)


def test_training_reduces_the_loss_on_a_tiny_set(small: CaptionedRenders, tmp_path: Path) -> None:
    trainer = PromptTrainer(PromptTraining(steps=40, batch_size=6, warm_up_steps=4), tmp_path, small, small)

    def loss() -> float:
        batch = prompt_batch(small, 8, np.random.default_rng(5))
        with torch.no_grad():
            pooled_BE, dense_BEHW = trainer.network.train().image(batch.images_BCHW)
            regions_RE = pool_regions(dense_BEHW, batch.region_images_R, batch.regions_RHW)
            texts_KE = trainer.network.text(train_avatars.word_ids(batch.captions, trainer.ids))
            views_VE = functional.normalize(torch.cat([pooled_BE, regions_RE]))
            logits = trainer.network.log_scale.exp() * views_VE @ functional.normalize(texts_KE).T
            return contrastive_losses(logits + trainer.network.offset, batch.truths_VK, 8)["regions"].item()

    before = loss()
    for _ in range(15):
        trainer.step()
    assert loss() < 0.8 * before


def test_the_command_stops_and_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_avatars, "TRAINING_SEEDS", SMALL)
    monkeypatch.setattr(train_avatars, "VALIDATION_SEEDS", range(7_700_000, 7_700_030))
    command = ["train-prompt-model", "--steps", "3", "--batch-size", "3", "--cache", str(tmp_path / "cache")]
    step = PromptTrainer.step

    def step_then_terminate(trainer: PromptTrainer) -> None:
        step(trainer)
        if trainer.num_steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def run(name: str) -> int:
        return CliRunner().invoke(app, [*command, "--out", str(tmp_path / name)], catch_exceptions=False).exit_code

    monkeypatch.setattr(PromptTrainer, "step", step_then_terminate)
    with pytest.raises(Interrupted, match="SIGTERM"):
        run("stopped")
    monkeypatch.setattr(PromptTrainer, "step", step)
    assert run("stopped") == 0 and run("whole") == 0
    stopped, whole = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("stopped", "whole"))
    assert all(torch.equal(stopped[name], tensor) for name, tensor in whole.items())
    trained = load_avatars_prompts(tmp_path / "whole" / WEIGHTS_FILE)
    assert trained.info.provenance["steps"] == "3 of 3, 3 images each"
    assert "regions named right" in trained.info.provenance["validation"]
    assert json.loads((tmp_path / "whole" / "log.jsonl").read_text() or "{}") == {}  # a line every 50 steps


# Figures


class _Told:
    """A model whose prompts are unit vectors and whose dense features are what a test says."""

    name, sha256 = "told", ""

    def __init__(self, dense_BEhw: Tensor) -> None:
        self._dense_BEhw = dense_BEhw

    def embed_prompts(self, prompts: list[str]) -> Tensor:
        return torch.eye(len(prompts))

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        return self._dense_BEhw.mean(dim=(2, 3))

    def dense(self, images_BCHW: Tensor) -> Tensor:
        return self._dense_BEhw


def test_regions_are_counted_by_what_lies_nearest() -> None:
    masks_BHW = np.zeros((2, 4, 4), np.uint8)
    masks_BHW[:, :2], masks_BHW[0, 3] = 2, 5
    masks_BHW[1, 3, :2] = 7  # too small to be asked for
    seen = masks_BHW.copy()
    seen[1, :2] = 1  # the second image's hair looks like skin
    dense_BEhw = functional.one_hot(torch.from_numpy(seen.astype(np.int64)), 11).permute(0, 3, 1, 2).float()
    naming = name_regions(_Told(dense_BEhw), torch.zeros(2, 3, 4, 4), masks_BHW)
    assert naming.right == {"background": 1.0, "hair": 0.5, "nose": 1.0}
    assert naming.counts == {"background": 2, "hair": 2, "nose": 1}
    assert naming.mean == pytest.approx(2.5 / 3)
    assert naming.pooled["background"] == "background"


def test_accessories_are_scored_by_sign_and_by_rank() -> None:
    class TwoPrompts(_Told):
        def embed_prompts(self, prompts: list[str]) -> Tensor:
            assert prompts == ["a person with a hat", "a person without a hat"]
            return torch.eye(2)

    images_BE = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.3, 0.2], [0.1, 0.5]])
    scores = score_accessory(
        TwoPrompts(torch.zeros(1, 2, 1, 1)), images_BE, np.array([True, True, False, False]), "a hat"
    )
    assert scores.balanced_accuracy == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert scores.auc == pytest.approx(3 / 4)


def test_words_become_ids() -> None:
    assert encode(["b", "a"], {"a": 1, "b": 2})[:4] == [2, 1, 0, 0]
