"""Rare classes: regression, edits, and clusters of their own."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.clusters_setup import ColourPrompts, make_config
from helpers.random_sampler import make_sampler
from safetensors.torch import load
from sklearn.linear_model import LogisticRegression
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.feature_clusters.discovery import (
    ClassMargins,
    edited_seeds,
    find_edits,
    starts_of_rare,
)
from labelmill.pipeline.labelers.feature_clusters.fit import fit_feature_clusters
from labelmill.pipeline.labelers.feature_clusters.fitted import ClusterRecord
from labelmill.pipeline.labelers.feature_clusters.guide import cluster_guide
from labelmill.pipeline.labelers.feature_clusters.logistic_regression import fit_balanced, newton
from labelmill.pipeline.labelers.feature_clusters.method import METHOD
from labelmill.pipeline.labelers.feature_clusters.naming import ClusterShares, by_prompts
from labelmill.pipeline.labelers.methods import open_fitted
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig

DISCOVER = [
    {"prompt": "red", "against": "blue", "extra_clusters": 2},
    {"prompt": "green", "against": "red", "extra_clusters": 1},
]
NAMES = {"back": ["grey"], "warm": ["red"], "cool": ["green", "blue"]}


def config_with(**settings: object) -> FeatureClustersConfig:
    rare = {"discover": DISCOVER, "prompt_model": "colours", "discovery_samples": 200, "edited_samples": 16}
    return make_config(**{**rare, **settings})


def rare_samples() -> tuple[torch.Tensor, torch.Tensor]:
    """400 points, 40 of them positive: shifted along the first two axes."""
    source = torch.Generator().manual_seed(0)
    is_positive_N = torch.arange(400) % 10 == 0
    x_ND = torch.randn(400, 6, generator=source) + is_positive_N[:, None] * torch.tensor([1.5, -1.0, 0, 0, 0, 0])
    return x_ND, is_positive_N


@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
def test_the_regression_is_scikit_learns(penalty: float) -> None:
    x_ND, is_positive_N = rare_samples()
    weights_D, offset = newton(x_ND.double(), is_positive_N, penalty)
    theirs = LogisticRegression(class_weight="balanced", C=1 / penalty, tol=1e-10, max_iter=10_000)
    theirs.fit(x_ND.double().numpy(), is_positive_N.numpy())
    np.testing.assert_allclose(weights_D.numpy(), theirs.coef_[0], atol=1e-5)
    assert offset == pytest.approx(float(theirs.intercept_[0]), abs=1e-5)


def test_the_decision_finds_the_direction_whatever_the_scale() -> None:
    x_ND, is_positive_N = rare_samples()
    decision = fit_balanced(x_ND, is_positive_N)
    direction_D = decision.weights_D / decision.weights_D.norm()
    expected_D = torch.tensor([1.5, -1.0, 0, 0, 0, 0]).double()
    assert float(direction_D @ expected_D / expected_D.norm()) > 0.95
    assert 0.75 < decision.balanced_accuracy < 0.98
    larger = fit_balanced(100 * x_ND, is_positive_N)
    torch.testing.assert_close(larger.weights_D * 100, decision.weights_D)
    assert larger.offset == pytest.approx(decision.offset)


def test_separable_classes_end() -> None:
    x_ND = torch.cat([torch.randn(20, 3) + 50, torch.randn(200, 3) - 50])
    decision = fit_balanced(x_ND, torch.arange(220) < 20)
    assert decision.balanced_accuracy == 1 and bool(torch.isfinite(decision.weights_D).all())


def scored(
    sampler: Sampler, seeds: range, prompts: tuple[str, str], edit_D: torch.Tensor | None = None
) -> torch.Tensor:
    model, size = ColourPrompts(), sampler.numerics.batch_size
    first, second = model.embed_prompts(prompts)
    images = [sampler.sample(seeds[i : i + size], (), edit_D).images_BCHW for i in range(0, len(seeds), size)]
    return model.embed_images(torch.cat(images)) @ (first - second)


def test_an_edit_moves_as_many_images_as_asked_and_no_weaker_one_does() -> None:
    config, sampler = config_with(), make_sampler()
    edits = find_edits(config, sampler, ColourPrompts())
    assert [edit.record.prompt for edit in edits] == ["red", "green"]
    wide = make_sampler(psi=1.0)
    for edit, prompts in zip(edits, (("red", "blue"), ("green", "red")), strict=True):
        record = edit.record
        scores = scored(wide, range(4_200_000_000, 4_200_000_200), prompts)
        assert record.num_positive == 10 and record.num_scored == 200
        assert record.num_nearer == int((scores > 0).sum())
        threshold = float(scores.sort(descending=True).values[9])
        assert record.least_positive_score == pytest.approx(threshold, abs=1e-4)
        assert record.strength == pytest.approx(float(edit.edit_D.norm()), rel=1e-3)
        base = edited_seeds(config)
        after = scored(sampler, base, prompts, edit.edit_D)
        assert record.moved_share == pytest.approx(float((after >= threshold).float().mean()), abs=1e-4)
        assert float(after.mean()) > float(scored(sampler, base, prompts).mean())
        if record.moved_share >= record.moved_share_wanted:
            weaker = scored(sampler, base, prompts, edit.edit_D * 0.5)
            assert float((weaker >= threshold).float().mean()) < record.moved_share_wanted


def test_new_clusters_start_where_the_edit_changes_most() -> None:
    config, sampler = config_with(), make_sampler()
    edit = find_edits(config, sampler, ColourPrompts())[0]
    start_1D = starts_of_rare(edit, 1, config, sampler, ("b16.conv1",), torch.ones(8))
    seeds, most = edited_seeds(config), []
    for seed in seeds:
        before, after = (sampler.sample([seed], ("b16.conv1",), e).features["b16.conv1"] for e in (None, edit.edit_D))
        change_S = (after - before).square().sum(dim=1).flatten()
        most.append(after[0].flatten(1)[:, change_S.topk(256 // 32).indices])
    torch.testing.assert_close(start_1D[0], torch.cat(most, dim=1).mean(dim=1), atol=1e-4, rtol=1e-3)


def test_new_clusters_of_a_named_class_start_where_pixels_become_it() -> None:
    config, sampler, model = config_with(names=NAMES), make_sampler(), ColourPrompts()
    edit = find_edits(config, sampler, model)[0]
    layers, scales_D = ("b16.conv1",), torch.ones(8)
    start_1D = starts_of_rare(edit, 1, config, sampler, layers, scales_D, ClassMargins(NAMES, "cool", model))
    own_PE, others_PE = model.embed_prompts(NAMES["cool"]), model.embed_prompts([*NAMES["back"], *NAMES["warm"]])
    found, passed_over = [], 0
    for seed in edited_seeds(config):
        margins = []
        for edit_D in (None, edit.edit_D):
            batch = sampler.sample([seed], layers, edit_D)
            dense_BEHW = functional.interpolate(model.dense(batch.images_BCHW), (16, 16), mode="bilinear")
            x_SE = functional.normalize(dense_BEHW[0].flatten(1).T, dim=1)
            margins.append((x_SE @ own_PE.T).amax(dim=1) - (x_SE @ others_PE.T).amax(dim=1))
        of_class = torch.nonzero(margins[1] > 0).flatten()
        rise_S = (margins[1] - margins[0])[of_class]
        most = of_class[rise_S.argsort(descending=True)[: 256 // 32]]
        found.append(batch.features["b16.conv1"][0].flatten(1)[:, most])
        passed_over += 256 - len(of_class)
    assert sum(part.shape[1] for part in found) > 0 and passed_over > 0
    torch.testing.assert_close(start_1D[0], torch.cat(found, dim=1).mean(dim=1), atol=1e-4, rtol=1e-3)

    changed_1D = starts_of_rare(edit, 1, config, sampler, layers, scales_D)
    assert not torch.allclose(start_1D, changed_1D, atol=1e-3)
    nowhere = ClassMargins({"none": ["red"], "all": ["red", "green", "blue", "grey"]}, "none", model)
    assert torch.equal(starts_of_rare(edit, 1, config, sampler, layers, scales_D, nowhere), changed_1D)


def test_prompts_see_gray_rectangles_as_rgb_and_sheets_keep_their_shape() -> None:
    sampler = make_sampler(const_size=(4, 2), img_channels=1)
    config = config_with(names=NAMES, min_margin=0)
    model = ColourPrompts()
    fitted = fit_feature_clusters(config, sampler, None, model)
    records = fitted.provenance.clusters
    assert sum(record.share for record in records) == pytest.approx(1, abs=1e-4)
    labeler = open_fitted(config, sampler, fitted.to_bytes()).labeler
    batch = sampler.sample([1, 2, 3], labeler.layers)
    assert batch.images_BCHW.shape == (3, 1, 16, 8)
    assert labeler.label(batch).masks_BHW.shape == (3, 16, 8)
    sheets = cluster_guide(config, sampler, fitted)
    shown = cv2.imdecode(np.frombuffer(sheets["cluster_00.png"], np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (2 * 256 + 28, 8 * 128, 3)
    edited = cv2.imdecode(np.frombuffer(sheets["discovery_00.png"], np.uint8), cv2.IMREAD_COLOR)
    assert edited.shape == (3 * 256 + 28, 8 * 128, 3)


def test_rare_classes_get_clusters_and_the_others_stay_to_the_bit() -> None:
    sampler = make_sampler()
    plain = fit_feature_clusters(make_config(), sampler)
    config = config_with(names=NAMES)
    found = fit_feature_clusters(config, sampler, None, ColourPrompts())
    records = found.provenance.discoveries
    assert [len(record.clusters) for record in records] == [2, 1]
    new = {number for record in records for number in record.clusters}
    kept_KD = found.model.centroids_KD[[number for number in range(8) if number not in new]]
    assert sorted(map(tuple, kept_KD.tolist())) == sorted(map(tuple, plain.model.centroids_KD.tolist()))
    assert torch.equal(found.model.temperature, plain.model.temperature)
    content = found.to_bytes()
    assert content == fit_feature_clusters(config, sampler, None, ColourPrompts()).to_bytes()
    assert load(content)["edits"].shape == (2, 8)
    labeler = open_fitted(config, sampler, content).labeler
    assert labeler.classes == tuple(NAMES)
    json.loads(found.provenance.model_dump_json())
    sheets = cluster_guide(config, sampler, found)
    assert [name for name in sheets if name.startswith("discovery")] == ["discovery_00.png", "discovery_01.png"]


def test_new_clusters_are_means_of_edited_pixels_alone() -> None:
    """Lloyd's passes by hand: over the images that the edit changed, with the other centroids held where they are."""
    sampler, layer = make_sampler(), "b16.conv1"
    settings = {"discover": DISCOVER[:1], "layers": layer, "passes": 2}
    config = config_with(**settings)
    plain_KD = fit_feature_clusters(make_config(layers=layer, passes=2), sampler).model.centroids_KD
    edit = find_edits(config, sampler, ColourPrompts())[0]
    edited = [sampler.sample([seed], (layer,), edit.edit_D).features[layer][0] for seed in edited_seeds(config)]
    x_SD = torch.cat([features_DHW.flatten(1).T for features_DHW in edited])
    new_KD = starts_of_rare(edit, 2, config, sampler, (layer,), torch.ones(8))
    for _ in range(config.passes):
        nearest_S = torch.cdist(x_SD.double(), torch.cat([plain_KD, new_KD]).double()).argmin(dim=1)
        members = [x_SD[nearest_S == len(plain_KD) + number] for number in range(2)]
        assert all(0 < len(member_SD) < len(x_SD) for member_SD in members)
        new_KD = torch.stack([member_SD.mean(dim=0) for member_SD in members])
    found = fit_feature_clusters(config, sampler, None, ColourPrompts())
    kept_KD = found.model.centroids_KD[found.provenance.discoveries[0].clusters]
    difference_KK = (kept_KD[:, None] - new_KD).abs().amax(dim=2)
    assert sorted(difference_KK.argmin(dim=0).tolist()) == [0, 1] and difference_KK.amin(dim=0).max() < 1e-3


@pytest.mark.parametrize(("name", "some_dropped"), [("back", False), ("cool", True)])
def test_what_a_fit_with_discovery_writes_is_a_mapping_for_its_clusters(
    name: str, some_dropped: bool, tmp_path: Path
) -> None:
    """Whether new clusters were dropped or not: the mapping goes with the settings that it comes from."""
    sampler, settings = make_sampler(), {"names": NAMES, "min_margin": 0.0}
    rare = [{**DISCOVER[0], "name": name, "extra_clusters": 3}, DISCOVER[1]]
    config = config_with(**settings, discover=rare)
    fitted = fit_feature_clusters(config, sampler, None, ColourPrompts())
    assert (len(fitted.provenance.clusters) < 5 + 3 + 1) == some_dropped
    path = tmp_path / "clusters.yaml"
    path.write_bytes(cluster_guide(config, sampler, fitted)["clusters.yaml"])

    again = config_with(**settings, discover=rare, mapping=str(path))
    METHOD.check(again, sampler)
    mapped = fit_feature_clusters(again, sampler, None, ColourPrompts())
    assert mapped.provenance.named_by == "mapping" and mapped.model.clustering == fitted.model.clustering
    plain, named = (
        open_fitted(config, sampler, fitted.to_bytes()).labeler,
        open_fitted(again, sampler, mapped.to_bytes()).labeler,
    )
    batch = sampler.sample([1, 2, 3], plain.layers)
    assert torch.equal(plain.label(batch).masks_BHW, named.label(batch).masks_BHW)


def test_mappings_that_no_discovery_can_fit_are_refused_before_any_work() -> None:
    rare = [{**DISCOVER[0], "name": "warm", "extra_clusters": 3}, DISCOVER[1]]
    for count, message in (
        (5, r"has no class for clusters 5; there are clusters 0 to 5, and up to 8 with those of rare classes"),
        (10, r"names unknown clusters 9; there are clusters 0 to 5, and up to 8"),
    ):
        mapping = {"classes": ["a", "b"], "clusters": dict.fromkeys(range(count), "a")}
        with pytest.raises(ConfigError, match=rf"labeler\.mapping: {message}"):
            METHOD.check(config_with(names=NAMES, discover=rare, mapping=mapping), make_sampler())


def test_new_clusters_that_prompts_name_otherwise_are_dropped() -> None:
    sampler = make_sampler()
    plain = fit_feature_clusters(make_config(names=NAMES, prompt_model="colours"), sampler, None, ColourPrompts())
    kept: list[int] = []
    for name in NAMES:
        config = make_config(
            names=NAMES,
            prompt_model="colours",
            discover=[{**DISCOVER[0], "name": name, "extra_clusters": 3}],
            discovery_samples=200,
            edited_samples=16,
            min_margin=0.0,
        )
        found = fit_feature_clusters(config, sampler, None, ColourPrompts())
        new = found.provenance.discoveries[0].clusters
        assert len(found.provenance.clusters) == 5 + len(new)
        assert {found.provenance.clusters[number].name for number in new} <= {name}
        if not new:
            assert torch.equal(found.model.centroids_KD, plain.model.centroids_KD)
        kept.append(len(new))
    assert 0 in kept and max(kept) > 0
    with pytest.raises(ValueError, match="discover: hat not among the classes of names"):
        make_config(names=NAMES, prompt_model="colours", discover=[{**DISCOVER[0], "name": "hat"}])


def test_new_clusters_keep_the_name_that_they_were_kept_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though prompts call them otherwise once all clusters are there."""

    def forgetful(*arguments: object) -> list[ClusterRecord]:
        records, found = by_prompts(*arguments), arguments[-1]  # type: ignore[arg-type]
        assert isinstance(found, ClusterShares)
        is_last = sum(found.share_K) > 0
        return [
            record.model_copy(update={"name": "back", "is_unsure": True}) if is_last else record for record in records
        ]

    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules[fit_feature_clusters.__module__], "by_prompts", forgetful)
    num_new = 0
    for name in ("back", "warm", "cool"):
        config = config_with(names=NAMES, discover=[{**DISCOVER[0], "name": name}], min_margin=0.0)
        provenance = fit_feature_clusters(config, make_sampler(), None, ColourPrompts()).provenance
        new = set(provenance.discoveries[0].clusters)
        for number, record in enumerate(provenance.clusters):
            assert (record.name, record.is_unsure) == ((name, False) if number in new else ("back", True))
        num_new += len(new)
    assert num_new > 0


def test_too_few_samples_are_refused() -> None:
    rare = {"prompt": "red", "against": "blue", "positive_share": 0.01}
    with pytest.raises(ValueError, match=r"discover: positive_share 0\.01 of 200 images is 2 for 'red'; 8 are needed"):
        make_config(discover=[rare], prompt_model="colours", discovery_samples=200, edited_samples=8)
    make_config(discover=[rare], prompt_model="colours", discovery_samples=800, edited_samples=8)
