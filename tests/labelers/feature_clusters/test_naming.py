"""Names for clusters: by prompts, by mapping files, and what happens where neither is sure."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers.clusters_setup import COLOURS, ColourPrompts, make_config
from helpers.random_sampler import make_sampler
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.feature_clusters.choose import SampleCollector
from labelmill.pipeline.labelers.feature_clusters.clusters import ClusterModel
from labelmill.pipeline.labelers.feature_clusters.findings import findings
from labelmill.pipeline.labelers.feature_clusters.fit import fit_feature_clusters, needs_prompt_model
from labelmill.pipeline.labelers.feature_clusters.guide import cluster_guide
from labelmill.pipeline.labelers.feature_clusters.labeler import FeatureClustersLabeler
from labelmill.pipeline.labelers.feature_clusters.naming import (
    ClusterPool,
    ClusterShares,
    at_resolution,
    by_prompts,
    class_similarities,
    coverage,
    of_sample,
)
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.schemas.cluster_mapping import ClusterMapping, load_mapping
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig

NAMES = {"back": ["grey"], "warm": ["red"], "cool": ["green", "blue"]}


def shares(count: int) -> ClusterShares:
    return ClusterShares([1 / count] * count, [1 / count] * count)


def painted(size: int = 8) -> tuple[Batch, ClusterModel]:
    """Two images of a red left, a blue right and a green stripe, and clusters that are just these."""
    images_BCHW = torch.zeros(2, 3, size, size)
    where = {0: (slice(None), slice(0, size // 2)), 1: (slice(None), slice(size // 2, size))}
    for number, name in ((0, "red"), (1, "blue")):
        images_BCHW[:, :, where[number][0], where[number][1]] = torch.tensor(COLOURS[name])[:, None, None]
    images_BCHW[:, :, : size // 4] = torch.tensor(COLOURS["green"])[:, None, None]
    batch = Batch((1, 2), (None, None), torch.zeros(2, 1, 1), images_BCHW, "none", {"b8.conv1": images_BCHW})
    centroids_KD = torch.tensor([COLOURS[name] for name in ("red", "blue", "green")])
    return batch, ClusterModel(("b8.conv1",), centroids_KD, torch.ones(3), torch.tensor(1.0))


def test_each_cluster_takes_the_class_of_its_nearest_prompt() -> None:
    batch, model = painted()
    pool = ClusterPool(3, ColourPrompts())
    pool.add(batch, model)
    pooled_KE = pool.pooled()
    expected = ColourPrompts().embed_prompts(["red", "blue", "green"])
    torch.testing.assert_close(pooled_KE, expected, atol=0.02, rtol=0)
    records = by_prompts(pooled_KE, NAMES, ColourPrompts(), 0.1, "ignore", shares(3))
    assert [record.name for record in records] == ["warm", "cool", "cool"]
    assert not any(record.is_unsure for record in records)


def test_a_class_is_as_near_as_its_nearest_prompt() -> None:
    pooled_KE = torch.nn.functional.normalize(torch.tensor([[0.9, 0.1, -0.4, 0.2], [0.0, 0.3, 0.8, 0.1]]), dim=1)
    prompts = ColourPrompts().embed_prompts(["grey", "red", "green", "blue"])
    cosines = torch.nn.functional.cosine_similarity(pooled_KE[:, None], prompts[None], dim=2)
    expected = torch.stack([cosines[:, 0], cosines[:, 1], cosines[:, 2:].amax(dim=1)], dim=1)
    torch.testing.assert_close(class_similarities(pooled_KE, NAMES, ColourPrompts()), expected)


@pytest.mark.parametrize(("unsure", "left_as"), [("ignore", "ignore"), ("background", "back")])
def test_unsure_clusters_are_reported_and_left(unsure: str, left_as: str) -> None:
    purple_KE = torch.nn.functional.normalize(torch.tensor([[1.0, -1.0, 1.0, 0.1], [1.0, -1.0, -0.9, 0.1]]), dim=1)
    first, second = by_prompts(purple_KE, NAMES, ColourPrompts(), 0.1, unsure, shares(2))
    assert first.name == left_as and first.is_unsure and first.margin == 0
    assert second.name == second.nearest == "warm" and not second.is_unsure
    nothing = by_prompts(torch.zeros(1, 4), NAMES, ColourPrompts(), 0.0, unsure, shares(1))
    assert nothing[0].name == left_as and nothing[0].is_unsure, "a cluster that no image shows cannot be named"


def test_clusters_about_as_near_to_the_background_are_unsure_too() -> None:
    """Though the background is the name that they get, and the nearest."""
    grey_KE = torch.nn.functional.normalize(torch.tensor([[0.3, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1]]), dim=1)
    first, second = by_prompts(grey_KE, NAMES, ColourPrompts(), 0.7, "background", shares(2))
    assert first.name == first.nearest == "back" and first.margin is not None and 0 < first.margin < 0.7
    assert first.is_unsure
    assert second.name == "back" and not second.is_unsure


def test_pooling_keeps_to_the_clusters_pixels_in_maps_of_any_size() -> None:
    member_BKhw = torch.zeros(1, 2, 8, 8)
    member_BKhw[:, 0, :, :4], member_BKhw[:, 1, :, 4:] = 1, 1
    assert at_resolution(member_BKhw, 4, 4)[0, 0].tolist() == [[1, 1, 0, 0]] * 4
    assert at_resolution(member_BKhw, 8, 8).equal(member_BKhw)
    assert at_resolution(member_BKhw, 16, 16)[0, 0, 0, :7].tolist() == [1] * 7
    torch.testing.assert_close(at_resolution(member_BKhw, 3, 5).sum(dim=1), torch.ones(1, 3, 5))


def test_a_fit_with_prompts_and_what_it_writes_for_people(tmp_path: Path) -> None:
    config = make_config(names=NAMES, prompt_model="colours", min_margin=0.45, unsure="background")
    sampler, model = make_sampler(), ColourPrompts()
    fitted = fit_feature_clusters(config, sampler, "a" * 64, model)
    provenance = fitted.provenance
    assert fitted.to_bytes() == fit_feature_clusters(config, sampler, "a" * 64, model).to_bytes()
    assert (provenance.named_by, provenance.prompt_model, provenance.prompt_model_sha256) == (
        "prompts",
        "colours",
        "c" * 64,
    )
    assert provenance.classes == ["back", "warm", "cool"]
    for record in provenance.clusters:
        assert record.margin is not None and record.similarity is not None
        assert record.is_unsure == (record.margin < 0.45)
        assert record.name == ("back" if record.is_unsure else record.nearest)
    labeler = open_fitted(config, sampler, fitted.to_bytes()).labeler
    assert labeler.classes == ("back", "warm", "cool")

    guide = cluster_guide(config, sampler, fitted)
    assert list(guide) == [*(f"cluster_{number:02d}.png" for number in range(5)), "clusters.yaml"]
    assert all(content.startswith(b"\x89PNG") for name, content in guide.items() if name.endswith("png"))
    path = tmp_path / "clusters.yaml"
    path.write_bytes(guide["clusters.yaml"])
    assert (
        guide["clusters.yaml"].decode().count("# unsure")
        == sum((r.margin or 0) < 0.45 for r in provenance.clusters)
        > 0
    )
    mapping = load_mapping(str(path))
    assert mapping.clusters == {number: record.name for number, record in enumerate(provenance.clusters)}
    # The file that was written names just the clusters that it was written for.
    again = make_config(mapping=str(path))
    assert not needs_prompt_model(again)
    named = open_fitted(again, sampler, fit_to_bytes(again, sampler)).labeler
    batch = sampler.sample([1, 2, 3], labeler.layers)
    assert torch.equal(named.label(batch).masks_BHW, labeler.label(batch).masks_BHW)


def test_what_a_person_should_know_is_said_after_a_fit_and_in_the_file() -> None:
    config = make_config(names=NAMES, prompt_model="colours", min_margin=0.45, unsure="background")
    fitted = fit_feature_clusters(config, make_sampler(), None, ColourPrompts())
    unsure = [number for number, record in enumerate(fitted.provenance.clusters) if (record.margin or 0) < 0.45]
    assert unsure == [2] and {record.name for record in fitted.provenance.clusters} == {"back"}
    sampler = make_sampler()
    found = open_fitted(config, sampler, fitted.to_bytes()).findings
    said = findings(fitted.provenance)
    assert found.words[1:3] == said and found.verdict == "weak"
    assert said == [
        "unsure clusters, 20.6% of all pixels, which become back: 2 (nearest back)",
        "classes without a cluster, which no mask will show: warm, cool",
    ]
    text = cluster_guide(config, make_sampler(), fitted)["clusters.yaml"].decode()
    assert all(f"# Note: {line}\n" in text for line in said)
    plain = make_config()
    assert len(open_fitted(plain, sampler, fit_to_bytes(plain, sampler)).findings.words) == 2


def test_rare_classes_that_hardly_any_image_shows_are_told() -> None:
    rare = {"prompt": "red", "against": "grey", "positive_share": 0.1}
    config = make_config(discover=[rare], prompt_model="colours", discovery_samples=200, edited_samples=8)
    fitted = fit_feature_clusters(config, make_sampler(), None, ColourPrompts())
    record = fitted.provenance.discoveries[0]
    assert record.num_nearer < record.num_positive == 20
    assert findings(fitted.provenance) == [
        f"discovery of 'red': only {record.num_nearer} of 200 images look more like it than like 'grey', but 20 were "
        "learned from; what it found may be another thing"
    ]
    enough = record.model_copy(update={"num_nearer": 20})
    assert findings(fitted.provenance.model_copy(update={"discoveries": [enough]})) == []


def test_a_sample_is_named_as_whole_images_are() -> None:
    batch, model = painted()
    collector = SampleCollector(("b8.conv1",), 3, (8, 8), num_images=2, dense=ColourPrompts().dense, num_dense=1)
    collector.add(batch)
    sample = collector.sample()
    assert sample.dense_FE is not None and sample.dense_FE.shape == (64, 4) and len(sample.image_S) == 128
    pooled_KE, found = of_sample(sample, model.nearest(batch.features).flatten(), 4)
    torch.testing.assert_close(pooled_KE[:3], ColourPrompts().embed_prompts(["red", "blue", "green"]), atol=0.1, rtol=0)
    assert not pooled_KE[3].any() and found.share_K == [0.375, 0.375, 0.25, 0.0]
    records = by_prompts(pooled_KE, NAMES, ColourPrompts(), 0.1, "background", found)
    assert [record.name for record in records] == ["warm", "cool", "cool", "back"]
    assert coverage(records) == (2, 0.0), "the background, which is unsure here, counts for no class"
    unsure = [records[0], records[1].model_copy(update={"is_unsure": True}), records[2].model_copy(update={"share": 0})]
    assert coverage(unsure) == (1, 0.375)


def test_k_is_chosen_by_the_classes_that_are_found_and_again_with_the_mapping(tmp_path: Path) -> None:
    settings_ = {"names": NAMES, "prompt_model": "colours", "clusters": [2, 3, 5, 12], "min_margin": 0.2}
    config, sampler = make_config(**settings_), make_sampler()
    fitted = fit_feature_clusters(config, sampler, None, ColourPrompts())
    trials = fitted.provenance.cluster_trials
    assert trials is not None and list(trials) == [2, 3, 5, 12]
    assert all(1 <= (trial.classes_found or 0) <= 3 and trial.unsure_share is not None for trial in trials.values())
    number = len(fitted.provenance.clusters)
    most = max(trial.classes_found or 0 for trial in trials.values())
    unsure = {k: trial.unsure_share or 0 for k, trial in trials.items() if trial.classes_found == most}
    assert number == min(k for k, share in unsure.items() if share <= min(unsure.values()) + 0.02)
    path = tmp_path / "clusters.yaml"
    path.write_bytes(cluster_guide(config, sampler, fitted)["clusters.yaml"])
    again = make_config(**settings_, mapping=str(path))
    assert needs_prompt_model(again)
    assert fit_feature_clusters(again, sampler, None, ColourPrompts()).model.clustering == fitted.model.clustering


def test_classes_in_another_order_are_another_labeler() -> None:
    config = make_config(names=NAMES, prompt_model="colours")
    content = fit_feature_clusters(config, make_sampler(), None, ColourPrompts()).to_bytes()
    turned = make_config(names={name: NAMES[name] for name in ("back", "cool", "warm")}, prompt_model="colours")
    assert turned == config
    with pytest.raises(ValueError, match=r"its classes are .*'warm', 'cool'.* in this order; here they are"):
        open_fitted(turned, make_sampler(), content)


def test_prompts_without_a_model() -> None:
    for settings_ in ({"names": NAMES}, {"discover": [{"prompt": "red", "against": "blue"}]}):
        with pytest.raises(ValueError, match=r"prompts need a vision-language model; set labeler\.prompt_model"):
            make_config(**settings_)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"a": ["x"]}, "at least two classes are needed"),
        ({"a": ["x"], "b": []}, "each class needs a prompt; b has none"),
        ({"a": ["x"], "b": [" "]}, "each class needs a prompt; b has none"),
        ({"a": ["x"], "ignore": ["y"]}, "'ignore' cannot name a class"),
        ({"a": ["x"], "b\n": ["y"]}, "pattern"),
    ],
)
def test_names_that_cannot_be(names: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(names=names, prompt_model="colours")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [a, b]\nclusters: {0: a, 1: c}", r"clusters of unknown classes: 1: c; the classes are a, b, ignore"),
        ("classes: [a, b]\nclusters: {0: a, -1: b}", "numbered from 0"),
        ("classes: [a]\nclusters: {0: a}", "at least two classes are needed"),
        ("classes: [a, a]\nclusters: {0: a}", "classes given twice: a"),
        ("classes: [a, b]", "clusters: is required"),
        ("classes: [a, b]\nclusters: {0: {similarity: 1}}", "clusters.0"),
        ("classes: [a, b]\nclusters: {0: a}\nmore: 1", "more: unknown key"),
        ("- 1", "mapping of keys"),
        ("classes: [a, b", "not YAML"),
    ],
)
def test_mapping_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "clusters.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_mapping(str(path))
    with pytest.raises(ValueError, match=message):
        make_config(mapping=str(path))


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        ({0: "a", 1: "a", 2: "a", 3: "b"}, "has no class for clusters 4; there are clusters 0 to 4"),
        (dict.fromkeys((0, 1, 2, 3, 4, 9), "a"), "names unknown clusters 9; there are clusters 0 to 4"),
    ],
)
def test_mappings_that_miss_the_clusters(clusters: dict[int, str], message: str) -> None:
    config = make_config(mapping={"classes": ["a", "b"], "clusters": clusters})
    with pytest.raises(ConfigError, match=rf"labeler\.mapping: {message}"):
        fit_to_bytes(config, make_sampler())
    # Where fit chooses k, it says so as soon as k is known.
    chosen = make_config(mapping={"classes": ["a", "b"], "clusters": clusters}, clusters=[2, 3])
    with pytest.raises(ConfigError, match=r"labeler\.mapping: names unknown clusters"):
        fit_to_bytes(chosen, make_sampler())


NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9_ -]{0,12}", fullmatch=True).filter(lambda name: name != "ignore")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mapping_survives_its_file(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    classes = data.draw(st.lists(NAME, min_size=2, max_size=6, unique=True))
    chosen = data.draw(st.lists(st.sampled_from([*classes, "ignore"]), min_size=1, max_size=30))
    as_section = data.draw(st.lists(st.booleans(), min_size=len(chosen), max_size=len(chosen)))
    clusters = {
        number: {"name": name, "similarity": 0.25} if section else name
        for number, (name, section) in enumerate(zip(chosen, as_section, strict=True))
    }
    path = tmp_path_factory.mktemp("mapping") / "clusters.yaml"
    path.write_text(yaml.safe_dump({"clustering": "a1", "classes": classes, "clusters": clusters}, sort_keys=False))
    mapping = load_mapping(str(path))
    assert mapping.classes == classes and mapping.clusters == dict(enumerate(chosen))
    assert ClusterMapping.model_validate_json(mapping.model_dump_json()) == mapping
    mapping.check_clusters(len(chosen))
    for wrong in (len(chosen) - 1, len(chosen) + 1):
        with pytest.raises(ConfigError, match=r"labeler\.mapping"):
            mapping.check_clusters(wrong)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abclustersing: {}[]0123-\n,", max_size=80))
def test_any_text_is_a_mapping_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("mapping") / "clusters.yaml"
    path.write_text(text)
    try:
        assert load_mapping(str(path)).clusters is not None
    except ConfigError as error:
        assert str(path) in str(error)


def test_the_bundled_model_names_the_parts_of_portraits() -> None:
    """On the bundled generator: the clusters that cover most of an image are named as they should be."""
    loaded = open_checkpoint("bundled:avatars-32", "cpu")
    sampler = Sampler(loaded.generator, GeneratorConfig(checkpoint="x"), NumericsConfig(threads=1), "cpu")
    words = ("background", "skin", "hair", "clothes", "mouth")
    config = FeatureClustersConfig.model_validate(
        {
            "method": "feature_clusters",
            "clusters": 16,
            "fit_samples": 64,
            "naming_samples": 32,
            "iterations": 8,
            "passes": 1,
            "names": {word: [word] for word in words},
            "prompt_model": "bundled:avatars-prompts",
            "min_margin": 0.08,
            "style_mixing": {"fit_samples": 32, "crossover": 3},
        }
    )
    opened = open_fitted(config, sampler, fit_to_bytes(config, sampler))
    labeler = opened.labeler
    assert any("style mixing's foreground agrees with that of the clusters" in line for line in opened.findings.words)
    assert isinstance(labeler, FeatureClustersLabeler) and labeler.fitted.mixing is not None
    labels = labeler.label(sampler.sample(range(16), labeler.layers))
    mask_BHW = labels.masks_BHW
    assert (mask_BHW[:, :4, :4] == 0).float().mean() > 0.9, "corners are background"
    assert (mask_BHW[:, 13:16, 13:19] == 1).float().mean() > 0.5, "faces are skin"
    assert (mask_BHW[:, 30:, 13:19] == 3).float().mean() > 0.5, "shoulders are clothed"
    assert float(labels.confidence_B.min()) > 0.7
