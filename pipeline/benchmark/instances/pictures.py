"""Pictures of several people, from a generator of portraits: features of several seeds side by side, and one style.

Up to a row of w, each person is synthesised alone. Then features and RGB are joined along the width, and synthesis
goes on with the rows of the first seed: complete people of different shape, in one light on one ground, without any
training. Variants go on with a donor's rows. Noise is off: the stored buffers are as wide as one portrait.

Shape suffixes: B people or pictures, N variants, C channels, H height, W width of a picture, R side of a portrait,
h w of features, L rows of w, D style.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.benchmark.oracle.oracle import Oracle
from labelmill.pipeline.generator.networks import Generator, Synthesis, Trunk
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.process.device import repeatable_kernels

JOINED_BEFORE = 3
"""The row of w from which on people share a style: those below lay portraits out."""
SHARED_COLUMNS = 2
"""Of the features that are joined, eight to a portrait: how many overlapping people share."""


@dataclass(frozen=True)
class Picture:
    """People, the first of whom is in front of the second where they overlap, and so on."""

    image_CHW: Tensor
    trunk: Trunk
    """Of one picture, before JOINED_BEFORE."""
    rows_LD: Tensor
    """The picture's own rows of w from there on."""
    truths: tuple[Tensor, ...]
    """bool [H, W] of each person, no pixel of two, by the oracle."""


def draw_people(sampler: Sampler, oracle: Oracle, seeds: Sequence[int], *, overlap: bool = False) -> Picture:
    """A picture of one person per seed, side by side; or each behind the one before."""
    generator = sampler.generator
    ws_BLD, _ = sampler.ws(seeds)
    with repeatable_kernels():
        trunk = generator.trunk(ws_BLD, JOINED_BEFORE, "none")
        alone_BCRR = _finish(generator, trunk, ws_BLD[:1].expand(len(seeds), -1, -1)).images_BCHW
        masks_BRR = oracle.segment(alone_BCRR) != 0
        joined = _overlapping(trunk, masks_BRR) if overlap else _side_by_side(trunk)
        image_CHW = _finish(generator, joined, ws_BLD[:1]).images_BCHW[0]
    if overlap:
        truths = _layers(masks_BRR, SHARED_COLUMNS * generator.spec.resolution // trunk.x_BCHW.shape[3])
    else:
        truths = _layers(oracle.segment(torch.stack(image_CHW.chunk(len(seeds), dim=2))) != 0, 0)
    return Picture(image_CHW, joined, ws_BLD[0], truths)


def variants_of(generator: Generator, picture: Picture, donors_NLD: Tensor, row: int) -> Tensor:
    """The picture with the donors' rows of w from a row on [N, C, H, W]."""
    mixed_NLD = torch.cat([picture.rows_LD[:row].expand(len(donors_NLD), -1, -1), donors_NLD[:, row:]], dim=1)
    with repeatable_kernels():
        return _finish(generator, picture.trunk.repeat_interleave(len(donors_NLD)), mixed_NLD).images_BCHW


def features_of(generator: Generator, picture: Picture, layers: Sequence[str]) -> dict[str, Tensor]:
    """Activations of layers past the joint [1, C, h, w]."""
    with repeatable_kernels():
        rows_1LD = picture.rows_LD[None]
        return generator.synthesize(rows_1LD, "none", trunk=picture.trunk, taps=layers).features


def _finish(generator: Generator, trunk: Trunk, ws_BLD: Tensor) -> Synthesis:
    return generator.synthesize(ws_BLD, "none", trunk=trunk)


def _side_by_side(trunk: Trunk) -> Trunk:
    assert trunk.images_BCHW is not None
    return Trunk(trunk.row, _in_a_row(trunk.x_BCHW), _in_a_row(trunk.images_BCHW))


def _in_a_row(maps_BChw: Tensor) -> Tensor:
    return torch.cat(maps_BChw.split(1), dim=3)


def _overlapping(trunk: Trunk, masks_BRR: Tensor) -> Trunk:
    assert trunk.images_BCHW is not None
    x_BChw, images_BChw = trunk.x_BCHW, trunk.images_BCHW
    share = SHARED_COLUMNS / x_BChw.shape[3]
    return Trunk(trunk.row, _in_layers(x_BChw, masks_BRR, share), _in_layers(images_BChw, masks_BRR, share))


def _in_layers(maps_BChw: Tensor, masks_BRR: Tensor, share: float) -> Tensor:
    """Maps that share columns: a person's features, and those of the one behind where the person is not."""
    width = maps_BChw.shape[3]
    shared = round(share * width)
    is_person_Bhw = functional.adaptive_avg_pool2d(masks_BRR.float(), (maps_BChw.shape[2], width)) > 0.5
    joined_1Chw = maps_BChw[-1:]
    for map_1Chw, is_person_hw in zip(
        reversed(maps_BChw[:-1].split(1)), reversed(is_person_Bhw[:-1].unbind()), strict=True
    ):
        both = torch.where(is_person_hw[:, -shared:], map_1Chw[..., -shared:], joined_1Chw[..., :shared])
        joined_1Chw = torch.cat([map_1Chw[..., :-shared], both, joined_1Chw[..., shared:]], dim=3)
    return joined_1Chw


def _layers(masks_BRR: Tensor, shared: int) -> tuple[Tensor, ...]:
    """Each person's own pixels of the whole picture, less those of people in front. shared: columns of overlap."""
    num, height, side = masks_BRR.shape
    is_free_HW = torch.ones(height, num * side - (num - 1) * shared, dtype=torch.bool, device=masks_BRR.device)
    truths = []
    for position, mask_RR in enumerate(masks_BRR):
        left = position * (side - shared)
        truth_HW = torch.zeros_like(is_free_HW)
        truth_HW[:, left : left + side] = mask_RR
        truths.append(truth_HW & is_free_HW)
        is_free_HW = is_free_HW & ~truth_HW
    return tuple(truths)
