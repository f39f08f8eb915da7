"""Growing: what learns in which phase, that it resumes over every border, and when it fails."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.small_trainings import RESOLUTION, losses, make_config, open_trainer, write_discs
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.discriminator import Discriminator, with_detail
from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.training import growth as training_growth
from labelmill.pipeline.generator.training.growth import (
    PATIENCE_IMAGES,
    RANK_STEPS,
    RankWatch,
    TrainingFailedError,
    phase_at,
)
from labelmill.pipeline.generator.training.start import spec_of
from labelmill.pipeline.generator.training.train import train_generator
from labelmill.pipeline.training.state import TrainingStateError, latest_state
from labelmill.schemas.training import GrowthConfig, TrainGeneratorConfig

# Steps of 8 images: 2 of the discriminator alone, 3 frozen, 3 anchored, then settled.
PHASES = {"head_start_images": 16, "frozen_images": 24, "anchored_images": 24}


@pytest.fixture(scope="module")
def small(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a training at 8 px."""
    output = tmp_path_factory.mktemp("small")
    train_generator(make_config(folder, output, network={"resolution": 8}, total_images=8 * 10))
    return output


def growing(folder: Path, small: Path, output: Path, **changes: object) -> TrainGeneratorConfig:
    values = {"grow_from": str(small / "state"), "growth": PHASES, "network": None, "total_images": 8 * 10, **changes}
    return make_config(folder, output, **values)


def states_equal(first: Path, second: Path) -> bool:
    paths = [latest_state(output / "state") for output in (first, second)]
    assert paths[0] is not None and paths[1] is not None
    names = [sorted(path.name for path in state.iterdir()) for state in paths if state is not None]
    return names[0] == names[1] and all(
        (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes()
        for name in names[0]
        if name.endswith(".safetensors")
    )


def test_it_first_shows_the_images_of_the_small_generator(folder: Path, small: Path, tmp_path: Path) -> None:
    trainer = open_trainer(growing(folder, small, tmp_path / "large"))
    trained = open_checkpoint(str(small / "generator.safetensors")).generator
    z = torch.randn(3, 16)
    with torch.no_grad():
        expected = trained.synthesize(trained.map(z)).images_BCHW
        ws = trainer.average.map(z)
        assert torch.equal(trainer.average.synthesize(ws, resolution=8).images_BCHW, expected)
        filter_KK = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 16
        upsampled = torch.nn.functional.conv_transpose2d(
            expected, filter_KK.expand(3, 1, 4, 4), stride=2, padding=1, groups=3
        )
        assert torch.allclose(trainer.average.synthesize(ws).images_BCHW, upsampled, atol=1e-6)


def test_each_phase_moves_what_it_should_and_no_faster(folder: Path, small: Path, tmp_path: Path) -> None:
    trainer = open_trainer(growing(folder, small, tmp_path / "large"))
    rate = trainer.generator_optimiser.rate
    moved: list[tuple[bool, bool]] = []
    for step in range(10):
        before = {name: tensor.clone() for name, tensor in trainer.generator.state_dict().items()}
        trainer.step()
        change = {name: (tensor - before[name]).abs().max() for name, tensor in trainer.generator.state_dict().items()}
        new = max(float(value) for name, value in change.items() if ".b16." in name)
        old = max(float(value) for name, value in change.items() if ".b16." not in name)
        moved.append((new > 0, old > 0))
        if step == 5:  # the old blocks' first: Adam's first step is its rate, but for rounding of large weights
            parameters = [v for n, v in change.items() if ".b16." not in n and not n.endswith("w_avg")]
            assert max(map(float, parameters)) <= 0.05 * rate * 1.2
    assert moved == [(False, False)] * 2 + [(True, False)] * 3 + [(True, True)] * 5


def test_stopped_at_every_step_it_ends_with_the_same_bytes(folder: Path, small: Path, tmp_path: Path) -> None:
    train_generator(growing(folder, small, tmp_path / "whole"))
    for steps in range(3, 11):
        train_generator(growing(folder, small, tmp_path / "parts", total_images=8 * steps))
    assert states_equal(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert (tmp_path / "parts/generator.safetensors").read_bytes() == (
        tmp_path / "whole/generator.safetensors"
    ).read_bytes()


def test_a_resumed_growth_needs_its_source_no_longer(folder: Path, small: Path, tmp_path: Path) -> None:
    source = tmp_path / "small.safetensors"
    source.write_bytes((small / "generator.safetensors").read_bytes())
    for name, stop in (("whole", 10), ("parts", 6)):
        train_generator(growing(folder, small, tmp_path / name, grow_from=str(source), total_images=8 * stop))
    source.unlink()
    train_generator(growing(folder, small, tmp_path / "parts", grow_from=str(source)))
    assert states_equal(tmp_path / "whole", tmp_path / "parts")


def test_phases_may_be_lengthened_when_it_is_resumed(folder: Path, small: Path, tmp_path: Path) -> None:
    longer = {**PHASES, "frozen_images": 64}
    train_generator(growing(folder, small, tmp_path / "whole", growth=longer))
    train_generator(growing(folder, small, tmp_path / "parts", total_images=8 * 4))
    train_generator(growing(folder, small, tmp_path / "parts", growth=longer))
    assert states_equal(tmp_path / "whole", tmp_path / "parts")


def test_the_anchor_holds_the_images(folder: Path, small: Path, tmp_path: Path) -> None:
    """Mean squared difference of 2x2 means from the small generator's images, with and without the anchor."""
    phases = {"head_start_images": 16, "frozen_images": 0, "anchored_images": 8 * 100, "old_rate": 1.0}
    drifts = []
    z = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    for anchor in (0.0, 100.0):
        growth = {**phases, "anchor": anchor, "final_anchor": anchor}
        trainer = open_trainer(growing(folder, small, tmp_path / f"anchor-{anchor}", growth=growth))
        for _ in range(30):
            trainer.step()
        trained = open_checkpoint(str(small / "generator.safetensors")).generator
        with torch.no_grad():
            images = trainer.generator.synthesize(trainer.generator.map(z), "none").images_BCHW
            expected = trained.synthesize(trained.map(z), "none").images_BCHW
        means = images.reshape(64, 3, 8, 2, 8, 2).mean(dim=(3, 5))
        drifts.append(float((means - expected).square().mean()))
    assert drifts[1] < 0.2 * drifts[0], drifts


def test_phases_follow_from_the_images_seen() -> None:
    growth = GrowthConfig(head_start_images=100, frozen_images=200, anchored_images=400, anchor=20, final_anchor=5)
    assert not phase_at(growth, 99).generator_learns
    frozen, border = phase_at(growth, 100), phase_at(growth, 299)
    assert frozen == border and frozen.generator_learns and frozen.old_rate == 0 and frozen.anchor == 20
    anchored = [phase_at(growth, images) for images in (300, 500, 699)]
    assert [phase.old_rate for phase in anchored] == [0.05] * 3
    assert [phase.anchor for phase in anchored] == pytest.approx([20, 10, 5], rel=0.005)
    assert not any(phase.path_length for phase in anchored)
    settled = phase_at(growth, 700)
    assert (settled.old_rate, settled.anchor, settled.path_length) == (0.4, 0, True)


def test_a_discriminator_at_chance_fails_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    watch = RankWatch(GrowthConfig(head_start_images=100, frozen_images=5_000))
    for _ in range(2 * RANK_STEPS):
        watch.add(0.5, 100 + PATIENCE_IMAGES - 1)  # still within the patience
    for _ in range(2 * RANK_STEPS):
        watch.add(0.61, 5_000)
    for _ in range(RANK_STEPS - 1):
        watch.add(0.5, 5_000)
    with pytest.raises(TrainingFailedError, match=r"after 5,000 images .* in 50% of pairs"):
        watch.add(0.5, 5_000)
    for _ in range(RANK_STEPS):  # not frozen any more
        watch.add(0.5, 5_101)
    assert "after 5,101 images" in capsys.readouterr().err


def test_a_growth_that_fails_says_so_also_when_it_was_resumed(
    folder: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank counts as chance; the steps before the resume count among those that are judged together."""
    for name, value in (("CHANCE_RANK", 1.1), ("RANK_STEPS", 4), ("PATIENCE_IMAGES", 0)):
        monkeypatch.setattr(training_growth, name, value)
    growth = {"head_start_images": 16, "frozen_images": 800}
    train_generator(growing(folder, small, tmp_path / "x", growth=growth, total_images=8 * 4))
    with pytest.raises(TrainingFailedError, match="after 40 images"):
        train_generator(growing(folder, small, tmp_path / "x", growth=growth, total_images=8 * 20))


class TestDetail:
    def test_it_is_what_lies_beyond_the_2x2_means(self) -> None:
        images = torch.rand(2, 3, 8, 8)
        found = with_detail(images, 6.0).numpy()
        means = images.numpy().reshape(2, 3, 4, 2, 4, 2).mean(axis=(3, 5))
        # Bilinear enlargement: a pixel is 3/4 its own mean and 1/4 the nearer neighbour's, per axis, edges repeated.
        padded = np.pad(means, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        for axis in (2, 3):
            centre = np.take(padded, range(1, padded.shape[axis] - 1), axis)
            before = np.take(padded, range(padded.shape[axis] - 2), axis)
            after = np.take(padded, range(2, padded.shape[axis]), axis)
            pairs = np.stack([0.75 * centre + 0.25 * before, 0.75 * centre + 0.25 * after], axis + 1)
            padded = pairs.reshape(*pairs.shape[:axis], -1, *pairs.shape[axis + 2 :])
        assert np.allclose(found[:, :3], images.numpy())
        assert np.allclose(found[:, 3:], 6.0 * (images.numpy() - padded), atol=1e-5)

    def test_without_it_the_discriminator_is_the_plain_one(self) -> None:
        channels = ((4, 8), (8, 8))
        plain, detailed = Discriminator(channels), Discriminator(channels, detail=6.0)
        assert plain.get_parameter("b8.fromrgb.weight").shape == (8, 3, 1, 1)
        assert detailed.get_parameter("b8.fromrgb.weight").shape == (8, 6, 1, 1)
        weights = {k: v for k, v in plain.state_dict().items() if k != "b8.fromrgb.weight"}
        detailed.load_state_dict(weights, strict=False)
        images = torch.rand(4, 3, 8, 8)
        with torch.no_grad():
            # Equalised: the gain is over the number of inputs, so twice as many inputs halve the variance.
            weight = detailed.get_parameter("b8.fromrgb.weight")
            weight.zero_()
            weight[:, :3] = plain.get_parameter("b8.fromrgb.weight") * 2**0.5
            assert torch.allclose(detailed(images), plain(images), atol=1e-5)


class TestRefusals:
    def test_a_generator_of_the_same_size(self, folder: Path, small: Path, tmp_path: Path) -> None:
        config = growing(folder, small, tmp_path / "x", network={"resolution": 8})
        with pytest.raises(TrainingStateError, match=r"grow_from: .* resolution 16, not 8; .* Leave `network` out"):
            train_generator(config)

    def test_other_widths(self, folder: Path, small: Path, tmp_path: Path) -> None:
        config = growing(folder, small, tmp_path / "x", network={"resolution": 16, "channel_max": 16, "z_dim": 8})
        with pytest.raises(TrainingStateError, match=r"z_dim 16, not 8; channels \(\(4, 32\), .*, not \(\(4, 16\)"):
            train_generator(config)

    def test_initialise_from_needs_the_same_sizes(self, folder: Path, small: Path, tmp_path: Path) -> None:
        config = make_config(folder, tmp_path / "x", initialise_from=str(small / "generator.safetensors"))
        with pytest.raises(TrainingStateError, match=r"initialise_from: .* resolution 8, not 16"):
            train_generator(config)

    @pytest.mark.parametrize(("change", "words"), [({"c_dim": 3}, "3 classes"), ({"img_channels": 1}, "1 channels")])
    def test_what_cannot_be_trained(self, folder: Path, tmp_path: Path, change: dict[str, int], words: str) -> None:
        from dataclasses import replace

        network = make_config(folder, tmp_path, network={"resolution": 8}).network
        assert network is not None
        path = tmp_path / "odd.safetensors"
        save_generator(path, Generator(replace(spec_of(network), **change)), {})
        with pytest.raises(TrainingStateError, match=words):
            train_generator(make_config(folder, tmp_path / "x", grow_from=str(path), network=None))

    def test_generators_that_are_no_sum_over_resolutions(self, folder: Path, tmp_path: Path) -> None:
        network = make_config(folder, tmp_path, network={"resolution": 8, "architecture": "orig"}).network
        assert network is not None
        save_generator(tmp_path / "orig.safetensors", Generator(spec_of(network)), {})
        with pytest.raises(TrainingStateError, match="architecture 'orig'; only 'skip' generators grow"):
            train_generator(
                make_config(folder, tmp_path / "x", grow_from=str(tmp_path / "orig.safetensors"), network=None)
            )

    def test_a_training_that_ends_before_the_generator_learns(self, folder: Path, small: Path, tmp_path: Path) -> None:
        with pytest.raises(TrainingStateError, match="total_images: 16 are over before the generator learns"):
            train_generator(growing(folder, small, tmp_path / "x", total_images=16))

    def test_two_starts(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="keep one of them"):
            make_config(folder, tmp_path, grow_from="a", initialise_from="b")
        with pytest.raises(ValueError, match="leave growth out"):
            make_config(folder, tmp_path, growth={})


def test_four_lines_grow_on_a_folder(small: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_discs(tmp_path / "photos", 8)
    lines = {
        "data": {"kind": "folder", "path": str(tmp_path / "photos")},
        "output": str(tmp_path / "grown"),
        "grow_from": str(small / "generator.safetensors"),
        "growth": {"head_start_images": 0},
        "total_images": 64,
    }
    (tmp_path / "grow.yaml").write_text(yaml.safe_dump(lines))
    result = CliRunner().invoke(app, ["train-generator", str(tmp_path / "grow.yaml")])
    assert result.exit_code == 0, result.output
    generator = open_checkpoint(str(tmp_path / "grown/generator.safetensors")).generator
    assert generator.spec.resolution == RESOLUTION
    assert dict(generator.spec.channels) == {4: 32, 8: 32, 16: 16}
    assert bool(generator.get_parameter("synthesis.b16.torgb.weight").any())  # which began at zero
