"""Style mixing from fit to masks, with a random generator; mask quality is tested in test_foreground.py."""

import json

import pytest
import torch
from safetensors.torch import load, save

from pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from pipeline.generator.sampling import Sampler
from pipeline.labelers import FittedLabelerError, fit_labeler, open_labeler
from pipeline.labelers.mixing import images_per_pass
from pipeline.labelers.style_mixing import VariantClusterer, pixel_vectors
from schemas.config import GeneratorConfig, NumericsConfig, StyleMixingConfig
from schemas.errors import ConfigError, LabelmillError

SMALL = {"variants": 4, "crossover": 3, "clusters": 4, "restarts": 2, "iterations": 3, "fit_samples": 16}


def make_config(**settings: object) -> StyleMixingConfig:
    return StyleMixingConfig.model_validate({**SMALL, **settings})


def make_sampler(resolution: int = 16, w_dim: int = 8, batch_size: int = 4, noise: str = "const") -> Sampler:
    torch.manual_seed(3)
    spec = GeneratorSpec(
        resolution=resolution,
        z_dim=8,
        w_dim=w_dim,
        c_dim=0,
        mapping_layers=2,
        channels=channels_by_resolution(resolution, channel_base=128, channel_max=8),
    )
    config = GeneratorConfig.model_validate({"checkpoint": "test", "noise": noise})
    return Sampler(Generator(spec), config, NumericsConfig(batch_size=batch_size), "cpu")


@pytest.fixture(scope="module")
def fitted() -> bytes:
    return fit_labeler(make_config(), make_sampler(), "a" * 64)


def header(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def rewritten(content: bytes, **changes: object) -> bytes:
    """The file with other values in its JSON."""
    values = json.loads(header(content)["labelmill"]) | changes
    return save(load(content), metadata={"labelmill": json.dumps(values)})


def test_labels(fitted: bytes) -> None:
    sampler = make_sampler()
    labeler = open_labeler(make_config(), sampler, fitted)
    assert labeler.classes == ("background", "foreground")
    assert labeler.layers == ()
    labels = labeler.label(sampler.sample([1, 2, 3]))
    assert labels.masks_BHW.shape == (3, 16, 16)
    assert labels.masks_BHW.dtype == torch.uint8
    assert set(labels.masks_BHW.unique().tolist()) <= {0, 1}
    assert labels.confidence_B.shape == (3,)
    assert bool(((labels.confidence_B >= 0) & (labels.confidence_B <= 1)).all())


@pytest.mark.parametrize("noise", ["const", "per_seed"])
def test_a_mask_depends_on_its_sample_alone_to_the_bit(fitted: bytes, noise: str) -> None:
    sampler = make_sampler(noise=noise, batch_size=8)
    labeler = open_labeler(make_config(), sampler, fitted)
    alone = labeler.label(sampler.sample([5]))
    for seeds in ([5, 1, 2, 3, 4, 6, 7], [1, 2, 5], [7, 6, 3, 2, 1, 5]):
        labels = labeler.label(sampler.sample(seeds))
        assert torch.equal(labels.masks_BHW[seeds.index(5)], alone.masks_BHW[0])
        assert torch.equal(labels.confidence_B[seeds.index(5)], alone.confidence_B[0])


def test_the_same_fit_gives_the_same_bytes_and_another_gives_others(fitted: bytes) -> None:
    assert fit_labeler(make_config(), make_sampler(), "a" * 64) == fitted
    assert fit_labeler(make_config(donor_first_seed=1), make_sampler(), "a" * 64) != fitted


def test_each_image_is_clustered_once_however_many_fit_in_a_pass() -> None:
    sampler = make_sampler(batch_size=6)
    clusterer = VariantClusterer(make_config())
    batch, (donors_NLD, _) = sampler.sample(range(6)), sampler.ws(range(10, 14))
    assert images_per_pass(4, 16, sampler.device) == 4
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
    assert values["layout_agreement"] is None
    donors_NLD, _ = make_sampler().ws(values["donor_seeds"], psi=1.0)
    assert torch.equal(load(fitted)["donors"], donors_NLD)


def test_auto_crossover_is_recorded_with_what_it_was_chosen_from() -> None:
    for minimum, expected in ((0.0, None), (1.0, 5)):
        config = make_config(crossover="auto", min_layout_agreement=minimum)
        fitted = fit_labeler(config, make_sampler())
        values = json.loads(header(fitted)["labelmill"])
        agreement = {int(row): value for row, value in values["layout_agreement"].items()}
        assert sorted(agreement) == sorted(int(row) for row in values["colour_change"]) == [1, 2, 3, 4, 5]
        if expected is None:
            assert min(agreement[row] for row in range(values["crossover"], 6)) >= 0
        else:
            assert values["crossover"] == expected
        open_labeler(config, make_sampler(), fitted)


@pytest.mark.parametrize("crossover", [0, 6, 99, -1])
def test_a_crossover_that_the_generator_lacks_is_refused_before_any_work(crossover: int, fitted: bytes) -> None:
    config = make_config(crossover=crossover)
    message = rf"labeler\.crossover: {crossover}, but this generator has 6 rows of w; 1 to 5"
    with pytest.raises(ConfigError, match=message):
        fit_labeler(config, make_sampler())
    with pytest.raises(ConfigError, match=message):
        open_labeler(config, make_sampler(), fitted)


def test_the_last_row_changes_colour_only_and_works() -> None:
    config = make_config(crossover=5)
    sampler = make_sampler()
    open_labeler(config, sampler, fit_labeler(config, sampler)).label(sampler.sample([1]))


@pytest.mark.parametrize(
    ("settings", "sampler_settings", "message"),
    [
        ({"clusters": 5}, {}, "clusters: 5 here, 4 in the file"),
        ({}, {"resolution": 32}, "resolution: 32 here, 16 in the file"),
        ({}, {"w_dim": 9}, "w_dim: 9 here, 8 in the file"),
    ],
)
def test_a_file_made_for_something_else(
    settings: dict[str, object], sampler_settings: dict[str, int], message: str, fitted: bytes
) -> None:
    with pytest.raises(FittedLabelerError, match=message) as caught:
        open_labeler(make_config(**settings), make_sampler(**sampler_settings), fitted)  # type: ignore[arg-type]
    assert isinstance(caught.value, LabelmillError)


def test_damaged_and_foreign_files(fitted: bytes) -> None:
    tensors, text = load(fitted), header(fitted)["labelmill"]
    without_map = {name: tensor for name, tensor in tensors.items() if name != "foreground.background_HW"}
    not_finite = tensors | {"donors": tensors["donors"] * float("nan")}
    broken = {
        "damaged safetensors file": [b"", b"\x00" * 7, b"not a file", fitted[: len(fitted) // 2]],
        "not of labelmill": [save(tensors), save(tensors, metadata={"labelmill": "[]"})],
        "version 2": [rewritten(fitted, version=2)],
        "'labelmill-generator' version 1": [rewritten(fitted, format="labelmill-generator")],
        "description is unusable": [rewritten(fitted, crossover="three"), rewritten(fitted, surprise=1)],
        "crossover 7 not in 1 to 5": [rewritten(fitted, crossover=7)],
        "holds tensors": [save(without_map, metadata={"labelmill": text})],
        "donors is not finite float32": [save(not_finite, metadata={"labelmill": text})],
    }
    for message, contents in broken.items():
        for content in contents:
            with pytest.raises(FittedLabelerError, match=message):
                open_labeler(make_config(), make_sampler(), content)


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
def test_on_a_gpu() -> None:
    sampler = make_sampler()
    on_gpu = Sampler(make_sampler().generator, sampler.config, sampler.numerics, "cuda")
    fitted = fit_labeler(make_config(), on_gpu)
    assert fit_labeler(make_config(), on_gpu) == fitted
    labeler = open_labeler(make_config(), on_gpu, fitted)
    together, alone = labeler.label(on_gpu.sample([1, 2, 3])), labeler.label(on_gpu.sample([2]))
    assert torch.equal(together.masks_BHW[1], alone.masks_BHW[0])
    on_cpu = open_labeler(make_config(), sampler, fitted).label(sampler.sample([1, 2, 3]))
    assert (on_cpu.masks_BHW == together.masks_BHW.cpu()).float().mean() > 0.97
