"""DiffAugment: each change against its own formula, and when it applies."""

import pytest
import torch
from helpers.small_trainings import make_config, open_trainer

from labelmill.pipeline.generator.training.augmentation import (
    FEW_IMAGES,
    _cut_out,
    _recolour,
    _translate,
    augment,
    is_augmented,
)
from labelmill.schemas.training import DomainData, FolderData


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(64, 3, 16, 16, generator=random(1)) * 2 - 1


def test_colours_change_by_one_affine_map_per_image(images: torch.Tensor) -> None:
    changed = _recolour(images, random())
    gray, new_gray = images.mean(dim=1), changed.mean(dim=1)
    shift = new_gray.mean(dim=(1, 2)) - gray.mean(dim=(1, 2))
    assert shift.min() >= -0.5 and shift.max() <= 0.5 and shift.std() > 0.2  # brightness
    contrast = new_gray.std(dim=(1, 2)) / gray.std(dim=(1, 2))
    assert 0.5 <= contrast.min() < 0.6 and 1.4 < contrast.max() <= 1.5
    colour = (changed - new_gray[:, None]).std(dim=(1, 2, 3)) / (images - gray[:, None]).std(dim=(1, 2, 3))
    saturation = colour / contrast
    assert 0 <= saturation.min() < 0.2 and 1.8 < saturation.max() <= 2.001


def test_shifts_are_whole_pixels_into_zeros(images: torch.Tensor) -> None:
    shifted, seen = _translate(images, random()), set()
    for before, after in zip(images, shifted, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(padded[:, row : row + 16, column : column + 16], after)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 15  # of 25: two pixels, an eighth, either way


def test_squares_of_half_the_side_are_blanked(images: torch.Tensor) -> None:
    cut = _cut_out(images, random())
    blank = cut.eq(0).all(dim=1)
    assert torch.equal(cut * ~blank[:, None], images * ~blank[:, None])
    sizes = blank.sum(dim=(1, 2))
    assert sizes.max() == 64 and sizes.min() >= 16  # whole, or at most half of each side outside
    assert all(int(rows.any(dim=1).sum()) * int(rows.any(dim=0).sum()) == int(rows.sum()) for rows in blank)


def test_it_is_differentiable_and_repeatable(images: torch.Tensor) -> None:
    images.requires_grad_(True)
    augment(images, random()).square().sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0
    assert torch.equal(augment(images, random(5)), augment(images, random(5)))
    assert not torch.equal(augment(images, random(5)), augment(images, random(6)))


def test_few_images_of_ones_own_are_augmented(tmp_path: pytest.TempPathFactory) -> None:
    folder, domain = FolderData(kind="folder", path="x"), DomainData(kind="domain")
    assert is_augmented("auto", folder, FEW_IMAGES - 1) and not is_augmented("auto", folder, FEW_IMAGES)
    assert not is_augmented("auto", domain, 10) and is_augmented("diffaugment", domain, 10**6)
    assert not is_augmented("none", folder, 10)


def test_the_discriminator_sees_augmented_images(folder, tmp_path) -> None:  # type: ignore[no-untyped-def]
    trainer = open_trainer(make_config(folder, tmp_path, optimisation={"augmentation": "diffaugment"}))
    seen: list[torch.Tensor] = []
    trainer.discriminator.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    trainer.step()
    assert len(seen) == 4  # the generator's, reals, fakes, R1's
    assert all(bool((batch == 0).all(dim=1).flatten(1).any(dim=1).all()) for batch in seen)
