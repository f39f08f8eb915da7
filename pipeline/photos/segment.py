"""Photos to masks through the generator: latents, the labeler's masks of their images, and the photo's own edges.

Shape suffixes: B batch, H height, W width of a photo, L rows of w, D style.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Sampler, to_uint8
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.photos.frame import shape_problem
from labelmill.pipeline.photos.invert import (
    Inversion,
    Latents,
    framed,
    invert_checked,
    read_claim,
)
from labelmill.pipeline.photos.latents_file import read_latents
from labelmill.pipeline.photos.sheet import write_sheet
from labelmill.pipeline.photos.snap import Snapping, mask_agreement
from labelmill.pipeline.pictures.checked_photos import CheckedPhoto, check_photos
from labelmill.pipeline.pictures.overlay import class_colours, overlay, rgb
from labelmill.pipeline.pictures.photos import PhotoError, Pixels, read_photo
from labelmill.pipeline.pictures.png import encode_gray, encode_picture
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.log import warn
from labelmill.schemas.config import GeneratorConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.inversion import INVERSION_FILE, InversionSettings, check_noise
from labelmill.schemas.sample import IGNORE

QUALITY_FILE = "quality.csv"


@dataclass(frozen=True)
class PhotoQuality:
    """A row of quality.csv: how good a photo's mask may be expected to be, without labels."""

    photo: str
    quality: float
    """agreement * confidence, in [0, 1]."""
    agreement: float
    """Mean IoU of the photo's masks through W and through W+; 1 where only one of them was inverted to."""
    confidence: float
    """The labeler's, mean of both."""
    psnr_db: float
    """Of the last reconstruction. It tells little about masks."""
    rejected: bool


@dataclass(frozen=True)
class PhotoLabels:
    """What a labeler and the photo's own edges give, at the photo's size, on the CPU."""

    mask_HW: Tensor
    """uint8."""
    alpha_HW: Tensor | None
    """uint8."""
    instances_HW: Tensor | None
    """int64."""
    quality: PhotoQuality


class PhotoLabeler:
    """Latents of photos to labels."""

    def __init__(self, sampler: Sampler, labeler: Labeler, inversion: Inversion, radius: int) -> None:
        """sampler: that the labeler was fitted with. radius: see `Snapping`."""
        self.sampler, self.labeler, self.inversion, self.radius = sampler, labeler, inversion, radius

    def label(self, batch: Sequence[Latents], reject_below: float | None = None) -> Iterator[PhotoLabels]:
        """Labels of photos, one at a time: large ones would fill the memory."""
        labels: dict[str, Labels] = {}
        for space in self.inversion.settings.spaces:
            names = [PurePosixPath(each.photo.name).name for each in batch]
            labels[space] = self.labels([each.ws[space] for each in batch], names)
        for position, latents in enumerate(batch):
            yield self._on_photo(latents, labels, position, reject_below)

    def labels(self, ws: Sequence[Tensor], names: Sequence[str] | None = None) -> Labels:
        """Labels at the generator's resolution of any number of latents [L, D]. names: of the photos."""
        size, parts = self.sampler.numerics.batch_size, []
        for start in range(0, len(ws), size):
            some_BLD, some_names = torch.stack(list(ws[start : start + size])), names and names[start : start + size]
            batch = self.sampler.of_ws(some_BLD, self.labeler.layers, some_names)
            parts.append(self.labeler.label(batch))
        return _joined(parts)

    def _on_photo(
        self, latents: Latents, labels: dict[str, Labels], position: int, reject_below: float | None
    ) -> PhotoLabels:
        last = labels[self.inversion.settings.spaces[-1]]
        spec = self.sampler.generator.spec
        snapping = Snapping(
            read_photo(latents.photo.file),
            self.inversion.frame(latents.photo.size),
            spec.img_channels,
            self.radius,
            self.sampler.device,
        )
        masks = [snapping.mask(each.masks_BHW[position]) for each in labels.values()]
        confidence = float(np.mean([float(each.confidence_B[position]) for each in labels.values()]))
        quality = self._quality(latents, masks, confidence, reject_below)
        return PhotoLabels(
            torch.full_like(masks[-1], IGNORE) if quality.rejected else masks[-1],
            None if last.alpha_BHW is None else snapping.alpha(last.alpha_BHW[position]),
            None if last.instances_BHW is None else snapping.instances(last.instances_BHW[position]),
            quality,
        )

    def _quality(
        self, latents: Latents, masks: Sequence[Tensor], confidence: float, reject_below: float | None
    ) -> PhotoQuality:
        agreement = mask_agreement(masks[0], masks[-1]) if len(masks) > 1 else 1.0
        quality = agreement * confidence
        psnr_db = latents.about.psnr_db[self.inversion.settings.spaces[-1]]
        rejected = reject_below is not None and quality < reject_below
        name = latents.photo.name
        return PhotoQuality(name, round(quality, 4), round(agreement, 4), round(confidence, 4), psnr_db, rejected)


def _joined(parts: Sequence[Labels]) -> Labels:
    def of(name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    masks_BHW, confidence_B = of("masks_BHW"), of("confidence_B")
    assert masks_BHW is not None and confidence_B is not None
    return Labels(masks_BHW, confidence_B, of("alpha_BHW"), of("instances_BHW"))


def open_inversion(generator: GeneratorConfig, output: Path, device: torch.device) -> Inversion:
    """The inversion of an output that `labelmill invert` made, or one with default settings for a new output.

    Raises ConfigError where it belongs to another generator or to other noise.
    """
    try:
        check_noise(generator)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    claimed = read_claim(output) if (output / INVERSION_FILE).exists() else None
    inversion = Inversion(generator, InversionSettings() if claimed is None else claimed.settings, output, device)
    if claimed is not None and claimed.checkpoint_sha256 != inversion.claim.checkpoint_sha256:
        raise ConfigError(
            f"--latents {output}: belongs to another checkpoint: it has SHA-256 {claimed.checkpoint_sha256}, this "
            f"run's {inversion.claim.checkpoint_sha256}; invert the photos again into a new folder"
        )
    return inversion


def segment_folder(
    labeler: PhotoLabeler,
    photos: Path,
    out: Path,
    *,
    reject_below: float | None = None,
    sheets: Path | None = None,
    overlays: Path | None = None,
) -> list[PhotoQuality]:
    """Label every photo of a folder and its subfolders, inverting first what has no latents yet.

    Writes masks as 8-bit gray PNG of the photos' sizes and names, `.alpha.png` and 16-bit `.instances.png` beside
    them where the labeler gives them, and last quality.csv. overlays: a folder for the photos tinted by their masks, by
    the same names. Raises PhotoError and OutputError kinds as
    `labelmill predict` does.
    """
    inversion = labeler.inversion
    if out.resolve() == inversion.output.resolve():
        raise PhotoError(f"--out {out}: is the folder of the latents; choose another one")
    checked = check_photos(photos, out, warn, shape_problem)
    rows = []
    try:
        done, failed = invert_checked(inversion, checked.good)
        size = labeler.sampler.numerics.batch_size
        for start in range(0, len(done), size):
            batch = [_latents(inversion, photo) for photo in done[start : start + size]]
            for latents, labels in zip(batch, labeler.label(batch, reject_below), strict=True):
                _write(out, latents, labels)
                if sheets is not None:
                    _write_sheet(labeler, sheets, latents, labels)
                if overlays is not None:
                    _write_overlay(overlays, latents, labels, class_colours(len(labeler.labeler.classes)))
                rows.append(labels.quality)
        write_atomically(out / QUALITY_FILE, _table(rows))
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    checked.raise_problems(f"the masks of the other {len(done)} are in {out}", tuple(failed))
    return rows


def _latents(inversion: Inversion, photo: CheckedPhoto) -> Latents:
    found = read_latents(inversion.output, photo.name, inversion.shape)
    assert found is not None, photo.name
    return Latents(photo, *found)


def _write(out: Path, latents: Latents, labels: PhotoLabels) -> None:
    path = out / f"{latents.photo.name}.png"
    write_atomically(path, encode_gray(labels.mask_HW.numpy()))
    if labels.alpha_HW is not None:
        write_atomically(path.with_name(f"{path.stem}.alpha.png"), encode_gray(labels.alpha_HW.numpy()))
    if labels.instances_HW is not None:
        instances_HW = labels.instances_HW.numpy().astype(np.uint16)
        write_atomically(path.with_name(f"{path.stem}.instances.png"), encode_gray(instances_HW))


def _write_overlay(overlays: Path, latents: Latents, labels: PhotoLabels, colours: Pixels) -> None:
    picture_HWC = overlay(read_photo(latents.photo.file), labels.mask_HW.numpy(), colours)
    write_atomically(overlays / f"{latents.photo.name}.png", encode_picture(picture_HWC))


def _write_sheet(labeler: PhotoLabeler, sheets: Path, latents: Latents, labels: PhotoLabels) -> None:
    """Photo, reconstructions, difference and mask."""
    photo_CHW = framed(labeler.inversion, latents.photo)
    images = [labeler.sampler.of_ws(ws_LD[None]).images_BCHW[0].cpu() for ws_LD in latents.ws.values()]
    frame = labeler.inversion.frame(latents.photo.size)
    image_HWC = rgb(to_uint8(photo_CHW[None])[0].numpy())
    mask_hw, colours = frame.put_mask(labels.mask_HW.numpy()), class_colours(len(labeler.labeler.classes))
    write_sheet(sheets / f"{latents.photo.name}.png", [photo_CHW, *images], [overlay(image_HWC, mask_hw, colours)])


def _table(rows: Sequence[PhotoQuality]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(PhotoQuality)])
    table.writerows(astuple(row) for row in rows)
    return text.getvalue().encode()
