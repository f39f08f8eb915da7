"""Feature clusters from fit to masks, with a random generator."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.clusters_setup import make_config
from helpers.random_sampler import make_sampler
from helpers.ray_runs import shards_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec, channels_by_resolution
from labelmill.pipeline.labelers.common.joint_upsampling import resize, snap_to_edges
from labelmill.pipeline.labelers.common.pixel_reading import some_pixels
from labelmill.pipeline.labelers.feature_clusters import choose as choose_clustering
from labelmill.pipeline.labelers.feature_clusters import labeler as feature_clusters
from labelmill.pipeline.labelers.feature_clusters.choose import (
    ClusteringTrial,
    PixelSample,
    SampleCollector,
    adjusted_rand_index,
    best_layers,
    best_number,
    contingency,
    explained_colour,
    num_stable,
    sample_plan,
)
from labelmill.pipeline.labelers.feature_clusters.clusters import ClusterModel
from labelmill.pipeline.labelers.feature_clusters.labeler import FeatureClustersLabeler, bytes_needed, layer_candidates
from labelmill.pipeline.labelers.feature_clusters.method import METHOD
from labelmill.pipeline.labelers.feature_clusters.streamed_kmeans import StreamedKMeans, mean_distance
from labelmill.pipeline.labelers.fitted_file import FittedLabelerError
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.prompt_models import PromptModelError
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.yaml_file import validate


@pytest.fixture(scope="module")
def fitted() -> bytes:
    return fit_to_bytes(make_config(), make_sampler(), "a" * 64)


def opened(fitted: bytes, **sampler_settings: object) -> FeatureClustersLabeler:
    labeler = open_fitted(make_config(), make_sampler(**sampler_settings), fitted).labeler  # type: ignore[arg-type]
    assert isinstance(labeler, FeatureClustersLabeler)
    return labeler


def header(content: bytes) -> dict[str, object]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["labelmill"])


def rewritten(content: bytes, **changes: object) -> bytes:
    return save(load(content), metadata={"labelmill": json.dumps(header(content) | changes)})


def test_labels(fitted: bytes) -> None:
    sampler, labeler = make_sampler(), opened(fitted)
    assert labeler.classes == tuple(f"cluster_{number}" for number in range(5))
    assert labeler.layers == ("b16.conv1",)
    labels = labeler.label(sampler.sample([1, 2, 3], labeler.layers))
    assert labels.masks_BHW.shape == (3, 16, 16) and labels.masks_BHW.dtype == torch.uint8
    assert set(labels.masks_BHW.unique().tolist()) <= set(range(5)) and len(labels.masks_BHW.unique()) > 2
    assert labels.confidence_B.shape == (3,)
    assert bool(((labels.confidence_B > 0.2) & (labels.confidence_B <= 1)).all())


@pytest.mark.parametrize("noise", ["const", "per_seed"])
def test_a_mask_depends_on_its_sample_alone_to_the_bit(noise: str, fitted: bytes) -> None:
    sampler, labeler = make_sampler(noise=noise, batch_size=8), opened(fitted, noise=noise, batch_size=8)
    alone = labeler.label(sampler.sample([5], labeler.layers))
    for seeds in ([5, 1, 2, 3, 4, 6, 7], [1, 2, 5], [0, 1, 2, 3, 4, 5, 6, 7]):
        labels = labeler.label(sampler.sample(seeds, labeler.layers))
        assert torch.equal(labels.masks_BHW[seeds.index(5)], alone.masks_BHW[0])
        assert torch.equal(labels.confidence_B[seeds.index(5)], alone.confidence_B[0])


def test_masks_and_confidence_by_their_definition(fitted: bytes) -> None:
    sampler, labeler = make_sampler(), opened(fitted)
    batch = sampler.sample([1, 2, 3, 4], labeler.layers)
    tensors = load(fitted)
    x_BhwC = batch.features["b16.conv1"].permute(0, 2, 3, 1)
    squares_BhwK = (x_BhwC[..., None, :] - tensors["centroids"]).square().sum(dim=-1)
    maps_BKhw = torch.softmax(-squares_BhwK / tensors["temperature"], dim=3).permute(0, 3, 1, 2)
    stacked_BKhw = torch.cat([1 - maps_BKhw[:, :1], maps_BKhw[:, 1:]], dim=1)
    snapped_BKHW = snap_to_edges(stacked_BKhw, batch.images_BCHW, radius=1)
    expected = torch.where(snapped_BKHW[:, 0] > 0.5, snapped_BKHW[:, 1:].argmax(dim=1) + 1, 0)
    labels = labeler.label(batch)
    assert (labels.masks_BHW == expected).float().mean() > 0.999
    torch.testing.assert_close(labels.confidence_B, maps_BKhw.amax(dim=1).mean(dim=(1, 2)), atol=1e-5, rtol=0)


def test_probabilities_of_the_classes_on_demand(fitted: bytes) -> None:
    """They sum to 1, follow the masks, leave masks as they are, and give away what ignored clusters have."""
    sampler, plain = make_sampler(), opened(fitted)
    labeler = FeatureClustersLabeler(sampler, plain.fitted, gives_probabilities=True)
    assert (plain.optional_files, labeler.optional_files) == ((), ("probabilities.png",))
    batch = sampler.sample([1, 2, 3], labeler.layers)
    labels, without = labeler.label(batch), plain.label(batch)
    assert without.probabilities_BKHW is None and torch.equal(labels.masks_BHW, without.masks_BHW)
    assert labels.probabilities_BKHW is not None and labels.probabilities_BKHW.shape == (3, 5, 16, 16)
    torch.testing.assert_close(labels.probabilities_BKHW.sum(dim=1), torch.ones(3, 16, 16))
    background_BHW = labels.probabilities_BKHW[:, 0]
    assert torch.equal(labels.masks_BHW != 0, background_BHW < 0.5)
    part_BHW = labels.probabilities_BKHW[:, 1:].argmax(dim=1) + 1
    assert torch.equal(labels.masks_BHW[labels.masks_BHW > 0], part_BHW[labels.masks_BHW > 0].byte())
    alone = labeler.label(sampler.sample([2], labeler.layers)).probabilities_BKHW
    assert alone is not None and torch.equal(alone[0], labels.probabilities_BKHW[1])
    clusters = [
        cluster.model_copy(update={"name": name})
        for cluster, name in zip(plain.fitted.provenance.clusters, [*"abcd", "ignore"], strict=True)
    ]
    provenance = plain.fitted.provenance.model_copy(update={"clusters": clusters, "classes": list("abcd")})
    partly = replace(plain.fitted, provenance=provenance)
    ignoring = FeatureClustersLabeler(sampler, partly, gives_probabilities=True).label(batch)
    assert ignoring.probabilities_BKHW is not None and ignoring.probabilities_BKHW.shape == (3, 4, 16, 16)
    torch.testing.assert_close(ignoring.probabilities_BKHW.sum(dim=1), torch.ones(3, 16, 16))
    assert bool((ignoring.masks_BHW == IGNORE).any())


def test_runs_without_probabilities_keep_their_fingerprint_and_files_of_the_others_are_refused(fitted: bytes) -> None:
    assert "probabilities" not in make_config().model_dump(mode="json")
    wanted = make_config(probabilities=True)
    assert wanted.model_dump(mode="json")["probabilities"] is True
    with pytest.raises(FittedLabelerError, match="probabilities: True here, nothing in the file"):
        open_fitted(wanted, make_sampler(), fitted)


@pytest.mark.parametrize(("low", "high"), [((4, 4), (8, 8)), ((4, 2), (8, 4)), ((3, 5), (6, 10))])
def test_distances_of_several_layers_are_those_of_features_upsampled_side_by_side(
    low: tuple[int, int], high: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    features = {"low": torch.randn(2, 3, *low), "high": torch.randn(2, 5, *high)}
    model = ClusterModel(("low", "high"), torch.randn(6, 8), torch.rand(8) + 0.5, torch.tensor(1.0))
    up_BChw = functional.interpolate(features["low"], size=high, mode="bilinear", align_corners=False)
    x_BhwD = torch.cat([up_BChw, features["high"]], dim=1).permute(0, 2, 3, 1) * model.scales_D
    squares_BhwK = (x_BhwD[..., None, :] - model.centroids_KD).square().sum(dim=-1)
    shared_Bhw1 = x_BhwD.square().sum(dim=-1, keepdim=True)
    torch.testing.assert_close(model.distances(features) + shared_Bhw1, squares_BhwK, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.nearest(features), squares_BhwK.argmin(dim=3))


def test_streaming_is_lloyd_on_all_pixels_at_once() -> None:
    torch.manual_seed(1)
    x_SD = torch.randn(600, 4) + 3 * torch.randint(0, 3, (600, 1))
    starts_KD = x_SD[[0, 5, 9]]
    stream = StreamedKMeans(starts_KD)
    for _ in range(10):
        for part_SD in x_SD.split(70):
            stream.add(part_SD)
        stream.move()
    theirs = SklearnKMeans(3, init=starts_KD.numpy(), n_init=1, max_iter=10, tol=0, algorithm="lloyd").fit(x_SD.numpy())
    np.testing.assert_allclose(stream.centroids_KD.numpy(), theirs.cluster_centers_, atol=1e-4)
    assert float(mean_distance(x_SD, stream.centroids_KD)) == pytest.approx(theirs.inertia_ / 600, rel=1e-4)
    fixed = StreamedKMeans(starts_KD, num_fixed=2)
    fixed.add(x_SD)
    fixed.move()
    assert torch.equal(fixed.centroids_KD[:2], starts_KD[:2]) and not torch.equal(fixed.centroids_KD[2], starts_KD[2])


def test_the_same_fit_gives_the_same_bytes_and_another_gives_others(fitted: bytes) -> None:
    assert fit_to_bytes(make_config(), make_sampler(), "a" * 64) == fitted
    assert (
        load(fit_to_bytes(make_config(fit_first_seed=1), make_sampler()))["centroids"].tolist()
        != load(fitted)["centroids"].tolist()
    )


def test_clusters_are_in_order(fitted: bytes) -> None:
    clusters = header(fitted)["clusters"]
    assert isinstance(clusters, list)
    borders, shares = ([cluster[key] for cluster in clusters] for key in ("border_share", "share"))
    assert borders[0] == max(borders) and shares[1:] == sorted(shares[1:], reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-4) and sum(borders) == pytest.approx(1, abs=1e-4)
    # By the definition, on the images of fit.
    sampler, labeler = make_sampler(), opened(fitted)
    seeds = range(4_100_000_000, 4_100_000_016)
    batches = [sampler.sample(seeds[start : start + 4], labeler.layers) for start in range(0, 16, 4)]
    nearest = torch.cat([labeler.fitted.model.nearest(batch.features) for batch in batches])
    assert [round(float((nearest == number).float().mean()), 6) for number in range(5)] == shares


def spec_of(resolution: int) -> GeneratorSpec:
    channels = channels_by_resolution(resolution, channel_base=128, channel_max=8)
    return GeneratorSpec(resolution=resolution, z_dim=8, w_dim=8, c_dim=0, mapping_layers=2, channels=channels)


def test_layers() -> None:
    assert layer_candidates(make_config(), spec_of(256)) == [("b64.conv1",)]
    assert layer_candidates(make_config(), spec_of(32)) == [("b32.conv1",)]
    assert layer_candidates(make_config(layers=["b8.conv0", "b32.conv1"]), spec_of(32)) == [("b8.conv0", "b32.conv1")]
    autos = [("b16.conv1",), ("b32.conv1",), ("b64.conv1",), ("b128.conv1",)]
    assert layer_candidates(make_config(layers="auto"), spec_of(256)) == autos
    assert layer_candidates(make_config(layers="auto"), spec_of(8)) == [("b8.conv1",)]
    with pytest.raises(ConfigError, match=r"labeler\.layers: b64\.conv1 not in this generator; there are b4\.conv1"):
        fit_to_bytes(make_config(layers="b64.conv1"), make_sampler())


@pytest.mark.parametrize("layers", [["b8.conv1", "b16.conv0"], "b8.conv1"])
def test_other_layers_give_masks_of_the_image(layers: object) -> None:
    config, sampler = make_config(layers=layers, normalisation="standardised"), make_sampler()
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    masks_BHW = labeler.label(sampler.sample([1, 2], labeler.layers)).masks_BHW
    assert masks_BHW.shape == (2, 16, 16) and len(masks_BHW.unique()) > 2


def test_auto_layers_and_a_list_of_k_are_recorded_with_what_they_were_chosen_from() -> None:
    config, sampler = make_config(layers="auto", clusters=[2, 3, 5]), make_sampler(resolution=32)
    values = header(fit_to_bytes(config, sampler))
    layers, numbers = values["layer_trials"], values["cluster_trials"]
    assert isinstance(layers, dict) and isinstance(numbers, dict) and isinstance(values["clusters"], list)
    assert sorted(layers) == ["b16.conv1", "b32.conv1"] and sorted(numbers) == ["2", "3", "5"]
    merits = {name: max(0, trial["stability"]) * trial["explained_colour"] for name, trial in layers.items()}
    assert values["layers"] == [max(merits, key=lambda name: merits[name])]
    stable = {int(k): trial["stable_clusters"] for k, trial in numbers.items()}
    assert len(values["clusters"]) == max(stable, key=lambda k: (2 * stable[k] - k, k))
    assert all(trial["classes_found"] is None for trial in numbers.values())


def trial(stability: float = 0.5, colour: float = 0.5, stable: int = 0, **named: object) -> ClusteringTrial:
    values = {"stability": stability, "explained_colour": colour, "stable_clusters": stable}
    return ClusteringTrial.model_validate({**values, **named})


def test_choosing() -> None:
    assert best_layers({"a": trial(0.9, 0.3), "b": trial(0.5, 0.6)}) == "b"
    # Without prompts: stable clusters less dissolved ones are 4, 6, 6 and 0; of equals the largest k.
    assert best_number({4: trial(stable=4), 8: trial(stable=7), 16: trial(stable=11), 32: trial(stable=16)}) == 16
    # By prompts: most classes, then few unsure pixels, then the least k; stability counts nothing.
    named = {
        8: trial(0.9, stable=8, classes_found=4, unsure_share=0.0),
        16: trial(0.7, stable=9, classes_found=5, unsure_share=0.15),
        24: trial(0.6, stable=9, classes_found=5, unsure_share=0.05),
        32: trial(0.5, stable=9, classes_found=5, unsure_share=0.04),
    }
    assert best_number(named) == 24
    assert best_number({**named, 48: trial(0.4, classes_found=6, unsure_share=0.3)}) == 48


@given(
    num_features=st.integers(1, 4096),
    size=st.sampled_from([4, 8, 16, 32, 64, 128]),
    num_images=st.one_of(st.integers(16, 1000), st.integers(16, 10**7)),
)
def test_a_sample_does_not_grow_with_the_images(num_features: int, size: int, num_images: int) -> None:
    every, per_image = sample_plan(num_features, size**2, num_images)
    images = len(range(0, num_images, every))
    assert images >= 16 and 1 <= per_image <= size**2
    assert images * per_image <= 32768 and images * per_image * num_features <= 2**26
    # What is left out would not have fitted.
    assert every == 1 or images * 2 > min(32768, 2**26 // num_features)
    assert per_image == size**2 or num_images * (per_image + 1) > min(32768, 2**26 // num_features)


def test_a_sample_of_more_images_than_it_holds_is_of_every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_clustering, "_SAMPLE_PIXELS", 4)
    sampler = make_sampler()
    collector = SampleCollector(("b8.conv1",), num_features=1, size=(8, 8), num_images=8)
    for start in range(0, 8, 4):
        collector.add(sampler.sample(range(start, start + 4), ("b8.conv1",)))
    sample = collector.sample()
    assert sample.image_S.tolist() == [0, 1, 2, 3]
    # Of the images 0, 2, 4, 6 the pixels that some_pixels draws for images 0, 1, 2, 3.
    whole = torch.cat([sampler.sample(range(start, start + 4), ("b8.conv1",)).features["b8.conv1"] for start in (0, 4)])
    for number in range(4):
        (pixel,) = some_pixels(64, number, 1).tolist()
        assert torch.equal(sample.features["b8.conv1"][number], whole[2 * number].flatten(1)[:, pixel])


def test_stable_clusters_share_more_than_half_of_their_joint_pixels() -> None:
    first_S = torch.tensor([0] * 10 + [1] * 10 + [2] * 9 + [3])
    # 7 of the first's 10 stay together, in 8; all of the second's 10, in 13; the third falls to pieces of 4, 4 and 1.
    second_S = torch.tensor([3] * 7 + [1] * 13 + [0] * 4 + [2] * 4 + [3] + [2])
    assert num_stable(contingency(first_S, second_S, 4)) == 2
    halves_S = torch.tensor([0, 0, 1, 1])
    assert num_stable(contingency(halves_S, torch.tensor([0, 1, 2, 2]), 3)) == 1, "half is not more than half"


def test_stability_is_the_adjusted_rand_index() -> None:
    torch.manual_seed(2)
    first_S = torch.randint(0, 4, (500,))
    second_S = torch.where(torch.rand(500) < 0.7, first_S, torch.randint(0, 4, (500,)))
    ours = adjusted_rand_index(contingency(first_S, second_S, 4))
    assert ours == pytest.approx(adjusted_rand_score(first_S, second_S))
    assert adjusted_rand_index(contingency(first_S, (first_S + 1) % 4, 4)) == 1


def test_explained_colour_by_hand() -> None:
    colours_SC = torch.tensor([[0.0], [2.0], [4.0], [6.0], [10.0], [12.0]])
    sample = PixelSample({}, colours_SC, torch.tensor([0, 0, 0, 0, 1, 1]))
    # Image 0: variance 20 around 3; clusters {0, 2} and {4, 6} leave 4. Image 1: 2 around 11, one cluster leaves 2.
    assert explained_colour(sample, torch.tensor([0, 0, 1, 1, 0, 0]), 2) == pytest.approx(1 - 6 / 22)


def test_more_clusters_than_memory_holds_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler()
    monkeypatch.setattr(feature_clusters, "free_bytes", lambda _: 2**30)
    config = make_config(clusters=4096, restarts=64, names={"a": ["red"], "b": ["blue"]}, prompt_model="bundled:x")
    needed = bytes_needed(config, sampler.generator.spec, ("b16.conv1",), 4096, 4)
    most = max(k for k in range(2, 4096) if bytes_needed(config, sampler.generator.spec, ("b16.conv1",), k, 4) <= 2**30)
    assert needed > 2**30
    message = (
        rf"labeler\.clusters: 4096 clusters need {needed / 1e9:.1f} GB .* CPU has 1\.1 GB left; at most {most} fit"
    )
    with pytest.raises(ConfigError, match=message):
        fit_to_bytes(config, sampler)


def test_a_labeler_opens_whatever_memory_its_fit_still_holds(fitted: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_clusters, "free_bytes", lambda _: 0)
    assert opened(fitted).classes
    with pytest.raises(ConfigError, match="lower numerics"):
        METHOD.check(make_config(), make_sampler())


def test_more_clusters_than_pixels_to_start_from_are_refused_before_any_work() -> None:
    names = {"a": ["red"], "b": ["blue"]}
    config = make_config(clusters=[2, 129], layers="b4.conv1", names=names, prompt_model="bundled:x")
    message = r"labeler\.clusters: 129 clusters, but half of the 16 images of fit_samples give 128 pixels of b4\.conv1"
    with pytest.raises(ConfigError, match=message):
        METHOD.check(config, make_sampler())
    METHOD.check(config.model_copy(update={"clusters": 128}), make_sampler())


def test_more_clusters_than_mask_values_need_names() -> None:
    with pytest.raises(ConfigError, match=r"labeler\.clusters: 256 clusters without names, but masks hold 255"):
        METHOD.check(make_config(clusters=256), make_sampler())
    rare = {"discover": [{"prompt": "red", "against": "blue"}], "prompt_model": "colours", "edited_samples": 16}
    METHOD.check(make_config(clusters=247, **rare), make_sampler())
    with pytest.raises(ConfigError, match=r"labeler\.clusters: 248 clusters and 8 for discover without names"):
        METHOD.check(make_config(clusters=248, **rare), make_sampler())


def test_a_labeler_of_another_checkpoint_is_refused(fitted: bytes) -> None:
    open_fitted(make_config(), make_sampler(), fitted, "a" * 64)
    with pytest.raises(FittedLabelerError, match=r"fitted on another checkpoint .sha256 aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        open_fitted(make_config(), make_sampler(), fitted, "b" * 64)


def test_damaged_and_foreign_files(fitted: bytes) -> None:
    tensors, text = load(fitted), json.dumps(header(fitted))
    clusters = header(fitted)["clusters"]
    assert isinstance(clusters, list)
    stranger = [{**clusters[0], "name": "hare"}, *clusters[1:]]
    broken = {
        "damaged safetensors file": [b"", fitted[: len(fitted) // 2]],
        "not of labelmill": [save(tensors)],
        "'labelmill-style-mixing' version 1": [rewritten(fitted, format="labelmill-style-mixing")],
        "description is unusable": [rewritten(fitted, surprise=1)],
        "layers .*b64.conv1.* not in this generator": [rewritten(fitted, layers=["b64.conv1"])],
        "clusters of unknown classes .*hare": [rewritten(fitted, clusters=stranger)],
        "holds tensors": [
            save({**tensors, "centroids": tensors["centroids"][:4]}, metadata={"labelmill": text}),
            rewritten(fitted, clusters=clusters[:4]),
        ],
        "centroids is not finite": [
            save({**tensors, "centroids": tensors["centroids"] / 0}, metadata={"labelmill": text})
        ],
        "temperature 0": [save({**tensors, "temperature": torch.tensor(0.0)}, metadata={"labelmill": text})],
    }
    for message, contents in broken.items():
        for content in contents:
            with pytest.raises(FittedLabelerError, match=message):
                open_fitted(make_config(), make_sampler(), content)
    with pytest.raises(FittedLabelerError, match="clusters: 6 here, 5 in the file"):
        open_fitted(make_config(clusters=6), make_sampler(), fitted)
    with pytest.raises(FittedLabelerError, match="resolution: 32 here, 16 in the file"):
        open_fitted(make_config(), make_sampler(resolution=32), fitted)


def test_ignored_clusters_become_255_and_classes_add_up_their_clusters(fitted: bytes) -> None:
    clusters = {"0": "background", "1": "ignore", "2": "thing", "3": "thing", "4": "background"}
    config = make_config(mapping={"classes": ["background", "thing"], "clusters": clusters})
    sampler = make_sampler()
    labeler, plain = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler, opened(fitted)
    assert labeler.classes == ("background", "thing")
    batch = sampler.sample([1, 2, 3, 4], labeler.layers)
    masks_BHW, fine_BHW = labeler.label(batch).masks_BHW, plain.label(batch).masks_BHW
    assert set(masks_BHW.unique().tolist()) == {0, 1, IGNORE}
    table = torch.tensor([0, IGNORE, 1, 1, 0], dtype=torch.uint8)
    assert (masks_BHW == table[fine_BHW.long()]).float().mean() > 0.9
    assert isinstance(labeler, FeatureClustersLabeler)
    ours, theirs = labeler.class_maps(batch), plain.class_maps(batch)
    expected = torch.stack([theirs[:, 0] + theirs[:, 4], theirs[:, 2] + theirs[:, 3], theirs[:, 1]], dim=1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_a_label_free_foreground_decides_with_the_clusters() -> None:
    clusters = {"0": "background", "1": "ignore", "2": "thing", "3": "other", "4": "background"}
    values = {
        "mapping": {"classes": ["background", "thing", "other"], "clusters": clusters},
        "style_mixing": {
            "variants": 4,
            "crossover": 2,
            "clusters": 4,
            "restarts": 2,
            "iterations": 4,
            "fit_samples": 16,
        },
    }
    sampler, config = make_sampler(), make_config(**values, foreground="label_free")
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    plain = open_fitted(make_config(**values), sampler, fit_to_bytes(make_config(**values), sampler)).labeler
    assert isinstance(labeler, FeatureClustersLabeler) and isinstance(plain, FeatureClustersLabeler)
    fitted = labeler.fitted
    assert fitted.mixing is not None and set(labeler.layers) >= {*plain.layers, *fitted.mixing.readout.layers}
    batch = sampler.sample([1, 2, 3, 4], labeler.layers)
    parts_B1hw, _ = fitted.mixing.readout(batch.features)
    foreground_Bhw = torch.sigmoid((resize(parts_B1hw, (16, 16))[:, 0] - 0.5) / 0.05)
    ours_BNhw, theirs_BNhw = labeler.class_maps(batch), plain.class_maps(batch)
    torch.testing.assert_close(ours_BNhw[:, 0], 1 - foreground_Bhw)
    # Within it each pair of classes is as it was.
    for one, other in ((1, 2), (2, 3)):
        pairs = ours_BNhw[:, one] * theirs_BNhw[:, other], ours_BNhw[:, other] * theirs_BNhw[:, one]
        torch.testing.assert_close(*pairs, atol=1e-6, rtol=1e-4)
    has_class_Bhw = theirs_BNhw[:, 1:].sum(dim=1) > 1e-6
    assert has_class_Bhw.float().mean() > 0.9
    sums_S = ours_BNhw.sum(dim=1)[has_class_Bhw]
    torch.testing.assert_close(sums_S, torch.ones_like(sums_S))
    assert not torch.equal(labeler.label(batch).masks_BHW, plain.label(batch).masks_BHW)
    # It is used of itself only where it agrees.
    agreed = fitted.provenance.foreground_agreement
    assert agreed is not None and 0 < agreed < 1
    for least, is_used in ((agreed + 0.01, False), (agreed - 0.01, True)):
        auto = make_config(**values, foreground="auto", least_agreement=least)
        found = open_fitted(auto, sampler, fit_to_bytes(auto, sampler)).labeler
        same = labeler if is_used else plain
        assert torch.equal(found.label(batch).masks_BHW, same.label(batch).masks_BHW)


def test_clusters_without_names_have_no_foreground() -> None:
    with pytest.raises(ValueError, match="clusters without names have no background"):
        make_config(foreground="label_free")
    with pytest.raises(ValueError, match="style_mixing: only the foreground as a whole"):
        make_config(style_mixing={"parts": 2})


def test_confidence_is_of_what_is_not_ignored(fitted: bytes) -> None:
    sampler, plain = make_sampler(), opened(fitted)
    batch = sampler.sample([1, 2, 3, 4], plain.layers)
    maps_BKhw = plain.class_maps(batch)[:, :5]
    for ignored in ([1], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
        named = {str(number): "ignore" if number in ignored else "thing" for number in range(5)}
        config = make_config(mapping={"classes": ["background", "thing"], "clusters": named})
        labels = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler.label(batch)
        thing_Bhw = maps_BKhw[:, [number for number in range(5) if number not in ignored]].sum(dim=1)
        for index, one_hw in enumerate(thing_Bhw):
            kept = one_hw[one_hw > 0.5]
            expected = float(kept.mean()) if len(kept) else 0.0
            assert float(labels.confidence_B[index]) == pytest.approx(expected, abs=1e-4)
    assert labels.confidence_B.tolist() == [0.0] * 4, "nothing is left to be right"


def test_mistakes_have_the_keys_that_users_write() -> None:
    def mistakes(labeler: object) -> str:
        values = {"name": "a", "output": "o", "generator": {"checkpoint": "b"}, "dataset": {"samples": 3}}
        with pytest.raises(ConfigError) as caught:
            validate({**values, "labeler": labeler}, "run.yaml", RunConfig)
        return str(caught.value)

    assert "labeler.variants: input should be greater than or equal to 2, found 1" in mistakes({"variants": 1})
    assert "labeler.clusters: input should be greater than or equal to 2, found 1" in mistakes(
        {"method": "feature_clusters", "clusters": 1}
    )
    assert "labeler.clusers: unknown key; did you mean clusters?" in mistakes(
        {"method": "feature_clusters", "clusers": 1}
    )
    assert "labeler.discover.0.against: is required" in mistakes(
        {"method": "feature_clusters", "discover": [{"prompt": "x"}], "prompt_model": "bundled:x"}
    )
    for method in ("x", 7, None):
        assert "labeler.method: input should be one of 'style_mixing', 'feature_clusters'" in mistakes(
            {"method": method}
        )
    assert "labeler: input should be a section" in mistakes(5)
    assert "a list of k must be in rising order" in mistakes({"method": "feature_clusters", "clusters": [8, 4]})


def _run_file(folder: Path, checkpoint: Path, output: str, **labeler: object) -> Path:
    values = {
        "name": "tiny",
        "output": str(folder / output),
        "generator": {"checkpoint": str(checkpoint)},
        "labeler": {"method": "feature_clusters", "clusters": 4, "fit_samples": 16, "naming_samples": 8, **labeler},
        "dataset": {"samples": 12, "samples_per_shard": 6},
        "quality": {"enabled": False, "allow_weak_labeler": True},
        "numerics": {"batch_size": 4, "threads": 1},
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_end_to_end_twice_with_the_same_bytes_and_then_with_names_by_hand(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def labelmill(*arguments: object) -> str:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False).stdout

    for output in ("first", "second"):
        labelmill("generate", _run_file(tmp_path, tiny_checkpoint, output))
        assert "all verified" in labelmill("verify", tmp_path / output)
    assert shards_of(str(tmp_path / "first")) == shards_of(str(tmp_path / "second"))
    guide = tmp_path / "first" / "labeler"
    names = [f"cluster_{number:02d}.png" for number in range(4)]
    assert sorted(path.name for path in guide.iterdir()) == [*names, "clusters.yaml", "feature_clusters.safetensors"]

    # What was half-written when a run was killed is made again; what a person changed meanwhile is not.
    (guide / "clusters.yaml").unlink()
    (guide / "cluster_01.png").write_bytes(b"mine")
    before = (tmp_path / "second" / "labeler" / "clusters.yaml").read_bytes()
    labelmill("generate", tmp_path / "first.yaml")
    assert (guide / "clusters.yaml").read_bytes() == before and (guide / "cluster_01.png").read_bytes() == b"mine"

    # Whoever fits is told where to look.
    assert f"{tmp_path}/first/labeler/clusters.yaml lists the class of each cluster" in labelmill(
        "fit", tmp_path / "first.yaml"
    )

    text = (
        before.decode().replace("- cluster_1\n- cluster_2\n- cluster_3\n", "- thing\n").replace("- cluster_0", "- back")
    )
    text = text.replace("name: cluster_0", "name: back").replace("name: cluster_1", "name: ignore")
    named = tmp_path / "named.yaml"
    named.write_text(text.replace("name: cluster_2", "name: thing").replace("name: cluster_3", "name: thing"))
    labelmill("generate", _run_file(tmp_path, tiny_checkpoint, "third", mapping=str(named)))
    manifest = json.loads((tmp_path / "third" / "manifest.json").read_text())
    assert manifest["classes"] == ["back", "thing"]
    assert "all verified" in labelmill("verify", tmp_path / "third")
    assert "report" in labelmill("report", tmp_path / "third")

    # The mapping is part of the run: another one is another dataset.
    named.write_text(named.read_text().replace("name: ignore", "name: back"))
    with pytest.raises(OutputError, match="was made by another configuration"):
        labelmill("generate", tmp_path / "third.yaml")


@pytest.mark.parametrize(
    ("model", "prompt", "message"),
    [
        ("bundled:avatar-prompts", "hair", "no such bundled prompt model; available: avatars-prompts"),
        ("open-clip:RN50@/nowhere/w.safetensors", "hair", "/nowhere/w.safetensors"),
        ("bundled:avatars-prompts", "zebra", "'zebra'"),
    ],
)
def test_validate_opens_the_prompt_model_and_has_it_read_the_prompts(
    model: str, prompt: str, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    names = {"back": ["background"], "thing": [prompt]}
    run_file = _run_file(tmp_path, tiny_checkpoint, "asked", names=names, prompt_model=model)
    with pytest.raises(PromptModelError, match=message):
        CliRunner().invoke(app, ["validate", str(run_file)], catch_exceptions=False)
    assert not (tmp_path / "asked").exists()


def test_clusters_without_names_cannot_be_judged_by_foreground(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run_file = _run_file(tmp_path, tiny_checkpoint, "judged")
    for command in ("generate", "plan"):
        arguments = [command, str(run_file), "--set", "quality.enabled=true"]
        with pytest.raises(ConfigError, match="quality: clusters without names have no foreground to judge"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / "judged").exists()


def test_a_mapping_for_other_clusters_is_refused(
    fitted: bytes,
) -> None:
    config = make_config(
        mapping={"clustering": "0" * 16, "classes": ["a", "b"], "clusters": {str(k): "a" for k in range(5)}}
    )
    with pytest.raises(ConfigError, match=r"labeler\.mapping: is for the clusters 0000000000000000, but this fit made"):
        fit_to_bytes(config, make_sampler())
    clustering = opened(fitted).fitted.model.clustering
    fine = make_config(
        mapping={"clustering": clustering, "classes": ["a", "b"], "clusters": {str(k): "a" for k in range(5)}}
    )
    assert header(fit_to_bytes(fine, make_sampler()))["named_by"] == "mapping"


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    config, sampler = make_config(clusters=[3, 5]), make_sampler()
    on_gpu = Sampler(make_sampler().generator, sampler.config, sampler.numerics, "cuda")
    fitted = fit_to_bytes(config, on_gpu)
    assert fit_to_bytes(config, on_gpu) == fitted
    labeler = open_fitted(config, on_gpu, fitted).labeler
    together, alone = (labeler.label(on_gpu.sample(seeds, labeler.layers)) for seeds in ([1, 2, 3], [2]))
    assert torch.equal(together.masks_BHW[1], alone.masks_BHW[0])
    assert torch.equal(together.confidence_B[1], alone.confidence_B[0])
    on_cpu = open_fitted(config, sampler, fitted).labeler.label(sampler.sample([1, 2, 3], labeler.layers))
    assert (on_cpu.masks_BHW == together.masks_BHW.cpu()).float().mean() > 0.97
