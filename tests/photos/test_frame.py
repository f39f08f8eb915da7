"""Photos of any shape in the generator's frame, and back."""

import numpy as np
import pytest
import torch

from labelmill.pipeline.photos.frame import Frame, shape_problem

FITS = ("pad", "crop", "stretch")


def gradient_image(height: int, width: int) -> np.ndarray:
    """Red rises with the row, green with the column."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([255 * rows // height, 255 * columns // width, 0 * rows], axis=2).astype(np.uint8)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (90, 40), (17, 100), (8, 8)])
@pytest.mark.parametrize("frame_size", [(32, 32), (64, 32)])
def test_what_goes_into_the_frame_comes_back(fit: str, size: tuple[int, int], frame_size: tuple[int, int]) -> None:
    frame = Frame(size, frame_size, fit)  # type: ignore[arg-type]
    image_HWC = gradient_image(*size)
    put_CHW = frame.put(image_HWC, 3)
    assert put_CHW.shape == (3, *frame_size) and put_CHW.dtype == np.float32 and np.abs(put_CHW).max() <= 1.01
    for channel in range(2):
        part = frame.take_back(torch.from_numpy(put_CHW[channel]))
        back_HW = frame.on_photo(part * 127.5 + 128, 255).numpy()
        assert back_HW.shape == size
        shown = image_HWC[frame.shown][:, :, channel]
        step = 255 / min(32, *shown.shape)
        assert np.abs(back_HW[frame.shown] - shown).mean() < step


def test_a_photo_of_the_frame_s_size_is_not_touched() -> None:
    image_HWC = gradient_image(32, 32)
    put_CHW = Frame((32, 32), (32, 32), "pad").put(image_HWC, 3)
    assert np.array_equal(put_CHW * 127.5 + 128, image_HWC.transpose(2, 0, 1))


def test_what_a_crop_cuts_off_is_outside() -> None:
    frame = Frame((20, 60), (32, 32), "crop")
    assert frame.shown == (slice(0, 20), slice(20, 40))
    whole = frame.on_photo(torch.zeros(20, 20, dtype=torch.uint8), 255)
    assert whole.shape == (20, 60) and (whole[:, 20:40] == 0).all() and (whole[:, :20] == 255).all()


def test_a_frame_is_enlarged_to_the_photo_and_no_further_than_allowed() -> None:
    assert Frame((100, 50), (32, 32), "pad").enlarged(1024).size == (128, 128)
    assert Frame((5000, 5000), (32, 32), "pad").enlarged(1024).size == (1024, 1024)
    assert Frame((10, 10), (32, 32), "pad").enlarged(1024).size == (32, 32)


def test_gray_generators_see_gray_photos() -> None:
    put_CHW = Frame((32, 32), (32, 32), "pad").put(np.full((32, 32, 3), 128, np.uint8), 1)
    assert put_CHW.shape == (1, 32, 32) and not put_CHW.any()


def test_slivers_and_dots_are_refused() -> None:
    assert shape_problem(64, 512) is None and shape_problem(8, 8) is None
    assert "20000 x 10 pixels; crop it" in str(shape_problem(10, 20_000))
    assert "1 x 1 pixels; a side of less than 8" in str(shape_problem(1, 1))
