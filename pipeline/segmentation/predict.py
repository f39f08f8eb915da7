"""Photos to masks: what `labelmill predict` does.

Shape suffixes: H height, W width, C channels, K classes; 1 a batch of one.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.generator.checkpoints.native import write_atomically
from pipeline.segmentation.models import Segmenter
from schemas.errors import LabelmillError, OutputError

Pixels = NDArray[np.uint8]

PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


class PhotoError(LabelmillError):
    """Photos that cannot be labeled. The message names the file."""


@torch.no_grad()
def predict(segmenter: Segmenter, image_HWC: Pixels, side: int) -> Pixels:
    """Class of each pixel [H, W] uint8 of an RGB image [H, W, 3] uint8.

    The image is resized so that its shorter side is `side`, the logits back to its size before the classes are
    chosen. segmenter: in eval mode.
    """
    height, width = image_HWC.shape[:2]
    device = segmenter.mean_C11.device
    image_1CHW = torch.from_numpy(np.ascontiguousarray(image_HWC)).to(device).permute(2, 0, 1)[None].float() / 255
    scale = side / min(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    if size != (height, width):
        image_1CHW = functional.interpolate(image_1CHW, size=size, mode="bilinear", antialias=True).clamp(0, 1)
    return _classes(segmenter(image_1CHW)[0], height, width).cpu().numpy()


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


def predict_folder(segmenter: Segmenter, photos: Path, out: Path, side: int) -> int:
    """Label every photo of a folder; returns how many. Masks are 8-bit gray PNG of the photos' names and sizes.

    Raises PhotoError for a folder without photos, two photos of one name and what is no readable image; OutputError
    when masks cannot be written.
    """
    files = photo_files(photos)
    if out.resolve() == photos.resolve():
        raise PhotoError(f"--out {out}: is the folder of the photos; masks of the same names would replace them")
    for name, file in files.items():
        mask_HW = predict(segmenter, read_photo(file), side)
        done, png = cv2.imencode(".png", mask_HW)
        assert done
        try:
            write_atomically(out / f"{name}.png", png.tobytes())
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    return len(files)


def photo_files(folder: Path) -> dict[str, Path]:
    """Photos by name without ending, sorted. Raises PhotoError where there is none, or two have one name."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_ENDINGS)
    except OSError as error:
        raise PhotoError(f"{folder}: cannot be read: {error.strerror or error}") from error
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise PhotoError(f"{path}: another photo goes by the same name: {files[path.stem]}")
        files[path.stem] = path
    if not files:
        raise PhotoError(f"{folder}: holds no photo; looked for {', '.join(PHOTO_ENDINGS)}")
    return files


def read_photo(path: Path) -> Pixels:
    """RGB [H, W, 3] uint8, turned upright as its EXIF says. Raises PhotoError."""
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise PhotoError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        image_HWC = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if content.size else None
    except cv2.error as error:
        raise PhotoError(f"{path}: has more pixels than OpenCV takes; make it smaller or take it out") from error
    if image_HWC is None:
        raise PhotoError(f"{path}: is no readable image; repair it or take it out")
    return np.asarray(image_HWC, np.uint8)
