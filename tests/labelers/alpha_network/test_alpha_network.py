"""The alpha network from fit to mattes: on the bundled generator in few steps, and on small random ones."""

import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.random_sampler import make_sampler
from safetensors.torch import load, save

from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.alpha_network import fit as fit_module
from labelmill.pipeline.labelers.alpha_network.background import (
    Switch,
    SwitchFigures,
    choose_switch,
    measure_switches,
    synthesise_background,
)
from labelmill.pipeline.labelers.alpha_network.fit import CollapseError, fit_alpha_network
from labelmill.pipeline.labelers.alpha_network.labeler import AlphaNetworkLabeler
from labelmill.pipeline.labelers.alpha_network.network import AlphaNetwork, default_layers
from labelmill.pipeline.labelers.alpha_network.trainer import AlphaTrainer
from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.fitted_file import FittedLabelerError
from labelmill.pipeline.labelers.methods import METHODS, fit_to_bytes, open_fitted
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig

GIVEN_BACKGROUND = {"background": "corner_blend", "background_layer": "b8.conv1"}
# A fraction of the default's work: enough to see a foreground, not to draw it well.
QUICK = {
    "steps": 40, "batch_size": 6, "learning_rate": 6e-3, "layers": ["b16.conv1", "b32.conv0", "b32.conv1"],
    "average_half_life_images": 40, "discriminator_width": 24, "discriminator_learning_rate": 2e-3,
    "watch_samples": 16, "watch_interval": 20, **GIVEN_BACKGROUND,
}  # fmt: skip
PLUMBING = {
    "steps": 20, "watch_interval": 5, "batch_size": 2, "width": 4, "discriminator_width": 4, "watch_samples": 8,
    "restarts": 2, **GIVEN_BACKGROUND,
}  # fmt: skip
# A fast discriminator rewards blobs of background.
DRIFTING = {
    **QUICK, "steps": 30, "batch_size": 3, "learning_rate": 1e-2, "layers": ["b16.conv1", "b32.conv1"],
    "average_half_life_images": 10, "discriminator_width": 16, "discriminator_learning_rate": 2e-2, "r1_gamma": 0,
    "watch_samples": 8, "watch_interval": 3, "restarts": 0, "background": "zero", "background_layer": "b4.conv1",
}  # fmt: skip
RESTARTED = {**PLUMBING, "seed": 1, "background": "corner_mean"}
"""Two trainings of the small random generator collapse, the third does not."""


def make_config(**settings: object) -> AlphaNetworkConfig:
    return AlphaNetworkConfig.model_validate({"method": "alpha_network", **settings})


@pytest.fixture(scope="module")
def bundled() -> Sampler:
    checkpoint = "bundled:avatars-32"
    generator = open_checkpoint(checkpoint).generator
    return Sampler(generator, GeneratorConfig(checkpoint=checkpoint), NumericsConfig(threads=1), "cpu")


@pytest.fixture(scope="module")
def quick(bundled: Sampler) -> AlphaNetworkLabeler:
    config = make_config(**QUICK)
    opened = open_fitted(config, bundled, fit_to_bytes(config, bundled))
    assert opened.findings.verdict == "sound", opened.findings
    assert isinstance(opened.labeler, AlphaNetworkLabeler)
    return opened.labeler


@pytest.fixture(scope="module")
def fitted() -> bytes:
    return fit_to_bytes(make_config(**RESTARTED), make_sampler(), "a" * 64)


def header(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def test_a_short_training_cuts_the_foreground_out(bundled: Sampler, quick: AlphaNetworkLabeler) -> None:
    batch = bundled.sample(range(300, 316), quick.layers)
    labels, truth_BHW = quick.label(batch), open_oracle("b", 32).segment(batch.images_BCHW) != 0
    iou_B = soft_iou(labels.masks_BHW.float(), truth_BHW.float())
    assert iou_B.mean() > 0.85
    alphas_BHW = labels.alpha_BHW
    assert alphas_BHW is not None and alphas_BHW.dtype == torch.float32
    assert bool(((alphas_BHW >= 0) & (alphas_BHW <= 1)).all())
    assert torch.equal(labels.masks_BHW == 1, alphas_BHW > 0.5)
    assert bool(((labels.confidence_B > 0.5) & (labels.confidence_B <= 1)).all())
    assert labels.confidence_B.mean() < iou_B.mean() + 0.05


def test_a_matte_depends_on_its_sample_alone_to_the_bit(bundled: Sampler, quick: AlphaNetworkLabeler) -> None:
    alone = quick.label(bundled.sample([5], quick.layers))
    for seeds in ([5, 1, 2], [3, 4, 5], [*range(16)]):
        labels = quick.label(bundled.sample(seeds, quick.layers))
        for name in ("masks_BHW", "confidence_B", "alpha_BHW"):
            assert torch.equal(getattr(labels, name)[seeds.index(5)], getattr(alone, name)[0]), name


def test_layers_are_read_at_their_own_resolution_and_resized() -> None:
    sampler = make_sampler(resolution=32, const_size=(4, 2))
    spec = sampler.generator.spec
    assert default_layers(spec) == spec.conv_names[1:]
    network = AlphaNetwork(spec, ("b8.conv1", "b32.conv0"), width=4)
    network.set_deviations({"b8.conv1": 2.0, "b32.conv0": 0.5})
    features = sampler.sample([1, 2], network.layers).features
    summed_BCHW = network.bias[:, None, None]
    for name, deviation in (("b8.conv1", 2.0), ("b32.conv0", 0.5)):
        wide_BCHW = resize(features[name] / deviation, (32, 16))
        weights_OC = network.get_parameter(f"reading.{name.replace('.', '_')}")
        summed_BCHW = summed_BCHW + torch.einsum("bchw,oc->bohw", wide_BCHW, weights_OC)
    expected_BHW = network.outer(torch.nn.functional.leaky_relu(network.inner(
        torch.nn.functional.leaky_relu(summed_BCHW, 0.2)), 0.2))[:, 0]  # fmt: skip
    assert torch.allclose(network(features), expected_BHW, atol=1e-4)


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_backgrounds_hold_nothing_but_what_replaces_the_layer(architecture: str) -> None:
    """Two images that differ in the middle of a layer alone have the same background."""
    sampler = make_sampler(resolution=32, architecture=architecture)  # type: ignore[arg-type]
    generator, batch = sampler.generator, sampler.sample([1, 2])
    for layer, kind in (
        ("const", "zero"),
        ("b4.conv1", "zero"),
        ("b8.conv1", "corner_mean"),
        ("b8.conv0", "corner_blend"),
    ):
        ground_BCHW = synthesise_background(generator, batch.ws_BLD, "none", Switch(layer, kind))  # type: ignore[arg-type]
        assert ground_BCHW.shape == batch.images_BCHW.shape and not torch.equal(ground_BCHW, batch.images_BCHW)
    zero = Switch("b4.conv1", "zero")
    before = synthesise_background(generator, batch.ws_BLD, "none", zero)
    const = generator.get_parameter("synthesis.b4.const")
    const.data += torch.randn_like(const)
    assert torch.equal(synthesise_background(generator, batch.ws_BLD, "none", zero), before)
    assert not torch.equal(sampler.sample([1, 2]).images_BCHW, batch.images_BCHW)


def test_the_background_is_chosen_by_what_is_left_and_by_its_colours(bundled: Sampler) -> None:
    figures = measure_switches(make_config(), bundled, [bundled.sample(range(8))])
    assert choose_switch(figures) == Switch("b8.conv1", "corner_blend")
    good, bad = SwitchFigures(0.1, 0.1), SwitchFigures(0.1, 0.3)
    first, second = Switch("b4.conv1", "zero"), Switch("b8.conv0", "zero")
    assert choose_switch({first: bad, second: good}) == second
    assert choose_switch({first: SwitchFigures(0.1, 0.11), second: good}) == first, "nearly as good, and earlier"


def test_a_training_that_collapses_starts_again_and_says_so(fitted: bytes) -> None:
    values = json.loads(header(fitted)["labelmill"])
    assert [attempt["collapse"] for attempt in values["attempts"]] == ["flat", "all_foreground", None]
    opened = open_fitted(make_config(**RESTARTED), make_sampler(), fitted)
    assert opened.findings.verdict == "weak", "the generator never saw an image"
    assert any("a training collapsed: 100% of the images is foreground" in line for line in opened.findings.words)


def test_a_fit_fails_with_its_figures_where_every_training_collapses() -> None:
    with pytest.raises(CollapseError) as raised:
        fit_to_bytes(make_config(**PLUMBING, seed=0), make_sampler())
    message = str(raised.value)
    assert re.search(r"(?s)each of 3 trainings:.*training 1, step 10: .*training 3, step 10", message)
    assert "Fewer labeler.steps" not in message, "none of them drifted"


def test_a_fit_whose_last_training_drifts_fails_and_says_when_its_masks_were_best(bundled: Sampler) -> None:
    with pytest.raises(CollapseError) as raised:
        fit_to_bytes(make_config(**DRIFTING), bundled)
    (attempt,) = raised.value.attempts
    assert attempt.collapse == "drifting"
    last, best = attempt.looks[-1], max(attempt.looks, key=lambda look: look.edges)
    message = str(raised.value)
    assert f"training 1, step {last.step}: masks, best at step {best.step}, drifted" in message
    assert f"fell from {best.edges:.2f} to {last.edges:.2f}" in message
    assert "Fewer labeler.steps may stop where masks were best" in message


@pytest.mark.parametrize("num_steps", [7, 27])
def test_a_fit_that_is_killed_goes_on_to_the_same_bytes(
    num_steps: int, fitted: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many steps, in the first or the third training."""
    taken, step = [0], AlphaTrainer.step

    def step_or_die(trainer: AlphaTrainer) -> None:
        taken[0] += 1
        if taken[0] == num_steps:
            raise KeyboardInterrupt
        step(trainer)

    monkeypatch.setattr(AlphaTrainer, "step", step_or_die)
    config = make_config(**RESTARTED)
    with pytest.raises(KeyboardInterrupt):
        fit_alpha_network(config, make_sampler(), tmp_path, "a" * 64)
    taken[0] = 10_000
    assert fit_alpha_network(config, make_sampler(), tmp_path, "a" * 64).to_bytes() == fitted
    assert taken[0] < 10_000 + 40 - 5 * (num_steps // 5) + 1, "it began anew"


def test_real_images_may_come_from_a_folder(tmp_path: Path) -> None:
    config = make_config(**{**PLUMBING, "restarts": 0, "steps": 10}, reals={"kind": "folder", "path": "photos"})
    config = AlphaNetworkConfig.model_validate(config.model_dump(), context={"folder": tmp_path})
    with pytest.raises(ConfigError, match=r"labeler\.reals: .*photos is not a folder"):
        METHODS["alpha_network"].inputs(config)
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (tmp_path / "photos" / f"{number}.png").write_bytes(encode_picture(pixels))
    first = METHODS["alpha_network"].inputs(config)
    (tmp_path / "photos" / "3.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes())
    assert METHODS["alpha_network"].inputs(config) != first
    with suppress(CollapseError):  # noise is like no generator's images
        fit_alpha_network(config, make_sampler(), tmp_path / "work")
    assert list((tmp_path / "work" / "reals").glob("folder-16-*.npy"))
    with pytest.raises(ConfigError, match=r"labeler\.reals: .*RGB squares.*64 x 32|labeler\.reals: .*32 x 64"):
        fit_alpha_network(config, make_sampler(64, const_size=(4, 2)), tmp_path / "work")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["b16.conv0", "b99.conv1"]}, r"labeler\.layers: b99\.conv1, but this generator has b4\.conv1"),
        ({"background_layer": "b16.conv1"}, r"labeler\.background_layer: b16\.conv1, .*const, b4\.conv1.*or `auto`"),
    ],
)
def test_what_the_generator_lacks_is_refused(settings: dict[str, object], message: str, fitted: bytes) -> None:
    config = make_config(**{**PLUMBING, **settings})
    with pytest.raises(ConfigError, match=message):
        fit_to_bytes(config, make_sampler())
    with pytest.raises(ConfigError, match=message):
        open_fitted(config, make_sampler(), fitted)


def test_files_of_others_are_refused(fitted: bytes) -> None:
    config, sampler = make_config(**RESTARTED), make_sampler()
    with pytest.raises(FittedLabelerError, match="another checkpoint"):
        open_fitted(config, sampler, fitted, "b" * 64)
    with pytest.raises(FittedLabelerError, match=r"seed: 0 here, 1 in the file"):
        open_fitted(make_config(**{**RESTARTED, "seed": 0}), sampler, fitted)
    moved = make_config(**RESTARTED, reals={"kind": "folder", "path": "elsewhere"})
    assert open_fitted(moved, sampler, fitted).findings, "a run's identity holds what reals are, wherever they lie"
    tensors = load(fitted)
    tensors["bias"][0] = float("nan")
    with pytest.raises(FittedLabelerError, match="bias is not finite"):
        open_fitted(config, sampler, save(tensors, metadata=header(fitted)))
    values = json.loads(header(fitted)["labelmill"]) | {"layers": ["b99.conv0"]}
    with pytest.raises(FittedLabelerError, match="b99"):
        open_fitted(config, sampler, save(load(fitted), metadata={"labelmill": json.dumps(values)}))


def test_what_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, config = make_sampler(), make_config(**PLUMBING)
    needed = fit_module.bytes_needed(config, sampler.generator.spec, 4)
    # Features of b8.conv1, b16.conv0 and b16.conv1 of eight channels, and three maps of four channels per image.
    names = default_layers(sampler.generator.spec)
    numbers = sum(8 * int(name.split(".")[0][1:]) ** 2 for name in names)
    assert needed == 4 * (4 * numbers + 4 * 3 * 4 * 16 * 16)
    monkeypatch.setattr(fit_module, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ConfigError, match=r"features of 4 images need 0\.0 GiB beside the generator"):
        fit_module.check_alpha_network(config, sampler)
    monkeypatch.setattr(fit_module, "free_bytes", lambda device: needed)
    fit_module.check_alpha_network(config, sampler)
