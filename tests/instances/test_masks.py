"""Instances of boxes: what changes together, and no pixel of two."""

import torch

from labelmill.pipeline.instances.box_clusters import BoxClusterer
from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.instances.masks import ImageInstances, by_clusters, by_foreground, image_instances
from labelmill.schemas.instances import InstanceSettings

CPU = torch.device("cpu")
SIZE = (24, 40)


def discs() -> torch.Tensor:
    """Two discs [H, W]: 1, 2, and 0 elsewhere."""
    y, x = torch.meshgrid(torch.arange(24), torch.arange(40), indexing="ij")
    numbers_HW = torch.zeros(SIZE, dtype=torch.int64)
    numbers_HW[(y - 12) ** 2 + (x - 10) ** 2 < 49] = 1
    numbers_HW[(y - 12) ** 2 + (x - 29) ** 2 < 64] = 2
    return numbers_HW


def recoloured(numbers_HW: torch.Tensor) -> torch.Tensor:
    """Variants [N, C, H, W]: what has a number has a colour of its own in each."""
    colours_NC = torch.rand(6, 3, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return colours_NC[:, :, numbers_HW]


def found(boxes: list[Box], numbers_HW: torch.Tensor, settings: InstanceSettings) -> ImageInstances:
    variants_NCHW = recoloured(numbers_HW)
    probability = by_clusters(BoxClusterer(settings), variants_NCHW, variants_NCHW[0])
    return image_instances(boxes, SIZE, probability, settings, CPU)


ONE, TWO = Box("disc", 0.9, 4, 6, 17, 19), Box("disc", 0.8, 22, 5, 37, 20)


def test_what_fills_the_box_is_the_instance() -> None:
    truth_HW = discs()
    labeled = found([ONE, TWO], truth_HW, InstanceSettings())
    assert (labeled.numbers_HW == truth_HW).float().mean() > 0.98
    assert [(each.id, each.label, each.score, each.box) for each in labeled.instances] == [
        (1, "disc", 0.9, (4, 6, 13, 13)),
        (2, "disc", 0.8, (22, 5, 15, 15)),
    ]


def test_an_instance_reaches_as_far_out_of_its_box_as_boxes_may_be_off() -> None:
    truth_HW = discs()
    narrow = Box("disc", 0.9, 5, 7, 16, 18)
    pixels = {
        error: int((found([narrow], truth_HW, InstanceSettings(box_error=error)).numbers_HW == 1).sum())
        for error in (0.0, 0.1)
    }
    assert pixels[0.0] < pixels[0.1] <= int((truth_HW == 1).sum()) * 1.05


def test_a_box_of_nothing_is_told_and_numbers_have_no_gaps() -> None:
    nothing = Box("disc", 0.95, 0, 0, 3, 3)
    labeled = found([nothing, TWO], discs(), InstanceSettings())
    assert labeled.without_pixels == (nothing,)
    assert labeled.numbers_HW.unique().tolist() == [0, 1] and [each.id for each in labeled.instances] == [1]


def test_no_boxes_are_an_empty_map() -> None:
    labeled = found([], discs(), InstanceSettings())
    assert not labeled.instances and not labeled.numbers_HW.any()


def test_overlaps_go_to_one() -> None:
    everything = by_foreground(torch.ones(SIZE, dtype=torch.bool))
    large, small = Box("a", 0.4, 2, 2, 38, 22), Box("b", 0.9, 8, 8, 16, 16)
    owner = {}
    for overlap in ("score", "centre"):
        settings = InstanceSettings(box_error=0, overlap=overlap)
        labeled = image_instances([large, small], SIZE, everything, settings, CPU)
        assert set(labeled.numbers_HW.unique().tolist()) == {0, 1, 2}
        assert int((labeled.numbers_HW != 0).sum()) == 36 * 20
        owner[overlap] = int(labeled.numbers_HW[15, 15])
    assert owner == {"score": 2, "centre": 1}
