"""The linear read-out against ordinary ridge regression on upsampled features."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.generator.networks import GeneratorSpec, channels_by_resolution
from labelmill.pipeline.labelers.style_mixing.readout import ReadoutFit, readout_layers, readout_shapes, readout_size


def make_spec(resolution: int = 32, const_size: tuple[int, int] = (4, 4)) -> GeneratorSpec:
    return GeneratorSpec(
        resolution=resolution,
        z_dim=8,
        w_dim=8,
        c_dim=0,
        mapping_layers=2,
        channels=channels_by_resolution(resolution, channel_base=128, channel_max=6),
        const_size=const_size,
    )


def random_features(spec: GeneratorSpec, count: int) -> dict[str, Tensor]:
    shapes = readout_shapes(spec, 1)
    return {
        name: torch.randn(count, shapes[name][0], *spec.size_at(int(name[1:].split(".")[0])))
        for name in readout_layers(spec)
    }


def hypercolumns(features: dict[str, Tensor], background_HW: Tensor) -> Tensor:
    """All features of each pixel, upsampled, its place and 1 [B, P, D]."""
    size = background_HW.shape
    up = [functional.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in features.values()]
    place = background_HW.expand(len(up[0]), 1, -1, -1)
    return torch.cat([*up, place, torch.ones_like(place)], dim=1).flatten(2).transpose(1, 2)


def test_layers_and_resolutions() -> None:
    assert readout_layers(make_spec(8)) == ("b8.conv0", "b8.conv1")
    assert readout_layers(make_spec(32)) == ("b16.conv0", "b16.conv1", "b32.conv0", "b32.conv1")
    layers = readout_layers(make_spec(1024))
    assert (layers[0], layers[-1], len(layers)) == ("b16.conv0", "b256.conv1", 10)
    assert [readout_size(make_spec(size)) for size in (8, 256, 1024)] == [(8, 8), (256, 256), (256, 256)]
    assert readout_size(make_spec(1024, (4, 2))) == (256, 128)
    assert readout_shapes(make_spec(32), 3) == {
        "b16.conv0": (6, 5), "b16.conv1": (6, 5), "b32.conv0": (4, 5), "b32.conv1": (4, 5), "place": (5,), "bias": (5,),
    }  # fmt: skip


def taught(features: dict[str, Tensor], parts_BKHW: Tensor, background_HW: Tensor) -> ReadoutFit:
    fit = ReadoutFit(make_spec(), parts_BKHW.shape[1], background_HW)
    for index, parts_KHW in enumerate(parts_BKHW):
        fit.add({name: tensor[index] for name, tensor in features.items()}, parts_KHW)
    return fit


@pytest.mark.parametrize("const_size", [(4, 4), (4, 2), (2, 4)])
def test_it_is_the_ridge_regression_of_all_images_and_of_each_half(const_size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    spec = make_spec(const_size=const_size)
    features, background_HW = random_features(spec, 6), torch.rand(spec.image_size)
    parts_BKHW = (torch.rand(6, 2, *spec.image_size) < 0.3).float()
    maps_BKHW, halves_B2HW = taught(features, parts_BKHW, background_HW).solve()(features)
    x_BPD = hypercolumns(features, background_HW).double().numpy()

    def regression(images: slice, targets_BPK: np.ndarray) -> np.ndarray:
        x, y = (
            x_BPD[images, :, :-1].reshape(-1, x_BPD.shape[2] - 1),
            targets_BPK[images].reshape(-1, targets_BPK.shape[2]),
        )
        centred = x - x.mean(axis=0)
        # Ridge regression as least squares with rows for the penalty: a thousandth of each feature's variance.
        rows = np.sqrt(1e-3 * len(x)) * np.diag(x.std(axis=0))
        weights, *_ = np.linalg.lstsq(
            np.vstack([centred, rows]), np.vstack([y - y.mean(axis=0), np.zeros((x.shape[1], y.shape[1]))]), rcond=None
        )
        return (x_BPD[..., :-1] - x.mean(axis=0)) @ weights + y.mean(axis=0)

    y_BPK = parts_BKHW.flatten(2).transpose(1, 2).double().numpy()
    expected = regression(slice(None), y_BPK)
    np.testing.assert_allclose(maps_BKHW.flatten(2).transpose(1, 2).numpy(), expected, atol=1e-4)
    for half in range(2):
        expected = regression(slice(half, None, 2), y_BPK.sum(axis=2, keepdims=True))[..., 0]
        np.testing.assert_allclose(halves_B2HW[:, half].flatten(1).numpy(), expected, atol=1e-4)


def test_masks_that_are_linear_in_features_are_read_from_unseen_images() -> None:
    torch.manual_seed(1)
    features, background_HW = random_features(make_spec(), 12), torch.rand(32, 32)
    wanted_D = torch.randn(hypercolumns(features, background_HW).shape[2])
    masks_BHW = (hypercolumns(features, background_HW) @ wanted_D > 0).float().view(12, 32, 32)
    seen, unseen = ({name: tensor[part] for name, tensor in features.items()} for part in (slice(8), slice(8, 12)))
    readout = taught(seen, masks_BHW[:8, None], background_HW).solve()
    found_BKHW, _ = readout(unseen)
    assert ((found_BKHW[:, 0] > 0.5) == masks_BHW[8:].bool()).float().mean() > 0.97


@pytest.mark.parametrize("const_size", [(4, 4), (4, 2), (2, 4)])
def test_of_large_images_some_pixels_are_read_where_resizing_would_put_them(const_size: tuple[int, int]) -> None:
    torch.manual_seed(2)
    spec = make_spec(128, const_size)
    features, background_HW = random_features(spec, 2), torch.zeros(spec.image_size)
    for name in features:
        features[name] = features[name] * (name == "b32.conv1")
    # A map that is linear in upsampled features is learned without error only if pixels are read at their places.
    target_BHW = functional.interpolate(features["b32.conv1"], size=spec.image_size, mode="bilinear")[:, 0]
    fit = ReadoutFit(spec, 1, background_HW)
    for index in range(2):
        fit.add({name: tensor[index] for name, tensor in features.items()}, target_BHW[[index]])
    found_BKHW, _ = fit.solve()(features)
    assert (found_BKHW[:, 0] - target_BHW).abs().max() < 0.01 * target_BHW.abs().max()


def test_features_without_meaning_give_the_share_of_foreground() -> None:
    torch.manual_seed(3)
    features, background_HW = random_features(make_spec(), 4), torch.full((32, 32), 0.3)
    features = {name: torch.zeros_like(tensor) for name, tensor in features.items()}
    readout = taught(features, (torch.rand(4, 1, 32, 32) < 0.3).float(), background_HW).solve()
    maps, _ = readout(features)
    torch.testing.assert_close(maps, torch.full_like(maps, maps.mean().item()))
    assert 0.25 < maps.mean() < 0.35


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_images_map_does_not_depend_on_its_neighbours(memory_format: torch.memory_format) -> None:
    torch.manual_seed(4)
    features = random_features(make_spec(), 4)
    readout = taught(features, (torch.rand(4, 1, 32, 32) < 0.3).float(), torch.rand(32, 32)).solve()
    features = {name: tensor.to(memory_format=memory_format) for name, tensor in features.items()}
    turned = {name: tensor[[2, 3, 0, 1]].to(memory_format=memory_format) for name, tensor in features.items()}
    assert torch.equal(readout(features)[0][2], readout(turned)[0][0])
