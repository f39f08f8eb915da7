"""Sizes are judged before anything is laid out."""

from dataclasses import replace

import pytest
from generator.checkpoints.checkpoint_files import SMALL, random_discriminator, random_generator

from labelmill.pipeline.generator.checkpoints import assemble
from labelmill.pipeline.generator.checkpoints.assemble import check_generator_size
from labelmill.pipeline.generator.checkpoints.inert import UnreadableError


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize(("c_dim", "const_size"), [(0, (4, 4)), (50, (4, 4)), (0, (9, 30))])
def test_judged_size_of_a_generator_is_about_its_own(
    architecture: str, c_dim: int, const_size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    monkeypatch.setattr(assemble, "_check_proportion", lambda count, num_bytes: judged.append(count))
    generator = random_generator(architecture=architecture, c_dim=c_dim, const_size=const_size)
    check_generator_size(generator.spec, 0)
    actual = sum(tensor.numel() for tensor in generator.state_dict().values())
    assert 0.9 * actual < judged[0] < 1.3 * actual


def test_judged_size_of_a_discriminator_is_about_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    monkeypatch.setattr(assemble, "_check_proportion", lambda count, num_bytes: judged.append(count))
    assemble._check_discriminator_size(list(SMALL.channels), (4, 4), 0, 0)
    actual = sum(tensor.numel() for tensor in random_discriminator().state_dict().values())
    assert 0.9 * actual < judged[0] < 1.4 * actual


def test_what_is_out_of_proportion_is_refused() -> None:
    check_generator_size(SMALL, 1000)
    with pytest.raises(UnreadableError, match="a file of 1,000 bytes describes a network of"):
        check_generator_size(replace(SMALL, w_dim=5_000), 1000)
    with pytest.raises(UnreadableError, match="a file of 1,000 bytes describes a network of"):
        check_generator_size(replace(SMALL, const_size=(1, 10**7), channels=((4, 100), (8, 1), (16, 1))), 1000)
