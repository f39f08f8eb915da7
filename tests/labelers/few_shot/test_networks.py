"""The published heads: what they compute, what they learn, and that an interrupted fit resumes to the bit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.random_sampler import make_sampler
from helpers.small_annotations import CLASSES
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec, channels_by_resolution
from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.few_shot import training
from labelmill.pipeline.labelers.few_shot.features import automatic_blocks, num_doublings
from labelmill.pipeline.labelers.few_shot.fit import fit_few_shot
from labelmill.pipeline.labelers.few_shot.fitted import FittedFewShot
from labelmill.pipeline.labelers.few_shot.heads import NetworkHead
from labelmill.pipeline.labelers.few_shot.networks import CnnTail, DecoderNetwork, MlpNetwork
from labelmill.pipeline.labelers.few_shot.pixels import LabeledPixels
from labelmill.pipeline.labelers.few_shot.shots import Shots, shots_of_seeds
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.few_shot import FewShotConfig

SEEDS = (3, 1, 8)
HEADS = {
    "mlp": {"head": {"type": "mlp", "members": 2, "epochs": 8, "hidden": [16, 8]}},
    "mlp on directions": {
        "head": {"type": "mlp", "members": 1, "epochs": 8, "hidden": [16, 8]},
        "normalisation": "standardised",
    },
    "cnn": {"head": {"type": "cnn", "size": "small", "epochs": 25}},
    "decoder": {"head": {"type": "decoder", "epochs": 60, "width": 16, "learning_rate": 0.01}},
}


def make_config(**settings: object) -> FewShotConfig:
    values = {"method": "few_shot", "annotations": "annotations", "normalisation": "none", "foreground": "learned",
              "statistics_samples": 4}  # fmt: skip
    return FewShotConfig.model_validate({**values, **settings})


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return make_sampler()


@pytest.fixture(scope="module")
def shots(sampler: Sampler) -> Shots:
    gray_BHW = torch.cat([batch.images_BCHW for batch in sampler.batches(list(SEEDS))]).mean(dim=1)
    masks_BHW = ((gray_BHW < 0.3).int() + 2 * (gray_BHW > 0.85).int()).numpy().astype(np.uint8)
    masks_BHW[:, 0] = 255
    return shots_of_seeds(sampler, SEEDS, masks_BHW, CLASSES)


@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_and_are_kept(sampler: Sampler, shots: Shots, name: str) -> None:
    config = make_config(**HEADS[name])
    fitted = fit_few_shot(config, sampler, shots, "a" * 64)
    batch = sampler.sample(SEEDS, fitted.labeler(sampler).layers)
    masks_BHW, known_BHW = fitted.labeler(sampler).label(batch).masks_BHW, torch.from_numpy(shots.masks_NHW)
    labeled = known_BHW != 255
    most = np.bincount(known_BHW[labeled].numpy()).max() / int(labeled.sum())
    assert float((masks_BHW == known_BHW)[labeled].float().mean()) > most + 0.05
    spec = sampler.generator.spec
    read = FittedFewShot.from_bytes(fitted.to_bytes(), config, spec, "cpu", "a" * 64)
    assert torch.equal(read.labeler(sampler).label(batch).masks_BHW, masks_BHW)
    assert read.to_bytes() == fitted.to_bytes()
    assert fit_few_shot(config, sampler, shots, "a" * 64).to_bytes() == fitted.to_bytes()


@pytest.mark.parametrize("name", ["mlp", "cnn", "decoder"])
def test_an_interrupted_fit_resumes_to_the_bit(
    sampler: Sampler, shots: Shots, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(**HEADS[name])
    expected = fit_few_shot(config, sampler, shots).to_bytes()
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_STATES", 0)
    step, steps = training.Loop.step, list[Tensor]()

    def killed(loop: training.Loop, loss: Tensor) -> None:
        steps.append(loss)
        if len(steps) > 40:
            raise KeyboardInterrupt
        step(loop, loss)

    monkeypatch.setattr(training.Loop, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_few_shot(config, sampler, shots, work=tmp_path)
    assert list(tmp_path.iterdir())
    steps.clear()
    monkeypatch.setattr(training.Loop, "step", lambda loop, loss: (steps.append(loss), step(loop, loss))[1])
    assert fit_few_shot(config, sampler, shots, work=tmp_path).to_bytes() == expected
    resumed = len(steps)
    steps.clear()
    fit_few_shot(config, sampler, shots)
    assert 0 < resumed < len(steps)


def test_the_first_layer_is_that_of_stacked_features(sampler: Sampler) -> None:
    torch.manual_seed(1)
    layers = ("b8.conv1", "b16.conv0")
    batch = sampler.sample([1, 2], layers)
    network = MlpNetwork({name: batch.features[name].shape[1] for name in layers}, (16, 16), [6, 4], 3).eval()
    stacked_BDHW = torch.cat([resize(batch.features[name], (16, 16)) for name in layers], dim=1)
    expected = network.tail.pixels(network.first.pixel(stacked_BDHW.permute(0, 2, 3, 1).flatten(0, 2)))
    found = network(batch.features).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_papers_layers() -> None:
    large = CnnTail("large", 7)
    shapes = [(c.in_channels, c.out_channels, c.dilation[0]) for c in large.convolutions]
    assert shapes == [(128, 64, 2), (64, 64, 4), (64, 64, 8), (64, 64, 1), (64, 64, 2), (64, 64, 4), (64, 32, 8),
                      (32, 7, 1)]  # fmt: skip
    torch.manual_seed(0)
    low_BCHW, high_BCHW = torch.randn(1, 200, 4, 4), torch.randn(1, 5, 8, 8)
    for doublings in (0, 1, 2):
        decoder = DecoderNetwork({4: ("low", 200), 8: ("high", 5)}, 128, 0.0, doublings, 3)
        found = decoder({"low": low_BCHW, "high": high_BCHW})
        expected = decoded(dict(decoder.decoder.named_parameters()), low_BCHW, high_BCHW, doublings)
        assert found.shape == (1, 3, 8 * 2**doublings, 8 * 2**doublings)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def decoded(parameters: dict[str, Tensor], low_BCHW: Tensor, high_BCHW: Tensor, doublings: int) -> Tensor:
    """The authors' wiring: read, join, double, convolve."""

    def layer(name: str, x: Tensor) -> Tensor:
        weight = parameters[f"{name}.weight"]
        return functional.conv2d(x, weight / (9 * weight.shape[1]) ** 0.5, parameters[f"{name}.bias"], padding=1)

    def up(x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2, mode="bilinear")

    low, high = (functional.leaky_relu(layer(f"branches.{i}", x), 0.2) for i, x in enumerate((low_BCHW, high_BCHW)))
    assert low.shape[1] == 128 and high.shape[1] == 5
    trunk = functional.leaky_relu(layer("trunk.0", up(low)), 0.2)
    joined = torch.cat([trunk, high], dim=1)
    trunk = functional.leaky_relu(layer("trunk.1", up(joined) if doublings else joined), 0.2)
    for index in range(doublings - 1):
        trunk = functional.leaky_relu(layer(f"rises.{index}", up(trunk)), 0.2)
    return layer("last", trunk)


def pixels_of(labels: Sequence[int], weights: Sequence[float]) -> LabeledPixels:
    """Pixels whose features tell nothing."""
    count = len(labels)
    numbers = torch.zeros(count, dtype=torch.int64)
    x_SP = torch.randn(count, 4, generator=torch.Generator().manual_seed(5))
    return LabeledPixels(
        x_SP, torch.tensor(labels), torch.tensor(weights, dtype=torch.float64), numbers, numbers, max(labels) + 1
    )


def test_pixels_weigh_as_much_as_the_ones_they_stand_for(tmp_path: Path) -> None:
    """Half of the read pixels are of a class that is a tenth of the image."""
    pixels = pixels_of([0, 1] * 256, [1.8, 0.2] * 256)
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 2)
    loop = training.Loop("member", network, torch.optim.Adam(network.parameters(), 0.05))
    loop.run(12, training.train_on_pixels(network, pixels, 64), tmp_path, 0)
    assert float(network(pixels.x_SP).softmax(dim=1)[:, 1].mean()) == pytest.approx(0.1, abs=0.04)


def test_training_stops_as_datasetgans_does(tmp_path: Path) -> None:
    """Not before the 52nd batch of the fifth epoch, whatever earlier ones have reached."""
    network, steps = torch.nn.Linear(4, 2), list[int]()
    torch.nn.init.zeros_(network.weight)
    loop = training.Loop("member", network, torch.optim.SGD(network.parameters(), 0.0))
    epoch = training.train_on_pixels(network, pixels_of([0, 1] * 64, [1.0] * 128), 8)

    def counted(loop: training.Loop) -> bool:
        steps.append(loop.epoch)
        return epoch(loop)

    loop.run(100, counted, tmp_path, 0)
    # 16 batches per epoch, of equal loss: the first is the lowest, and 51 others follow from the fifth epoch on.
    assert steps == list(range(4 + -(-52 // 16)))


@pytest.mark.parametrize("name", HEADS)
def test_a_mask_depends_on_its_own_sample_alone(sampler: Sampler, shots: Shots, name: str) -> None:
    labeler = fit_few_shot(make_config(**HEADS[name]), sampler, shots).labeler(sampler)
    together = labeler.label(sampler.sample([5, 6, 7], labeler.layers))
    alone = labeler.label(sampler.sample([6], labeler.layers))
    assert torch.equal(alone.masks_BHW[0], together.masks_BHW[1])
    assert torch.equal(alone.confidence_B[0], together.confidence_B[1])


def test_a_single_pixel_teaches_no_perceptron(sampler: Sampler) -> None:
    masks_NHW = np.full((1, 16, 16), 255, np.uint8)
    masks_NHW[0, 3, 3] = 1
    with pytest.raises(ConfigError, match="they label a single pixel, and an mlp head needs two or more"):
        fit_few_shot(make_config(**HEADS["mlp"]), sampler, shots_of_seeds(sampler, [3], masks_NHW, CLASSES))


def test_a_decoder_reads_blocks_up_to_128_px_and_ends_at_512() -> None:
    spec = GeneratorSpec(1024, 512, 512, 0, 8, channels_by_resolution(1024, channel_base=32768, channel_max=512))
    blocks = automatic_blocks(spec)
    assert blocks == tuple(f"b{2**i}.conv1" for i in range(2, 8))
    assert num_doublings(spec, blocks) == 2 and num_doublings(spec, ("b512.conv1",)) == 0


def test_settings_that_do_not_go_together(sampler: Sampler, shots: Shots) -> None:
    with pytest.raises(
        ValidationError, match="normalisation: style, but a cnn head takes features as they are; set none"
    ):
        make_config(head={"type": "cnn"}, normalisation="style")
    with pytest.raises(ConfigError, match=r"labeler\.layers: b8\.conv0, b8\.conv1 for a decoder, which takes one"):
        fit_few_shot(make_config(head={"type": "decoder"}, layers=["b8.conv0", "b8.conv1"]), sampler, shots)
    assert isinstance(fit_few_shot(make_config(**HEADS["mlp"]), sampler, shots).head, NetworkHead)
