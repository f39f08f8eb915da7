"""Confidence against what it was calibrated on."""

import torch

from labelmill.pipeline.labelers.style_mixing.confidence import ConfidenceModel, fit_confidence


def test_a_linear_relation_is_found() -> None:
    torch.manual_seed(0)
    signals_BS = torch.rand(64, 2)
    expected_B = 0.2 + signals_BS @ torch.tensor([0.5, 0.25])
    model = fit_confidence(signals_BS, expected_B.sqrt())
    torch.testing.assert_close(model.weights_S, torch.tensor([0.5, 0.25]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(signals_BS), expected_B, rtol=1e-4, atol=1e-5)


def test_a_signal_that_points_the_wrong_way_counts_for_nothing() -> None:
    torch.manual_seed(1)
    signals_BS = torch.rand(64, 2)
    agreement_B = (0.9 - 0.3 * signals_BS[:, 0] + 0.05 * signals_BS[:, 1]).sqrt()
    model = fit_confidence(signals_BS, agreement_B)
    assert model.weights_S[0] == 0
    assert model.weights_S[1] > 0
    # On average it is still the square of the agreement.
    torch.testing.assert_close(model(signals_BS).mean(), agreement_B.square().mean(), rtol=1e-4, atol=1e-5)


def test_nothing_to_learn_from_gives_the_mean() -> None:
    model = fit_confidence(torch.full((16, 2), 0.7), torch.full((16,), 0.9))
    assert model.weights_S.tolist() == [0, 0]
    torch.testing.assert_close(model(torch.rand(3, 2)), torch.full((3,), 0.81))


def test_it_stays_within_0_and_1() -> None:
    model = ConfidenceModel(torch.tensor([2.0]), torch.tensor(-0.5))
    assert model(torch.tensor([[0.0], [0.5], [1.0]])).tolist() == [0.0, 0.5, 1.0]
