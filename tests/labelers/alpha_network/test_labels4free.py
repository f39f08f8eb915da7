"""Networks that Labels4Free's authors trained: their files, written here as theirs are, and the masks by them.

Shape suffixes: B batch, C channels, h w resolution of a layer, H W of the images.
"""

import argparse
import io
import os
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.networks import Generator, GeneratorSpec
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.alpha_network.findings import given_findings
from labelmill.pipeline.labelers.alpha_network.given import FittedGivenNetwork
from labelmill.pipeline.labelers.alpha_network.labels4free_file import parse_weights
from labelmill.pipeline.labelers.alpha_network.labels4free_network import Labels4FreeNetwork
from labelmill.pipeline.labelers.fitted_file import FittedLabelerError
from labelmill.pipeline.labelers.methods import METHODS, fit_to_bytes, open_fitted
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import CheckpointError, ConfigError, LabelmillError
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig

State = dict[str, Tensor]
# Of the last six resolutions, the lowest first.
WIDTHS = (7, 6, 5, 4, 3, 2)


def spec_of(resolution: int, const_size: tuple[int, int] = (4, 4), widths: tuple[int, ...] = WIDTHS) -> GeneratorSpec:
    sizes = [2**power for power in range(2, resolution.bit_length())]
    channels = tuple(zip(sizes, [8] * (len(sizes) - 6) + [*widths], strict=True))
    return GeneratorSpec(
        resolution=resolution, z_dim=8, w_dim=8, c_dim=0, mapping_layers=2, channels=channels, const_size=const_size
    )


def published(seed: int = 0, widths: tuple[int, ...] = WIDTHS) -> State:
    """A random `bg_extractor`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"conv_fns{side}.{place}": (3, width) for side in (0, 1) for place, width in enumerate(widths)}
    shapes |= {f"conv_merge_fns.{place}": (6, 12) for place in range(4)} | {"conv_n": (1, 6)}
    state = {}
    for name, (outputs, inputs) in shapes.items():
        state[f"{name}.weight"] = torch.randn(outputs, inputs, 1, 1, generator=generator)
        state[f"{name}.bias"] = torch.randn(outputs, generator=generator)
    return state


def repro(state: State) -> State:
    """The same as `bg_extractor_repro` names it."""
    merges = ("conv_next", "conv_next2", "conv_next3", "conv_next4")
    names = {f"conv_fns{side}.{place}": f"conv{2 * place + side + 1}" for side in (0, 1) for place in range(6)}
    names |= {f"conv_merge_fns.{place}": name for place, name in enumerate(merges)} | {"conv_n": "conv_n"}
    return {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor for key, tensor in state.items()}


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def make_config(weights: Path | str = "weights.pt", **settings: object) -> AlphaNetworkConfig:
    values = {"method": "alpha_network", "weights": str(weights), "watch_samples": 8, **settings}
    return AlphaNetworkConfig.model_validate(values)


def alphas_of(state: State, features: list[Tensor]) -> Tensor:
    """What the authors' code computes of the twelve features [B, C, h, w]."""

    def convolved(name: str, x_BChw: Tensor) -> Tensor:
        return functional.conv2d(x_BChw, state[f"{name}.weight"], state[f"{name}.bias"])

    def pair(place: int) -> Tensor:
        sides = [convolved(f"conv_fns{side}.{place}", features[2 * place + side]) for side in (0, 1)]
        return torch.cat(sides, dim=1)

    def up(x_BChw: Tensor) -> Tensor:
        size = (2 * x_BChw.shape[2], 2 * x_BChw.shape[3])
        return functional.interpolate(x_BChw, size=size, mode="bicubic", align_corners=True)

    x = up(pair(0))
    for place in range(1, 5):
        x = up(functional.leaky_relu(convolved(f"conv_merge_fns.{place - 1}", torch.cat([pair(place), x], 1)), 0.2))
    return torch.sigmoid(convolved("conv_n", pair(5) + x))[:, 0]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    torch.manual_seed(3)
    generator_config = GeneratorConfig(checkpoint="test", truncation_psi=0.7)
    return Sampler(Generator(spec_of(256)), generator_config, NumericsConfig(batch_size=4, threads=1), "cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels4free") / "car.pt"
    path.write_bytes(saved({"bg_extractor": published(1), "bg_extractor_ema": published()}))
    return path


@pytest.fixture(scope="module")
def fitted(weights: Path, sampler: Sampler) -> bytes:
    return fit_to_bytes(make_config(weights), sampler, "a" * 64)


@pytest.mark.parametrize(("resolution", "const_size"), [(256, (4, 4)), (512, (4, 4)), (1024, (4, 4)), (256, (4, 2))])
def test_it_computes_what_the_authors_code_computes(resolution: int, const_size: tuple[int, int]) -> None:
    spec, state = spec_of(resolution, const_size), published()
    network, part = parse_weights(saved({"bg_extractor_ema": state}), make_config(), spec)
    lowest = resolution // 32
    assert network.layers == tuple(f"b{lowest << place}.conv{side}" for place in range(6) for side in (0, 1))
    sizes = [spec.size_at(lowest << place) for place in range(6) for _ in range(2)]
    features = [torch.randn(1, WIDTHS[index // 2], *size) for index, size in enumerate(sizes)]
    found_BHW = torch.sigmoid(network(dict(zip(network.layers, features, strict=True))))
    assert found_BHW.shape == (1, *spec.image_size) and part == "bg_extractor_ema"
    assert torch.allclose(found_BHW, alphas_of(state, features), atol=1e-5)


def values_of(network: Labels4FreeNetwork) -> State:
    return dict(network.state_dict())


def test_both_namings_any_prefix_and_any_place_in_the_file_read_alike() -> None:
    state, spec, config = published(), spec_of(256), make_config()
    expected = values_of(parse_weights(saved(state), config, spec)[0])
    assert torch.equal(expected["reading.3.weight"], state["conv_fns1.1.weight"])
    renamed = repro(state)
    for value in (
        renamed,
        {f"module.{name}": tensor for name, tensor in state.items()},
        {"bg_extractor": {f"module.{name}": tensor for name, tensor in renamed.items()}, "args": argparse.Namespace()},
        {"bg_extractor": published(1), "bg_extractor_ema": renamed, "g": {"conv1.conv.weight": torch.ones(2, 2)}},
        {f"state.bg_extractor.{name}": tensor for name, tensor in state.items()} | {"other.weight": torch.ones(1)},
    ):
        found = values_of(parse_weights(saved(value), config, spec)[0])
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = saved({"bg_extractor_ema": published(), "args": _Trap()})
    parse_weights(content, make_config(), spec_of(256))
    assert not list(tmp_path.iterdir())
    torch.load(io.BytesIO(content), weights_only=False)
    assert list(tmp_path.iterdir()), "the trap works"


def test_masks_are_those_of_the_network_which_the_fitted_file_keeps(
    sampler: Sampler, weights: Path, fitted: bytes, tmp_path: Path
) -> None:
    assert fit_to_bytes(make_config(weights), sampler, "a" * 64) == fitted
    moved = make_config(tmp_path / "elsewhere.pt")
    network = FittedGivenNetwork.from_bytes(fitted, moved, sampler.generator.spec, "cpu", "a" * 64).network
    batch = sampler.sample([1, 2, 3], network.layers)
    features = [batch.features[name] for name in network.layers]
    assert torch.allclose(torch.sigmoid(network(batch.features)), alphas_of(published(), features), atol=1e-4)
    opened = open_fitted(moved, sampler, fitted, "a" * 64)
    labels, alone = opened.labeler.label(batch), opened.labeler.label(batch.select([2]))
    assert labels.masks_BHW.shape == (3, 256, 256) and labels.alpha_BHW is not None and alone.alpha_BHW is not None
    assert torch.equal(labels.masks_BHW[2], alone.masks_BHW[0])
    assert torch.equal(labels.alpha_BHW[2], alone.alpha_BHW[0])
    with pytest.raises(FittedLabelerError, match="another checkpoint"):
        open_fitted(moved, sampler, fitted, "b" * 64)


def test_findings_judge_the_masks_and_say_that_nothing_was_trained(
    weights: Path, sampler: Sampler, fitted: bytes, tmp_path: Path
) -> None:
    config = make_config(weights)
    provenance = FittedGivenNetwork.from_bytes(fitted, config, sampler.generator.spec, "cpu").provenance
    assert provenance.look.step == 0 and provenance.weights_sha256 == METHODS["alpha_network"].inputs(config)["weights"]
    healthy = {"coverage": 0.4, "opacity": 0.4, "spread": 0.25, "border": 0.2, "centre": 0.8}
    for edges, verdict in ((2.5, "sound"), (1.5, "doubtful"), (1.1, "weak")):
        look = provenance.look.model_copy(update={**healthy, "edges": edges})
        found = given_findings(provenance.model_copy(update={"look": look}))
        assert found.verdict == verdict
        assert any(f"by the bg_extractor_ema of {weights}, nothing was trained" in line for line in found.words)
    state = published()
    state["conv_n.bias"] += 1e4
    (tmp_path / "spoilt.pt").write_bytes(saved(state))
    spoilt = make_config(tmp_path / "spoilt.pt")
    findings = open_fitted(spoilt, sampler, fit_to_bytes(spoilt, sampler)).findings
    assert findings.verdict == "weak" and "collapsed: 100% of the images is foreground" in findings.words[-1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"bg_extractor_ema": published(widths=(7, 6, 5, 5, 3, 2))},
            r"weights\.pt: was trained on another generator.*: b64\.conv0 5, here 4; b64\.conv1 5, here 4\. Give",
        ),
        ({"g_ema": {"conv1.conv.weight": torch.ones(2, 2)}}, r"weights\.pt: holds no alpha network of Labels4Free"),
        ({"one": published(), "two": published(1)}, r"holds several alpha networks \(one, two\)"),
        (
            {"bg_extractor": {key: value for key, value in published().items() if key != "conv_merge_fns.3.bias"}},
            r"its bg_extractor is no alpha network as Labels4Free published it: it lacks conv_merge_fns\.3\.bias",
        ),
        (published() | {"conv_more.weight": torch.ones(1)}, r"published it: it also has conv_more\.weight"),
        (published() | {"conv_n.weight": torch.ones(1, 7, 1, 1)}, r"has outer\.weight of shape \(1, 7, 1, 1\), not"),
        (published() | {"conv_n.bias": torch.full((1,), torch.nan)}, r"its network: holds values that are not finite"),
        (b"<!doctype html>", r"weights\.pt: an HTML page"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: Sampler
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").write_bytes(value if isinstance(value, bytes) else saved(value))
    for check in (METHODS["alpha_network"].check_inputs, lambda *arguments: fit_to_bytes(*arguments)):
        with pytest.raises(LabelmillError, match=rf"labeler\.weights: .*{message}"):
            check(make_config(), sampler, None)


def test_other_generators_missing_files_and_settings_of_a_training_are_refused(sampler: Sampler) -> None:
    generator_config = GeneratorConfig(checkpoint="test")
    small = Sampler(Generator(spec_of(128)), generator_config, NumericsConfig(batch_size=4), "cpu")
    with pytest.raises(
        ConfigError, match=r"labeler\.weights: .* begin at 256 px; this generator makes images of 128 px"
    ):
        METHODS["alpha_network"].check(make_config(), small)
    with pytest.raises(CheckpointError, match=r"labeler\.weights: no/such\.pt: cannot read"):
        METHODS["alpha_network"].inputs(make_config("no/such.pt"))
    with pytest.raises(ValidationError, match=r"steps, seed would train one; leave out either weights or these"):
        make_config(steps=100, seed=3)
    assert "weights" not in AlphaNetworkConfig(method="alpha_network").model_dump(), "identities are as they were"
    assert make_config(snap_radius=3, truncation_psi=0.7, fit_first_seed=2**32 - 8).num_fit_seeds == 8
