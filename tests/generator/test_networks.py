"""The generator against formulas and independent computations, and partial against full synthesis."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional

from labelmill.pipeline.generator import layers
from labelmill.pipeline.generator.discriminator import Discriminator, minibatch_deviation
from labelmill.pipeline.generator.layers import (
    FullyConnected,
    SynthesisLayer,
    binomial_filter,
    convolve,
    fir,
    modulated_conv,
    upsample_2x,
)
from labelmill.pipeline.generator.networks import (
    Architecture,
    Generator,
    GeneratorSpec,
    Mapping,
    SynthesisError,
    channels_by_resolution,
    conv_name,
    row_resolution,
)
from labelmill.pipeline.generator.training.losses import path_lengths, r1_penalty

ALL_ARCHITECTURES: tuple[Architecture, ...] = ("skip", "orig", "resnet")


def build(
    resolution: int = 32,
    *,
    architecture: Architecture = "skip",
    c_dim: int = 0,
    conv_clamp: float | None = None,
    const_size: tuple[int, int] = (4, 4),
    img_channels: int = 3,
) -> Generator:
    """A random generator whose noise strengths, biases and average are not zero."""
    torch.manual_seed(1)
    spec = GeneratorSpec(
        resolution=resolution,
        z_dim=12,
        w_dim=16,
        c_dim=c_dim,
        mapping_layers=2,
        channels=channels_by_resolution(resolution, channel_base=256, channel_max=16),
        architecture=architecture,
        conv_clamp=conv_clamp,
        const_size=const_size,
        img_channels=img_channels,
    )
    generator = Generator(spec).eval().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise_strength", ".bias")) and "affine" not in name:
            parameter.normal_(std=0.3)
    generator.mapping.w_avg.normal_()
    return generator


def draw_ws(generator: Generator, batch: int, seed: int = 0) -> torch.Tensor:
    """ws whose rows all differ."""
    spec = generator.spec
    return torch.randn(batch, spec.num_ws, spec.w_dim, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Agreement relative to the largest magnitude."""
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


def zero_stuffed(x: np.ndarray) -> np.ndarray:
    """Zeros between and after the pixels of the last two axes."""
    wide = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    wide[:, :, ::2, ::2] = x
    return wide


def correlate(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Valid correlation of each channel by explicit loops."""
    height, width = x.shape[2] - kernel.shape[0] + 1, x.shape[3] - kernel.shape[1] + 1
    out = np.zeros((*x.shape[:2], height, width))
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            out += kernel[row, column] * x[:, :, row : row + height, column : column + width]
    return out


class TestArithmetic:
    def test_the_filter_is_binomial_and_sums_to_one(self) -> None:
        row = np.array([1, 3, 3, 1]) / 8
        np.testing.assert_allclose(binomial_filter().numpy(), np.outer(row, row), atol=1e-7)

    def test_fir_equals_an_explicit_correlation(self) -> None:
        # An asymmetric filter shows the flip: filtering convolves.
        taps = torch.outer(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.1, 0.2, 0.3]))
        x = torch.randn(2, 3, 7, 9)
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
        expected = 4 * correlate(padded, taps.numpy()[::-1, ::-1])
        np.testing.assert_allclose(fir(x, taps, padding=2, gain=4.0).numpy(), expected, atol=1e-5)

    def test_upsampling_is_zero_stuffing_then_filtering(self) -> None:
        taps = torch.outer(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.1, 0.2, 0.3]))
        x = torch.randn(2, 3, 5, 4)
        padded = np.pad(zero_stuffed(x.numpy()), ((0, 0), (0, 0), (2, 1), (2, 1)))
        expected = 4 * correlate(padded, taps.numpy()[::-1, ::-1])
        np.testing.assert_allclose(upsample_2x(x, taps).numpy(), expected, atol=1e-5)

    def test_upsampling_keeps_a_constant_away_from_the_border(self) -> None:
        out = upsample_2x(torch.full((1, 1, 8, 8), 3.0), binomial_filter())
        assert_close(out[:, :, 2:-2, 2:-2], torch.full((1, 1, 12, 12), 3.0), 1e-6)

    @pytest.mark.parametrize("kernel_size", [1, 3])
    def test_upsampling_convolution(self, kernel_size: int) -> None:
        """Stride-2 transposed convolution, then the filter: on zero-stuffed input that is one convolution each."""
        x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, kernel_size, kernel_size)
        stuffed = torch.from_numpy(zero_stuffed(x.numpy())).float()
        edge = kernel_size - 1
        # A transposed convolution correlates with the flipped kernel.
        wide = functional.conv2d(functional.pad(stuffed, (edge, edge, edge, edge)), weight.flip(2, 3))
        if kernel_size == 3:
            wide = wide[:, :, :-1, :-1]
            padded = functional.pad(wide, (1, 1, 1, 1))
        else:
            padded = functional.pad(wide, (2, 1, 2, 1))
        expected = 4 * correlate(padded.numpy(), binomial_filter().numpy())
        actual = convolve(x, weight, binomial_filter(), up=True)
        np.testing.assert_allclose(actual.numpy(), expected, atol=1e-4)

    @pytest.mark.parametrize(("kernel_size", "padding"), [(1, 1), (3, 2)])
    def test_downsampling_convolution(self, kernel_size: int, padding: int) -> None:
        x, weight = torch.randn(1, 2, 8, 8), torch.randn(3, 2, kernel_size, kernel_size)
        padded = np.pad(x.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        filtered = torch.from_numpy(correlate(padded, binomial_filter().numpy())).float()
        expected = functional.conv2d(filtered, weight)[:, :, ::2, ::2]
        actual = convolve(x, weight, binomial_filter(), down=True)
        assert actual.shape == (1, 3, 4, 4)
        assert_close(actual, expected)

    def test_equalised_linear_layer(self) -> None:
        layer = FullyConnected(6, 4, leaky=True, rate_multiplier=0.01, bias_start=0.5)
        x = torch.randn(3, 6)
        linear = x @ (layer.weight.detach() * 0.01 / math.sqrt(6)).T + 0.01 * layer.bias.detach()
        expected = torch.where(linear > 0, linear, 0.2 * linear) * math.sqrt(2)
        assert_close(layer(x).detach(), expected)

    def test_mapping_normalises_latent_and_class_apart(self) -> None:
        mapping = Mapping(6, 3, 8, num_layers=1)
        z, classes = torch.randn(2, 6) * 7, torch.eye(3)[:2]
        embedded = mapping.embed(classes)
        parts = [part / part.square().mean(dim=1, keepdim=True).sqrt() for part in (z, embedded)]
        layer = mapping.get_submodule("fc0")
        assert_close(mapping(z, classes).detach(), layer(torch.cat(parts, dim=1)).detach())

    @pytest.mark.parametrize("up", [False, True])
    def test_modulated_convolution_equals_one_convolution_a_sample(self, up: bool) -> None:
        """Weights scaled by style, then normalised per output channel (Karras et al. 2020, equations 1 and 3)."""
        x, weight, styles = torch.randn(3, 4, 6, 6), torch.randn(5, 4, 3, 3), torch.randn(3, 4)
        y, scale = modulated_conv(x, weight, styles, binomial_filter(), up=up)
        for index in range(3):
            modulated = weight * styles[index][None, :, None, None]
            norm = modulated.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-8).sqrt()
            expected = convolve(x[index : index + 1], modulated / norm, binomial_filter(), up=up)
            assert_close((y * scale[:, :, None, None])[index : index + 1], expected)

    def test_layer_order_is_demodulation_noise_bias_leaky_relu_clamp(self) -> None:
        torch.manual_seed(0)
        layer = SynthesisLayer(4, 5, w_dim=6, size=(8, 8), conv_clamp=0.7).requires_grad_(False)
        layer.bias.normal_()
        layer.noise_strength.fill_(0.8)
        x, w, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 6), torch.randn(2, 1, 8, 8)
        y, scale = modulated_conv(x, layer.weight, layer.affine(w), layer.resample_filter, up=False)
        y = y * scale[:, :, None, None] + 0.8 * noise + layer.bias[None, :, None, None]
        expected = (torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)).clamp(-0.7, 0.7)
        assert_close(layer(x, w, noise), expected)

    def test_bfloat16_stays_close(self) -> None:
        generator = build()
        ws = draw_ws(generator, 2)
        expected = generator.synthesize(ws).images_BCHW
        generator.compute_dtype = torch.bfloat16
        actual = generator.synthesize(ws).images_BCHW
        assert actual.dtype == torch.float32
        assert_close(actual, expected, 0.05)


class TestSpec:
    @pytest.mark.parametrize(("resolution", "num_ws"), [(8, 4), (32, 8), (256, 14), (512, 16), (1024, 18)])
    def test_num_ws(self, resolution: int, num_ws: int) -> None:
        channels = channels_by_resolution(resolution, channel_base=16384, channel_max=512)
        spec = GeneratorSpec(resolution, 512, 512, 0, 8, channels)
        assert spec.num_ws == num_ws
        assert len(spec.conv_names) == num_ws - 1

    def test_rows_name_their_convolutions(self) -> None:
        names = [conv_name(row) for row in range(5)]
        assert names == ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"]

    def test_channels(self) -> None:
        channels = channels_by_resolution(128, channel_base=4096, channel_max=128)
        assert channels == ((4, 128), (8, 128), (16, 128), (32, 128), (64, 64), (128, 32))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"resolution": 24}, "power of two"),
            ({"channels": ((4, 8), (8, 8))}, "channels must list"),
            ({"z_dim": 0}, "z_dim"),
            ({"architecture": "other"}, "architecture"),
            ({"c_dim": -1}, "c_dim"),
        ],
    )
    def test_impossible_descriptions_are_refused(self, change: dict[str, object], message: str) -> None:
        fields: dict[str, object] = {
            "resolution": 16,
            "z_dim": 8,
            "w_dim": 8,
            "c_dim": 0,
            "mapping_layers": 1,
            "channels": ((4, 8), (8, 8), (16, 8)),
        }
        with pytest.raises(SynthesisError, match=message):
            GeneratorSpec(**{**fields, **change})  # type: ignore[arg-type]


class TestMap:
    def test_ws_repeat_one_w(self) -> None:
        generator = build()
        ws = generator.map(torch.randn(3, 12))
        assert ws.shape == (3, 8, 16)
        assert bool((ws == ws[:, :1]).all())

    def test_classes_matter_and_are_required(self) -> None:
        generator = build(c_dim=3)
        z = torch.randn(1, 12)
        first, second = (generator.map(z, torch.eye(3)[index : index + 1]) for index in (0, 1))
        assert float((first - second).abs().max()) > 1e-3
        with pytest.raises(SynthesisError, match="3 classes"):
            generator.map(z)

    def test_wrong_latents_are_refused(self) -> None:
        with pytest.raises(SynthesisError, match=r"z must be \[batch, 12\]"):
            build().map(torch.randn(2, 13))

    def test_truncation(self) -> None:
        generator = build()
        ws, mean = draw_ws(generator, 2), generator.mapping.w_avg
        assert_close(generator.truncate(ws, 0.7), mean + 0.7 * (ws - mean))
        cut = generator.truncate(ws, 0.5, cutoff=3)
        assert_close(cut[:, :3], mean + 0.5 * (ws[:, :3] - mean))
        assert torch.equal(cut[:, 3:], ws[:, 3:])
        assert_close(generator.truncate(ws, 0.0), mean.expand_as(ws))


class TestSynthesis:
    def test_each_row_feeds_its_layers_only(self) -> None:
        """w[0] b4.conv1; an odd row the toRGB of a block and the next conv0; the last row RGB alone."""
        generator = build()
        names = generator.spec.conv_names
        ws = draw_ws(generator, 1)
        base = generator.synthesize(ws, taps=names)
        for row in range(generator.spec.num_ws):
            changed = ws.clone()
            changed[:, row] += 1.0
            other = generator.synthesize(changed, taps=names)
            for index, name in enumerate(names):
                same = torch.equal(base.features[name], other.features[name])
                assert same == (index < row), (row, name)
            assert not torch.equal(base.images_BCHW, other.images_BCHW)

    @pytest.mark.parametrize("resolution", [4, 8, 16, 32])
    @pytest.mark.parametrize(("const_size", "img_channels"), [((4, 4), 3), ((4, 2), 3), ((3, 5), 1)])
    def test_lower_resolution_is_the_truncated_sum_of_rgb(
        self, resolution: int, const_size: tuple[int, int], img_channels: int
    ) -> None:
        generator = build(const_size=const_size, img_channels=img_channels)
        ws = draw_ws(generator, 2)
        stopped = generator.synthesize(ws, resolution=resolution).images_BCHW
        features = generator.synthesize(ws, taps=generator.spec.conv_names).features
        images = torch.zeros(2, 3, 2, 2)
        for size in (4, 8, 16, 32):
            if size > resolution:
                break
            block = generator.synthesis.get_submodule(f"b{size}")
            row = next(row for row in range(1, 8, 2) if row_resolution(row) == 2 * size)
            rgb = block.get_submodule("torgb")(features[f"b{size}.conv1"], ws[:, row])
            images = rgb if size == 4 else upsample_2x(images, binomial_filter()) + rgb
        height, width = (side * resolution // 4 for side in const_size)
        assert stopped.shape == (2, img_channels, height, width)
        assert_close(stopped, images)

    def test_no_lower_resolution_without_skips(self) -> None:
        generator = build(architecture="orig")
        with pytest.raises(SynthesisError, match="no RGB below"):
            generator.synthesize(draw_ws(generator, 1), resolution=16)

    @pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
    @pytest.mark.parametrize("const_size", [(4, 4), (4, 2)])
    def test_a_trunk_resumes_to_the_full_pass_at_every_row(
        self, architecture: Architecture, const_size: tuple[int, int]
    ) -> None:
        generator = build(architecture=architecture, const_size=const_size)
        names = generator.spec.conv_names
        base, donor = draw_ws(generator, 2, 0), draw_ws(generator, 2, 1)
        for row in range(1, generator.spec.num_ws):
            mixed = torch.cat([base[:, :row], donor[:, row:]], dim=1)
            expected = generator.synthesize(mixed, taps=names)
            trunk = generator.trunk(base, row, taps=names)
            actual = generator.synthesize(donor, trunk=trunk, taps=names)
            assert torch.equal(actual.images_BCHW, expected.images_BCHW), row
            assert all(torch.equal(actual.features[name], expected.features[name]) for name in names)

    def test_a_trunk_repeats_and_indexes(self) -> None:
        generator = build()
        base, donors = draw_ws(generator, 2, 0), draw_ws(generator, 3, 1)
        trunk = generator.trunk(base, 3)
        images = generator.synthesize(donors.repeat(2, 1, 1), trunk=trunk.repeat_interleave(3)).images_BCHW
        for index in range(6):
            mixed = torch.cat([base[index // 3, :3], donors[index % 3, 3:]])[None]
            assert_close(images[index : index + 1], generator.synthesize(mixed).images_BCHW)
        second = generator.synthesize(donors[:1], trunk=trunk[1:]).images_BCHW
        assert_close(second, images[3:4])

    def test_a_trunk_resumes_at_lower_resolution(self) -> None:
        generator = build()
        base, donor = draw_ws(generator, 1, 0), draw_ws(generator, 1, 1)
        mixed = torch.cat([base[:, :3], donor[:, 3:]], dim=1)
        actual = generator.synthesize(donor, trunk=generator.trunk(base, 3), resolution=16).images_BCHW
        assert torch.equal(actual, generator.synthesize(mixed, resolution=16).images_BCHW)

    def test_taps_are_native_and_complete(self) -> None:
        generator = build()
        taps = ("b32.conv1", "b8.conv0")
        features = generator.synthesize(draw_ws(generator, 2), taps=taps).features
        assert {name: tuple(tensor.shape) for name, tensor in features.items()} == {
            "b32.conv1": (2, 8, 32, 32),
            "b8.conv0": (2, 16, 8, 8),
        }

    def test_later_layers_do_not_change_a_tap(self) -> None:
        generator = build()
        ws = draw_ws(generator, 1)
        kept = generator.synthesize(ws, taps=["b8.conv1"]).features["b8.conv1"]
        stopped = generator.synthesize(ws, taps=["b8.conv1"], resolution=8).features["b8.conv1"]
        assert torch.equal(kept, stopped)

    def test_noise_modes(self) -> None:
        generator = build()
        ws, names = draw_ws(generator, 2), generator.spec.conv_names
        buffers = {
            name: generator.synthesis.get_submodule(name).get_buffer("noise_const")[None, None] for name in names
        }
        const = generator.synthesize(ws, "const").images_BCHW
        assert torch.equal(generator.synthesize(ws, buffers).images_BCHW, const)
        assert torch.equal(generator.synthesize(ws, list(buffers.values())).images_BCHW, const)
        per_sample = [noise.expand(2, -1, -1, -1) for noise in buffers.values()]
        assert_close(generator.synthesize(ws, per_sample).images_BCHW, const)
        none = generator.synthesize(ws, "none").images_BCHW
        assert torch.equal(generator.synthesize(ws, {}).images_BCHW, none)
        assert not torch.equal(none, const)

    def test_contiguous_weights_agree_with_channels_last(self) -> None:
        generator = build()
        ws = draw_ws(generator, 2)
        expected = generator.synthesize(ws).images_BCHW
        for parameter in generator.parameters():
            parameter.data = parameter.data.contiguous()
        assert_close(generator.synthesize(ws).images_BCHW, expected)

    def test_the_clamp_limits_activations_and_rgb(self) -> None:
        generator = build(conv_clamp=0.5)
        result = generator.synthesize(3 * draw_ws(generator, 2), taps=generator.spec.conv_names)
        assert all(float(tensor.abs().max()) <= 0.5 for tensor in result.features.values())
        assert float(generator.synthesize(draw_ws(generator, 2), resolution=4).images_BCHW.abs().max()) <= 0.5

    def test_impossible_requests_are_refused(self) -> None:
        generator = build()
        ws = draw_ws(generator, 2)
        with pytest.raises(SynthesisError, match=r"stop at \[4, 8, 16, 32\]"):
            generator.synthesize(ws, resolution=64)
        with pytest.raises(SynthesisError, match=r"no convolution 'b64\.conv1'"):
            generator.synthesize(ws, taps=["b64.conv1"])
        with pytest.raises(SynthesisError, match="ws must be"):
            generator.synthesize(ws[:, :5])
        with pytest.raises(SynthesisError, match="row 1 to 7"):
            generator.trunk(ws, 8)
        with pytest.raises(SynthesisError, match="holds 2 samples but ws 1"):
            generator.synthesize(ws[:1], trunk=generator.trunk(ws, 2))
        with pytest.raises(SynthesisError, match="inside the trunk"):
            generator.synthesize(ws, trunk=generator.trunk(ws, 4), taps=["b8.conv0"])
        with pytest.raises(SynthesisError, match="noise has 2 tensors"):
            generator.synthesize(ws, [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8)])
        with pytest.raises(SynthesisError, match="'const', 'none'"):
            generator.synthesize(ws, "random")  # type: ignore[arg-type]


def directional_slope(
    module: torch.nn.Module, penalty: torch.Tensor, recompute: Callable[[], torch.Tensor]
) -> tuple[float, float]:
    """Norm of a penalty's gradient in the weights, and the same slope by central differences along it."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    norm = math.sqrt(sum(float(gradient.square().sum()) for _, gradient in pairs))
    step, values = 1e-2, []
    for sign in (1.0, -2.0):
        for parameter, gradient in pairs:
            parameter.data.add_(gradient, alpha=sign * step / norm)
        values.append(float(recompute().detach()))
    return norm, (values[0] - values[1]) / (2 * step)


@pytest.fixture
def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kinks: across one the penalties jump, which differences see and derivatives rightly do not."""
    monkeypatch.setattr(layers, "LEAKY_SLOPE", 1.0)


@pytest.mark.usefixtures("smooth")
class TestSecondDerivatives:
    def test_path_length_penalty(self) -> None:
        generator = build(16).requires_grad_(True)
        start, directions = draw_ws(generator, 2), torch.randn(2, 3, 16, 16)

        def penalty() -> torch.Tensor:
            ws = start.clone().requires_grad_(True)
            return path_lengths(generator.synthesize(ws).images_BCHW, ws, directions).square().mean()

        norm, slope = directional_slope(generator, penalty(), penalty)
        assert norm > 0
        assert slope == pytest.approx(norm, rel=0.02)

    def test_r1_penalty(self) -> None:
        torch.manual_seed(0)
        discriminator = Discriminator(channels_by_resolution(16, channel_base=128, channel_max=8))
        images = torch.randn(4, 3, 16, 16)
        norm, slope = directional_slope(
            discriminator, r1_penalty(discriminator, images), lambda: r1_penalty(discriminator, images)
        )
        assert norm > 0
        assert slope == pytest.approx(norm, rel=0.02)


class TestDiscriminator:
    def test_names_and_shapes(self) -> None:
        channels = channels_by_resolution(16, channel_base=128, channel_max=8)
        discriminator = Discriminator(channels, c_dim=3)
        names = set(discriminator.state_dict())
        assert {"b16.fromrgb.weight", "b16.conv0.bias", "b8.skip.weight", "b4.conv.weight", "b4.fc.weight"} <= names
        assert {"b4.out.bias", "mapping.embed.weight", "mapping.fc7.bias", "b8.conv1.resample_filter"} <= names
        assert "b8.fromrgb.weight" not in names
        logits = discriminator(torch.randn(4, 3, 16, 16), torch.eye(3)[[0, 1, 2, 0]])
        assert logits.shape == (4, 1)

    def test_minibatch_deviation_of_identical_images_is_nothing(self) -> None:
        x = torch.randn(1, 3, 4, 4).repeat(4, 1, 1, 1)
        assert float(minibatch_deviation(x, 4)[:, 3].abs().max()) < 1e-3

    def test_minibatch_deviation(self) -> None:
        x = torch.randn(6, 3, 4, 4)
        added = minibatch_deviation(x, 4)[:, 3]  # 4 does not divide 6: groups of 3, strided
        for group in range(2):
            expected = x[group::2].std(dim=0, unbiased=False).mean()
            assert_close(added[group::2], expected.expand(3, 4, 4), 1e-4)

    def test_the_wrong_size_is_refused(self) -> None:
        discriminator = Discriminator(channels_by_resolution(16, channel_base=128, channel_max=8))
        with pytest.raises(ValueError, match="16 px"):
            discriminator(torch.zeros(1, 3, 8, 8))
