"""IoU of masks and probabilities, by hand."""

import torch

from labelmill.pipeline.labelers.common.agreement import soft_iou


def test_masks_by_hand() -> None:
    first = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    second = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    # Foreground 1 of 2 pixels, background 2 of 3.
    torch.testing.assert_close(soft_iou(first, second), torch.tensor([(1 / 2 + 2 / 3) / 2]))
    torch.testing.assert_close(soft_iou(second, first), soft_iou(first, second))
    assert soft_iou(first, first).item() == 1
    assert soft_iou(first, 1 - first).item() == 0


def test_probabilities_by_hand() -> None:
    mask, probability = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.8, 0.4]]])
    # Foreground .8 of 1.4; background .6 of 1.2.
    torch.testing.assert_close(soft_iou(mask, probability), torch.tensor([(0.8 / 1.4 + 0.6 / 1.2) / 2]))


def test_one_map_for_all_and_empty_sides() -> None:
    masks = torch.stack([torch.zeros(2, 2), torch.ones(2, 2), torch.eye(2)])
    torch.testing.assert_close(soft_iou(masks, torch.zeros(2, 2)), torch.tensor([0.5, 0.0, 0.25]))
