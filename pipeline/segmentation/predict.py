"""Photos to masks: what `labelmill predict` does.

Shape suffixes: B batch, H height, W width, C channels, K classes.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.networks.segmenter import Segmenter
from labelmill.pipeline.pictures.checked_photos import check_photos
from labelmill.pipeline.pictures.overlay import class_colours, overlay
from labelmill.pipeline.pictures.photos import Pixels, read_photo
from labelmill.pipeline.pictures.png import encode_gray, encode_picture
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.host_copy import to_device
from labelmill.pipeline.process.log import warn
from labelmill.schemas.errors import OutputError

# The longer side in the network is at most this many times the shorter one asked for: a photo of 2000 x 1 pixels would
# fill the memory otherwise.
_MOST_ELONGATED = 8


def predict(segmenter: Segmenter, image_HWC: Pixels, side: int) -> Pixels:
    """Class of each pixel [H, W] uint8 of an RGB image [H, W, 3] uint8; see `predict_batch`."""
    mask_HW: Pixels = predict_batch(segmenter, image_HWC[None], side)[0]
    return mask_HW


@torch.no_grad()
def predict_batch(segmenter: Segmenter, images_BHWC: Pixels, side: int) -> Pixels:
    """Class of each pixel [B, H, W] uint8 of RGB images [B, H, W, 3] uint8.

    The images are resized so that their shorter side is `side`, and less where the longer one would pass 8 times that;
    the logits are resized back before the classes are chosen. segmenter: in eval mode.
    """
    height, width = images_BHWC.shape[1:3]
    pixels_BHWC = torch.from_numpy(np.ascontiguousarray(images_BHWC))
    # Permuted bytes are channels-last, as the network's weights are.
    images_BCHW = to_device(pixels_BHWC, segmenter.mean_C11.device).permute(0, 3, 1, 2).float() / 255
    scale = min(side / min(height, width), _MOST_ELONGATED * side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if size != (height, width):
        images_BCHW = functional.interpolate(images_BCHW, size=size, mode="bilinear", antialias=True).clamp(0, 1)
    masks = [_classes(logits_KHW, height, width) for logits_KHW in segmenter(images_BCHW)]
    return np.asarray(torch.stack(masks).cpu().numpy())


def _classes(logits_KHW: Tensor, height: int, width: int) -> Tensor:
    """Argmax [height, width] uint8 of enlarged logits, one class at a time: all at once would fill the memory for
    large photos."""
    best_HW: Tensor | None = None
    classes_HW = torch.zeros((height, width), dtype=torch.uint8, device=logits_KHW.device)
    for value, plane_HW in enumerate(logits_KHW):
        large_HW = functional.interpolate(plane_HW[None, None], size=(height, width), mode="bilinear")[0, 0]
        if best_HW is None:
            best_HW = large_HW
            continue
        classes_HW.masked_fill_(large_HW > best_HW, value)
        best_HW = torch.maximum(best_HW, large_HW)
    return classes_HW


def predict_folder(
    segmenter: Segmenter, photos: Path, out: Path, side: int, *, overlays: Path | None = None, num_classes: int = 0
) -> int:
    """Label every photo of a folder and its subfolders; returns how many. Masks are 8-bit gray PNG of the photos'
    sizes, named by the photos' paths below the folder.

    overlays: a folder for the photos tinted by their masks, by the same names; num_classes: how many colours it takes.

    Raises PhotoError for a folder without photos; UnreadablePhotosError, once all others are labeled, for what is not
    a readable image or shares its name with another; OutputError when masks cannot be written.
    """
    checked = check_photos(photos, out, warn)
    for photo in checked.good:
        image_HWC = read_photo(photo.file)
        mask_HW = predict(segmenter, image_HWC, side)
        _write(out / f"{photo.name}.png", encode_gray(mask_HW), f"--out {out}")
        if overlays is not None:
            picture = encode_picture(overlay(image_HWC, mask_HW, class_colours(num_classes)))
            _write(overlays / f"{photo.name}.png", picture, f"--overlays {overlays}")
    checked.raise_problems(f"the masks of the other {len(checked.good)} are in {out}")
    return len(checked.good)


def _write(path: Path, png: bytes, option: str) -> None:
    try:
        write_atomically(path, png)
    except OSError as error:
        raise OutputError(f"{option}: cannot be written: {error.strerror or error}") from error
