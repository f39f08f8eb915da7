"""The avatars domain: exact masks, stated rates, same bytes everywhere, colours that give nothing away."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from labelmill.pipeline.avatars import avatars
from labelmill.pipeline.avatars import figure as avatar_svg
from labelmill.pipeline.avatars.figure import CLASS_INDEX, CLASSES, COLOUR_NAMES, HATS

SEEDS = range(200)
RESOLUTION = 64


@functools.cache
def portrait(seed: int) -> avatars.Avatar:
    return avatars.render(seed, RESOLUTION)


def digest(seed: int, resolution: int) -> str:
    avatar = avatars.render(seed, resolution)
    return hashlib.sha256(avatar.image_HWC.tobytes() + avatar.mask_HW.tobytes()).hexdigest()


def boundaries(mask_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another class."""
    edges_HW = np.zeros(mask_HW.shape, bool)
    edges_HW[:, :-1] |= mask_HW[:, :-1] != mask_HW[:, 1:]
    edges_HW[:-1] |= mask_HW[:-1] != mask_HW[1:]
    return edges_HW


def interior(part_HW: NDArray[np.bool_], margin: int = 2) -> NDArray[np.bool_]:
    return cv2.erode(part_HW.astype(np.uint8), np.ones((2 * margin + 1,) * 2, np.uint8), borderValue=1) > 0


# The record


def test_shapes_and_types_of_a_portrait() -> None:
    avatar = portrait(0)
    assert avatar.image_HWC.shape == (RESOLUTION, RESOLUTION, 3) and avatar.image_HWC.dtype == np.uint8
    assert avatar.mask_HW.shape == (RESOLUTION, RESOLUTION) and avatar.mask_HW.dtype == np.uint8
    assert CLASSES[0] == "background" and len(set(CLASSES)) == 11 == len(CLASS_INDEX)


@pytest.mark.parametrize(("seed", "resolution", "named"), [(-1, 64, "seed"), (0, 15, "resolution")])
def test_bad_input_is_refused_by_name(seed: int, resolution: int, named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: .*got {seed if named == 'seed' else resolution}"):
        avatars.render(seed, resolution)
    with pytest.raises(ValueError, match=f"^{named}: "):
        avatars.recolourings(seed, resolution, 2)


def test_no_variants_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^variants: .* got 0"):
        avatars.recolourings(0, 64, 0)


@pytest.mark.parametrize("package", ["dicebear", "dicebear_styles", "resvg_py"])
def test_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'labelmill\[benchmark\]'"):
        avatar_svg.load_styles.__wrapped__()


# Determinism


def test_same_bytes_in_another_process() -> None:
    root = str(Path(avatars.__file__).resolve().parents[2])
    folder = str(Path(__file__).parent)
    code = "from test_avatars import digest; print(digest(7, 64), digest(8, 100))"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join((root, folder))}
    command = [sys.executable, "-c", code]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [digest(7, 64), digest(8, 100)]


def test_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(1)
    before = digest(3, 64)
    np.random.seed(2)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    assert digest(3, 64) == before
    assert (np.random.get_state(legacy=False)["state"]["key"] == state).all()


def test_seeds_differ() -> None:
    assert len({portrait(seed).image_HWC.tobytes() for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("resolution", [16, 33, 128])
def test_one_seed_is_one_picture_at_every_size(resolution: int) -> None:
    for seed in range(5):
        large, small = avatars.render(seed, 256), avatars.render(seed, resolution)
        shrunk_HWC = cv2.resize(large.image_HWC, (resolution,) * 2, interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk_HWC.astype(float) - small.image_HWC).mean() < 10
        nearest = ((np.arange(resolution) + 0.5) * 256 / resolution).astype(int)
        assert (large.mask_HW[np.ix_(nearest, nearest)] == small.mask_HW).mean() > 0.97


# Masks


def check_palette(seeds: range, resolution: int) -> None:
    """Off-palette pixels are refused where a mask is rasterised; class indices are checked here."""
    for seed in seeds:
        mask_HW = avatars.rasterise_classes(avatars.draw_figure(seed), resolution)
        assert mask_HW.max() < len(CLASSES), f"seed {seed}"


def test_masks_hold_only_classes() -> None:
    check_palette(SEEDS, 64)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_masks_of_a_thousand_portraits_hold_only_classes(resolution: int) -> None:
    check_palette(range(1000), resolution)


def test_a_blended_mask_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = avatars.draw_figure(1)
    smooth = avatar_svg._draw(figure, painted=False).replace("crispEdges", "auto")
    monkeypatch.setattr(avatar_svg, "_draw", lambda figure, painted: smooth)
    with pytest.raises(AssertionError, match="blended pixels"):
        avatar_svg.rasterise_classes(figure, 64)


@pytest.mark.parametrize("seed", range(30))
def test_mask_matches_what_is_painted(seed: int) -> None:
    """Paint the parts red, green and blue: away from edges, the colour seen tells the class in the mask."""
    red, green, blue = "#c02020", "#20c020", "#2020c0"
    colours = dict.fromkeys(COLOUR_NAMES, "#808080") | {"skin": red, "clothes": blue, "clothesInner": blue}
    colours |= dict.fromkeys(("hair", "hat", "hatTrim", "facialHair"), green)
    figure = avatars.draw_figure(seed)
    seen_HWC = avatar_svg.rasterise_figure(figure, colours, 256)
    mask_HW = avatar_svg.rasterise_classes(figure, 256)
    strongest_HW = seen_HWC[:, :, :3].argmax(axis=2)
    for name, channel in {"skin": 0, "hair": 1, "hat": 1, "clothes": 2, "beard": 1}.items():
        inside_HW = interior(mask_HW == CLASS_INDEX[name])
        # White glints, prints and collars lean to no channel; argmax then calls them red.
        grey_HW = np.ptp(seen_HWC[:, :, :3].astype(int), axis=2) < 40
        if inside_HW.any():
            assert (strongest_HW[inside_HW & ~grey_HW] == channel).mean() > 0.995, name
            assert grey_HW[inside_HW].mean() < 0.25, name
    # Where two smooth outlines meet, some of what lies behind both comes through.
    assert (seen_HWC[:, :, 3][interior(mask_HW != 0)] >= 128).all()
    assert (seen_HWC[:, :, 3][interior(mask_HW == 0)] > 0).mean() < 0.01  # shadows of hair and lenses


def test_image_edges_lie_on_mask_boundaries() -> None:
    aligned, shifted = 0.0, dict.fromkeys(((0, 1), (0, -1), (1, 0), (-1, 0), (2, 2), (-2, 2)), 0.0)
    for seed in range(60):
        avatar = avatars.render(seed, 128)
        image_HWC = avatar.image_HWC.astype(np.float32)
        strength_HW = np.zeros(avatar.mask_HW.shape, np.float32)
        strength_HW[:, :-1] += np.abs(np.diff(image_HWC, axis=1)).sum(axis=2)
        strength_HW[:-1] += np.abs(np.diff(image_HWC, axis=0)).sum(axis=2)
        edges_HW = boundaries(avatar.mask_HW)
        aligned += strength_HW[edges_HW].mean()
        for move in shifted:
            shifted[move] += strength_HW[np.roll(edges_HW, move, axis=(0, 1))].mean()
    for move, strength in shifted.items():
        assert aligned > (1.1 if abs(move[0]) + abs(move[1]) == 1 else 1.5) * strength, move


def test_attributes_say_what_the_mask_shows() -> None:
    for seed in SEEDS:
        attributes, mask_HW = portrait(seed).attributes, portrait(seed).mask_HW
        present = {name: bool((mask_HW == index).any()) for name, index in CLASS_INDEX.items()}
        assert present["hat"] == attributes.has_hat == (attributes.top in HATS)
        assert present["glasses"] == attributes.has_glasses == (attributes.glasses is not None)
        assert present["beard"] == attributes.has_beard == (attributes.facial_hair is not None)
        assert present["hair"] != attributes.has_hat
        always = ("background", "skin", "clothes", "mouth", "nose")
        assert all(present[name] for name in always), f"seed {seed}"


def test_shares_of_the_classes() -> None:
    masks_NHW = np.stack([portrait(seed).mask_HW for seed in SEEDS])
    counts = np.bincount(masks_NHW.ravel(), minlength=len(CLASSES))
    shares = dict(zip(CLASSES, counts / counts.sum(), strict=True))
    assert 0.45 < shares["background"] < 0.70
    for name, least, most in (("skin", 0.1, 0.25), ("hair", 0.05, 0.2), ("clothes", 0.08, 0.2)):
        assert least < shares[name] < most, f"{name} {shares[name]:.3f}"
    for name in ("eyes", "brows", "nose", "mouth", "glasses", "beard", "hat"):
        assert 0.0002 < shares[name] < 0.04, f"{name} {shares[name]:.4f}"


def test_the_figure_fills_the_bottom_and_leaves_the_rim() -> None:
    rim = []
    for seed in SEEDS:
        mask_HW = portrait(seed).mask_HW
        assert mask_HW[-1, RESOLUTION // 2] != 0
        columns = (mask_HW == CLASS_INDEX["clothes"]).any(axis=0)
        assert (mask_HW[-1, columns] != 0).all(), f"seed {seed}: the drawing's lower end shows"
        rim.append(np.concatenate([mask_HW[0], mask_HW[:40, 0], mask_HW[:40, -1]]).max() == 0)
    assert np.mean(rim) > 0.8


# Rates


@pytest.mark.parametrize(
    ("name", "rate"), [("has_hat", 0.15), ("has_glasses", 0.10), ("has_beard", 0.05), ("flipped", 0.5)]
)
def test_rates_of_attributes(name: str, rate: float) -> None:
    num_seeds = 4000
    figures = [avatars.draw_figure(seed) for seed in range(num_seeds)]
    has = {
        "has_hat": [figure.top in HATS for figure in figures],
        "has_glasses": [figure.accessories is not None for figure in figures],
        "has_beard": [figure.facial_hair is not None for figure in figures],
        "flipped": [figure.pose.flipped for figure in figures],
    }
    bound = 4 * np.sqrt(rate * (1 - rate) / num_seeds)
    assert abs(np.mean(has[name]) - rate) < bound


def test_seeds_at_other_rates() -> None:
    """Rates are as told, parts independent, what was not told as in the domain; without rates every seed stays."""
    assert list(itertools.islice(avatars.seeds_at_rates(7, {}), 5)) == [7, 8, 9, 10, 11]
    seeds = list(itertools.islice(avatars.seeds_at_rates(0, {"glasses": 0.3, "beard": 0.4}), 3000))
    assert seeds == sorted(set(seeds))
    assert seeds[100:110] == list(
        itertools.islice(avatars.seeds_at_rates(seeds[100], {"glasses": 0.3, "beard": 0.4}), 10)
    )
    figures = [avatars.draw_figure(seed) for seed in seeds]
    hats, glasses, beards = (
        np.array([test(figure) for figure in figures])
        for test in (lambda f: f.top in HATS, lambda f: f.accessories is not None, lambda f: f.facial_hair is not None)
    )
    for has, rate in ((hats, 0.15), (glasses, 0.3), (beards, 0.4), (glasses & beards, 0.12)):
        assert abs(has.mean() - rate) < 4 * (rate * (1 - rate) / len(seeds)) ** 0.5


# Colour does not give the truth away; recolouring does


def test_recolourings_keep_the_shape_and_change_the_colours() -> None:
    images_NHWC, mask_HW = avatars.recolourings(5, 64, 6)
    assert images_NHWC.shape == (6, 64, 64, 3) and images_NHWC.dtype == np.uint8
    assert (images_NHWC[0] == portrait(5).image_HWC).all() and (mask_HW == portrait(5).mask_HW).all()
    for first in range(6):
        for second in range(first):
            assert np.abs(images_NHWC[first].astype(int) - images_NHWC[second]).mean() > 8


def clusters(vectors_PD: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 1e-3)
    start = np.zeros((0,), np.int32)
    labels = cv2.kmeans(vectors_PD, k, start, criteria, 3, cv2.KMEANS_PP_CENTERS)[1]
    return np.asarray(labels, np.int32).ravel()


def merged_iou(labels_P: NDArray[np.int32], truth_P: NDArray[np.bool_]) -> float:
    """Mean IoU of figure and background when each cluster goes where most of it belongs."""
    num_figure = np.bincount(labels_P, weights=truth_P)
    guess_P = (num_figure / np.maximum(np.bincount(labels_P), 1) > 0.5)[labels_P]
    return mean_iou(guess_P, truth_P)


def mean_iou(guess_P: NDArray[np.bool_], truth_P: NDArray[np.bool_]) -> float:
    pairs = ((guess_P, truth_P), (~guess_P, ~truth_P))
    return float(np.mean([(a & b).sum() / max((a | b).sum(), 1) for a, b in pairs]))


def test_single_pictures_cluster_badly_and_recolourings_well() -> None:
    single, mixed = [], []
    for seed in range(1000, 1020):
        images_NHWC, mask_HW = avatars.recolourings(seed, 48, 16)
        truth_P = mask_HW.ravel() > 0
        pixels_PD = images_NHWC.transpose(1, 2, 0, 3).reshape(truth_P.size, -1).astype(np.float32)
        halves_P = clusters(pixels_PD[:, :3], 2) == 1
        single.append(max(mean_iou(halves_P, truth_P), mean_iou(~halves_P, truth_P)))
        standard_PD = (pixels_PD - pixels_PD.mean(axis=0)) / pixels_PD.std(axis=0)
        mixed.append(merged_iou(clusters(standard_PD, 8), truth_P))
    assert np.mean(mixed) > 0.95, f"recolourings: {np.mean(mixed):.3f}"
    assert np.mean(single) < 0.70, f"single pictures: {np.mean(single):.3f}"
