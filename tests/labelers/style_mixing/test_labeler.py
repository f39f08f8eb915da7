"""Style mixing from fit to masks, with a random generator; how good masks are is tested in test_mask_quality.py."""

import json

import pytest
import torch
from helpers.random_sampler import make_sampler
from safetensors.torch import load, save

from labelmill.pipeline.generator.networks import Architecture
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.joint_upsampling import snap_to_edges
from labelmill.pipeline.labelers.fitted_file import FittedLabelerError
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.labelers.style_mixing.fit import resolution_candidates
from labelmill.pipeline.labelers.style_mixing.labeler import StyleMixingLabeler
from labelmill.pipeline.labelers.style_mixing.method import METHOD
from labelmill.pipeline.labelers.style_mixing.mixing import bytes_per_pass, images_per_pass
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer, pixel_vectors
from labelmill.schemas.errors import ConfigError, LabelmillError
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

SMALL = {"variants": 4, "crossover": 3, "clusters": 4, "restarts": 2, "iterations": 3, "fit_samples": 16}


def make_config(**settings: object) -> StyleMixingConfig:
    return StyleMixingConfig.model_validate({**SMALL, **settings})


MODES = ("readout", "clusters")


@pytest.fixture(scope="module")
def fitted() -> bytes:
    return fit_to_bytes(make_config(), make_sampler(), "a" * 64)


@pytest.fixture(scope="module")
def fitted_in() -> dict[str, bytes]:
    return {mode: fit_to_bytes(make_config(masks_from=mode), make_sampler()) for mode in MODES}


def header(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def rewritten(content: bytes, **changes: object) -> bytes:
    """The file with other values in its JSON."""
    values = json.loads(header(content)["labelmill"]) | changes
    return save(load(content), metadata={"labelmill": json.dumps(values)})


@pytest.mark.parametrize("mode", MODES)
def test_labels(mode: str, fitted_in: dict[str, bytes]) -> None:
    sampler = make_sampler()
    labeler = open_fitted(make_config(masks_from=mode), sampler, fitted_in[mode]).labeler
    assert labeler.classes == ("background", "foreground")
    assert labeler.layers == (("b16.conv0", "b16.conv1") if mode == "readout" else ())
    labels = labeler.label(sampler.sample([1, 2, 3], labeler.layers))
    assert labels.masks_BHW.shape == (3, 16, 16)
    assert labels.masks_BHW.dtype == torch.uint8
    assert labels.masks_BHW.unique().tolist() == [0, 1]
    assert labels.confidence_B.shape == (3,)
    assert bool(((labels.confidence_B >= 0) & (labels.confidence_B <= 1)).all())


@pytest.mark.parametrize(("const_size", "img_channels"), [((4, 2), 3), ((2, 4), 1)])
@pytest.mark.parametrize(
    "settings", [{"masks_from": "readout", "crossover": "auto"}, {"masks_from": "clusters", "parts": 2}]
)
def test_rectangular_and_gray_images_are_labeled(
    const_size: tuple[int, int], img_channels: int, settings: dict[str, object]
) -> None:
    sampler = make_sampler(64, const_size=const_size, img_channels=img_channels)
    config = make_config(**settings, variant_resolution="auto" if "parts" in settings else 32)
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    assert isinstance(labeler, StyleMixingLabeler)
    height, width = 16 * const_size[0], 16 * const_size[1]
    size = labeler.variant_resolution // 4
    variants_BNCHW = labeler.variants(sampler.sample([7, 8]))
    assert variants_BNCHW.shape == (2, 4, img_channels, const_size[0] * size, const_size[1] * size)
    assert labeler.fitted.foreground.background_HW.shape == variants_BNCHW.shape[3:]
    labels = labeler.label(sampler.sample([7, 8], labeler.layers))
    assert labels.masks_BHW.shape == (2, height, width)
    assert len(labels.masks_BHW.unique()) == len(labeler.classes)
    alone = labeler.label(sampler.sample([8], labeler.layers))
    assert torch.equal(alone.masks_BHW[0], labels.masks_BHW[1])


@pytest.mark.parametrize("noise", ["const", "per_seed"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mask_depends_on_its_sample_alone_to_the_bit(mode: str, noise: str, fitted_in: dict[str, bytes]) -> None:
    sampler = make_sampler(noise=noise, batch_size=8)
    labeler = open_fitted(make_config(masks_from=mode), sampler, fitted_in[mode]).labeler
    alone = labeler.label(sampler.sample([5], labeler.layers))
    for seeds in ([5, 1, 2, 3, 4, 6, 7], [1, 2, 5], [7, 6, 3, 2, 1, 5], [0, 1, 2, 3, 4, 5, 6, 7]):
        labels = labeler.label(sampler.sample(seeds, labeler.layers))
        assert torch.equal(labels.masks_BHW[seeds.index(5)], alone.masks_BHW[0])
        assert torch.equal(labels.confidence_B[seeds.index(5)], alone.confidence_B[0])


@pytest.mark.parametrize("mode", MODES)
def test_parts_split_the_foreground_and_leave_it_as_it_is(mode: str, fitted_in: dict[str, bytes]) -> None:
    sampler = make_sampler()
    config = make_config(masks_from=mode, parts=3)
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    assert labeler.classes == ("background", "part_1", "part_2", "part_3")
    batch = sampler.sample([1, 2, 3, 4], labeler.layers)
    masks_BHW = labeler.label(batch).masks_BHW
    assert masks_BHW.unique().tolist() == [0, 1, 2, 3]
    whole = open_fitted(make_config(masks_from=mode), sampler, fitted_in[mode]).labeler.label(batch)
    assert ((masks_BHW != 0) == (whole.masks_BHW != 0)).float().mean() > 0.99


def test_the_readouts_masks_are_those_of_scores_snapped_to_edges(fitted_in: dict[str, bytes]) -> None:
    sampler = make_sampler()
    labeler = open_fitted(make_config(masks_from="readout"), sampler, fitted_in["readout"]).labeler
    batch = sampler.sample([1, 2, 3, 4], labeler.layers)
    tensors = load(fitted_in["readout"])
    maps_BHW = tensors["readout.bias"][0] + tensors["readout.place"][0] * tensors["foreground.background_HW"]
    for name in labeler.layers:
        maps_BHW = maps_BHW + torch.einsum("bchw,c->bhw", batch.features[name], tensors[f"readout.{name}"][:, 0])
    expected = snap_to_edges(maps_BHW[:, None].clamp(0, 1), batch.images_BCHW, radius=1)[:, 0] > 0.5
    assert ((labeler.label(batch).masks_BHW == 1) == expected).float().mean() > 0.999


def test_variants_of_a_lower_resolution_give_masks_of_the_image() -> None:
    sampler = make_sampler(resolution=32)
    for mode in MODES:
        config = make_config(masks_from=mode, variant_resolution=16)
        fitted = fit_to_bytes(config, sampler)
        assert load(fitted)["foreground.background_HW"].shape == (16, 16)
        assert json.loads(header(fitted)["labelmill"])["variant_resolution"] == 16
        labeler = open_fitted(config, sampler, fitted).labeler
        assert labeler.label(sampler.sample([1, 2], labeler.layers)).masks_BHW.shape == (2, 32, 32)
        assert isinstance(labeler, StyleMixingLabeler)
        variants_BNCHW = labeler.variants(sampler.sample([1, 2]))
        assert variants_BNCHW.shape == (2, 4, 3, 16, 16)


def test_candidates_for_the_variants_resolution() -> None:
    def candidates(resolution: int, crossover: int, architecture: Architecture = "skip") -> list[int]:
        return resolution_candidates(make_sampler(resolution, architecture=architecture).generator.spec, crossover)

    assert candidates(32, 1) == []
    assert candidates(128, 3) == [32, 64]
    # 32 px end with row 7: a crossover of 8 would mix nothing there.
    assert candidates(128, 7) == [32, 64]
    assert candidates(128, 8) == [64]
    assert candidates(128, 3, "orig") == []


def test_the_lowest_resolution_whose_masks_agree_is_chosen() -> None:
    sampler = make_sampler(resolution=64)
    config = make_config(crossover=4, clusters=2)
    values = json.loads(header(fit_to_bytes(config, sampler))["labelmill"])
    agreement = values["variant_agreement"]
    assert list(agreement) == ["32"]
    assert values["variant_resolution"] == (32 if agreement["32"] >= 0.96 else 64)
    # By the definition, from the two fits that do not choose.
    masks = []
    for size in (32, 64):
        fixed = config.model_copy(update={"variant_resolution": size, "masks_from": "clusters"})
        labeler = open_fitted(fixed, sampler, fit_to_bytes(fixed, sampler)).labeler
        batches = [sampler.sample(range(fixed.fit_first_seed + i, fixed.fit_first_seed + i + 4)) for i in (0, 4, 8, 12)]
        masks.append(torch.cat([labeler.label(batch).masks_BHW for batch in batches]).float())
    assert abs(soft_iou(*masks).mean().item() - agreement["32"]) < 2e-3


@pytest.mark.parametrize("architecture", ["orig", "resnet"])
def test_generators_without_rgb_at_lower_resolutions(architecture: Architecture) -> None:
    sampler = make_sampler(architecture=architecture)
    message = (
        rf"labeler\.variant_resolution: 8, but a generator of architecture '{architecture}' has an RGB output at 16"
    )
    with pytest.raises(ConfigError, match=message):
        fit_to_bytes(make_config(variant_resolution=8, crossover=1), sampler)
    for mode in MODES:
        config = make_config(masks_from=mode)
        labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
        assert labeler.label(sampler.sample([1], labeler.layers)).masks_BHW.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant_resolution": 24}, r"variant_resolution: 24, but this generator can stop at \[8, 16\]"),
        ({"variant_resolution": 32}, r"variant_resolution: 32, but this generator can stop at \[8, 16\]"),
        (
            {"variant_resolution": 8, "crossover": 4},
            "at 8 px synthesis ends with row 3 of w, and labeler.crossover is 4",
        ),
    ],
)
def test_resolutions_that_the_generator_lacks(settings: dict[str, object], message: str, fitted: bytes) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_to_bytes(make_config(**settings), make_sampler())
    with pytest.raises(ConfigError, match=message):
        open_fitted(make_config(**settings), make_sampler(), fitted)


def test_the_same_fit_gives_the_same_bytes_and_another_gives_others(fitted: bytes) -> None:
    assert fit_to_bytes(make_config(), make_sampler(), "a" * 64) == fitted
    assert fit_to_bytes(make_config(donor_first_seed=1), make_sampler(), "a" * 64) != fitted


def test_each_image_is_clustered_once_however_many_fit_in_a_pass() -> None:
    sampler = make_sampler(batch_size=6)
    clusterer = VariantClusterer(make_config())
    batch, (donors_NLD, _) = sampler.sample(range(6)), sampler.ws(range(10, 14))
    assert images_per_pass(4, sampler.generator.spec, 16, sampler.device, 6) == 4
    together = clusterer.of_batch(sampler.generator, batch, donors_NLD, 3)
    assert together.assignment_BP.shape == (6, 256)
    for index in range(6):
        alone = clusterer.of_batch(sampler.generator, batch.select([index]), donors_NLD, 3)
        assert torch.equal(alone.assignment_BP[0], together.assignment_BP[index])


def test_what_the_file_tells(fitted: bytes) -> None:
    values = json.loads(header(fitted)["labelmill"])
    assert values["format"] == "labelmill-style-mixing"
    assert values["config"]["variants"] == 4
    assert values["checkpoint_sha256"] == "a" * 64
    assert (values["resolution"], values["num_ws"], values["w_dim"], values["crossover"]) == (16, 6, 8, 3)
    assert values["donor_seeds"] == [4_000_000_000 + i for i in range(4)]
    assert values["layout_agreement"] is values["foreground_agreement"] is values["variant_agreement"] is None
    assert values["variant_resolution"] == 16
    assert 0.5 < values["readout_agreement"] <= 1
    donors_NLD, _ = make_sampler().ws(values["donor_seeds"], psi=1.0)
    assert torch.equal(load(fitted)["donors"], donors_NLD)


def test_auto_crossover_is_recorded_with_what_it_was_chosen_from() -> None:
    for minimum, expected in ((0.0, None), (1.0, 5)):
        config = make_config(crossover="auto", min_layout_agreement=minimum)
        fitted = fit_to_bytes(config, make_sampler())
        values = json.loads(header(fitted)["labelmill"])
        agreement = {int(row): value for row, value in values["layout_agreement"].items()}
        for name in ("layout_agreement", "foreground_agreement", "colour_change"):
            assert sorted(int(row) for row in values[name]) == [1, 2, 3, 4, 5]
        if expected is None:
            assert min(agreement[row] for row in range(values["crossover"], 6)) >= 0
        else:
            assert values["crossover"] == expected
        open_fitted(config, make_sampler(), fitted)


@pytest.mark.parametrize("mode", MODES)
def test_one_image_a_batch_chooses_the_row_that_sixteen_choose(mode: str) -> None:
    config = make_config(masks_from=mode, crossover="auto")
    alone, together = (make_sampler(batch_size=size) for size in (1, 16))
    fitted = fit_to_bytes(config, alone)
    found, expected = (json.loads(header(content)["labelmill"]) for content in (fitted, fit_to_bytes(config, together)))
    assert found["crossover"] == expected["crossover"]
    for name in ("layout_agreement", "foreground_agreement", "colour_change"):
        assert found[name] == pytest.approx(expected[name], abs=2e-3)
    labeler = open_fitted(config, alone, fitted).labeler
    assert labeler.label(alone.sample([1], labeler.layers)).masks_BHW.shape == (1, 16, 16)


@pytest.mark.parametrize("mode", MODES)
def test_images_that_are_all_alike_can_be_fitted(mode: str) -> None:
    """With a psi of 0 the last row is what is left: it changes colour only."""
    config, sampler = make_config(masks_from=mode, crossover="auto"), make_sampler(psi=0)
    fitted = fit_to_bytes(config, sampler)
    assert json.loads(header(fitted)["labelmill"])["crossover"] == 5
    labeler = open_fitted(config, sampler, fitted).labeler
    assert labeler.label(sampler.sample([1, 2], labeler.layers)).confidence_B.isfinite().all()


@pytest.mark.parametrize("crossover", [0, 6, 99, -1])
def test_a_crossover_that_the_generator_lacks_is_refused_before_any_work(crossover: int, fitted: bytes) -> None:
    config = make_config(crossover=crossover)
    message = rf"labeler\.crossover: {crossover}, but this generator has 6 rows of w; 1 to 5"
    with pytest.raises(ConfigError, match=message):
        fit_to_bytes(config, make_sampler())
    with pytest.raises(ConfigError, match=message):
        open_fitted(config, make_sampler(), fitted)


def test_the_last_row_changes_colour_only_and_works() -> None:
    config = make_config(crossover=5)
    sampler = make_sampler()
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    assert labeler.label(sampler.sample([1], labeler.layers)).masks_BHW.shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("settings", "sampler_settings", "message"),
    [
        ({"clusters": 5}, {}, "clusters: 5 here, 4 in the file"),
        ({"masks_from": "clusters"}, {}, "masks_from: clusters here, readout in the file"),
        ({"parts": 2}, {}, "parts: 2 here, 1 in the file"),
        ({}, {"resolution": 32}, "resolution: 32 here, 16 in the file"),
        ({}, {"w_dim": 9}, "w_dim: 9 here, 8 in the file"),
    ],
)
def test_a_file_made_for_something_else(
    settings: dict[str, object], sampler_settings: dict[str, int], message: str, fitted: bytes
) -> None:
    with pytest.raises(FittedLabelerError, match=message) as caught:
        open_fitted(make_config(**settings), make_sampler(**sampler_settings), fitted)  # type: ignore[arg-type]
    assert isinstance(caught.value, LabelmillError)


def test_damaged_and_foreign_files(fitted: bytes) -> None:
    tensors, text = load(fitted), header(fitted)["labelmill"]
    without_map = {name: tensor for name, tensor in tensors.items() if name != "foreground.background_HW"}
    not_finite = tensors | {"donors": tensors["donors"] * float("nan")}
    broken = {
        "damaged safetensors file": [b"", b"\x00" * 7, b"not a file", fitted[: len(fitted) // 2]],
        "not of labelmill": [save(tensors), save(tensors, metadata={"labelmill": "[]"})],
        "version 1": [rewritten(fitted, version=1)],
        "'labelmill-generator' version 2": [rewritten(fitted, format="labelmill-generator")],
        "description is unusable": [rewritten(fitted, crossover="three"), rewritten(fitted, surprise=1)],
        "crossover 7 not in 1 to 5": [rewritten(fitted, crossover=7)],
        r"variant_resolution 32 not in \[4, 8, 16\]": [rewritten(fitted, variant_resolution=32)],
        "crossover 3 not in 1 to 1": [rewritten(fitted, variant_resolution=4)],
        "holds tensors": [save(without_map, metadata={"labelmill": text})],
        "donors is not finite float32": [save(not_finite, metadata={"labelmill": text})],
    }
    for message, contents in broken.items():
        for content in contents:
            with pytest.raises(FittedLabelerError, match=message):
                open_fitted(make_config(), make_sampler(), content)


def test_pixel_vectors_by_hand() -> None:
    variants_BNCHW = torch.tensor([[1.0, 5.0], [2.0, 2.0]]).view(1, 2, 2, 1, 1).expand(1, 2, 2, 2, 3)
    assert pixel_vectors(variants_BNCHW, "none").shape == (1, 6, 4)
    assert pixel_vectors(variants_BNCHW, "none")[0, 0].tolist() == [1, 5, 2, 2]
    assert pixel_vectors(variants_BNCHW, "centred")[0, 5].tolist() == [-0.5, 1.5, 0.5, -1.5]
    expected = [-0.5 / 0.55, 1.5 / 1.55, 0.5 / 0.55, -1.5 / 1.55]
    torch.testing.assert_close(pixel_vectors(variants_BNCHW, "standardised")[0, 3], torch.tensor(expected))


def test_pixels_keep_their_places() -> None:
    variants_BNCHW = torch.arange(2 * 3 * 3 * 4 * 4.0).view(2, 3, 3, 4, 4)
    vectors = pixel_vectors(variants_BNCHW, "none")
    assert torch.equal(vectors[1, 2 * 4 + 3], variants_BNCHW[1, :, :, 2, 3].flatten())


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu(mode: str) -> None:
    config, sampler = make_config(masks_from=mode, parts=2), make_sampler()
    on_gpu = Sampler(make_sampler().generator, sampler.config, sampler.numerics, "cuda")
    fitted = fit_to_bytes(config, on_gpu)
    assert fit_to_bytes(config, on_gpu) == fitted
    labeler = open_fitted(config, on_gpu, fitted).labeler
    together, alone = (labeler.label(on_gpu.sample(seeds, labeler.layers)) for seeds in ([1, 2, 3], [2]))
    assert torch.equal(together.masks_BHW[1], alone.masks_BHW[0])
    assert torch.equal(together.confidence_B[1], alone.confidence_B[0])
    on_cpu = open_fitted(config, sampler, fitted).labeler.label(sampler.sample([1, 2, 3], labeler.layers))
    assert (on_cpu.masks_BHW == together.masks_BHW.cpu()).float().mean() > 0.97


def test_variants_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, config = make_sampler(batch_size=4), make_config(variant_resolution="auto")
    spec, device = sampler.generator.spec, sampler.device
    needed = {size: bytes_per_pass(config.variants, spec, size, device, 4) for size in (8, 16)}
    assert needed[8] < needed[16]
    METHOD.check(config, sampler)
    for free, remedy in (
        (needed[8], r"labeler\.variant_resolution: 8 fits"),
        (0, "fewer variants or a lower"),
    ):
        monkeypatch.setattr("labelmill.pipeline.labelers.style_mixing.labeler.free_bytes", lambda device, n=free: n)
        with pytest.raises(ConfigError, match=rf"labeler\.variants: 4 variants of 16 px need .* left; {remedy}"):
            METHOD.check(config, sampler)
