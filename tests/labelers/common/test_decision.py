"""From maps of the parts to masks."""

import torch

from labelmill.pipeline.labelers.common.decision import Decision, decide, likeliest


def test_foreground_is_where_parts_together_pass_a_half() -> None:
    parts = torch.tensor([0.3, 0.4, 0.1, 0.6, 0.2, 0.2]).view(1, 3, 1, 2).permute(0, 1, 3, 2)
    # First pixel: .3, .1 and .2 make .6, the first part wins; second: .4, .6, .2, the second part.
    masks = likeliest(parts.sum(dim=1), parts)
    assert masks.dtype == torch.uint8
    assert masks.flatten().tolist() == [1, 2]
    assert likeliest(torch.tensor([[[0.5, 0.6]]]), torch.zeros(1, 0, 1, 2)).tolist() == [[[0, 1]]]


def test_parts_leave_the_foreground_as_it_is() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    parts = torch.rand(2, 3, 16, 16) * 0.4 - 0.02
    split, whole = decide(parts, images, radius=1), decide(parts.sum(dim=1, keepdim=True), images, radius=1)
    assert torch.equal(split.masks_BHW != 0, whole.masks_BHW != 0)
    assert split.masks_BHW.unique().tolist() == [0, 1, 2, 3]
    assert whole.masks_BHW.unique().tolist() == [0, 1]
    assert torch.equal(split.foreground_BHW, whole.foreground_BHW)
    assert torch.equal(whole.masks_BHW != 0, whole.foreground_BHW > 0.5)


def test_sharpness_is_the_soft_iou_of_mask_and_probability() -> None:
    decision = Decision(
        torch.tensor([[[2, 0]]], dtype=torch.uint8), torch.tensor([[[0.8, 0.4]]]), torch.zeros(1, 0, 1, 2)
    )
    torch.testing.assert_close(decision.sharpness(), torch.tensor([(0.8 / 1.4 + 0.6 / 1.2) / 2]))


def test_probabilities_are_the_foregrounds_shared_by_the_parts() -> None:
    masks = torch.zeros(1, 1, 3, dtype=torch.uint8)
    foreground = torch.tensor([[[0.8, 0.4, 1.0]]])
    parts = torch.tensor([[0.6, 0.1, 0.0], [0.2, 0.3, -0.1]])[None, :, None]
    expected = torch.tensor([[0.2, 0.6, 0.0], [0.6, 0.1, 0.5], [0.2, 0.3, 0.5]])[None, :, None]  # by class
    torch.testing.assert_close(Decision(masks, foreground, parts).probabilities(), expected, atol=1e-4, rtol=0)
    whole = Decision(masks, foreground, torch.zeros(1, 0, 1, 3)).probabilities()
    torch.testing.assert_close(whole, torch.stack([1 - foreground, foreground], dim=1))
