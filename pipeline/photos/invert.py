"""Photos to latents, resumably: each photo's file is its commit, and a killed run repeats one batch at most.

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.checkpoints.source import located_reference
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.photos.encoder import LatentEncoder, latent_spread, trained_encoder
from labelmill.pipeline.photos.frame import Frame, shape_problem
from labelmill.pipeline.photos.latents_file import read_latents, write_latents
from labelmill.pipeline.photos.loss import Features, ReconstructionLoss
from labelmill.pipeline.photos.projector import precision, project, psnr
from labelmill.pipeline.photos.sheet import write_sheet
from labelmill.pipeline.pictures.checked_photos import CheckedPhoto, check_photos
from labelmill.pipeline.pictures.photos import read_photo
from labelmill.pipeline.process.device import choose_device, repeatable_kernels
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.log import log, warn
from labelmill.pipeline.training.state import locked
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.fingerprint import canonical_json, differing_keys
from labelmill.schemas.inversion import (
    INVERSION_FILE,
    EncoderConfig,
    InversionClaim,
    InversionConfig,
    InversionSettings,
    InvertedPhoto,
)

SHEETS = "sheets"


class Inversion:
    """A generator with the settings and the encoder of one output folder: photos in frames to latents."""

    def __init__(
        self, generator: GeneratorConfig, settings: InversionSettings, output: Path, device: str | torch.device
    ) -> None:
        """Raises CheckpointError and ConfigError where they do not go together."""
        loaded = open_checkpoint(located_reference(generator.checkpoint, generator.folder), device)
        torch.set_num_threads(settings.threads)
        numerics = NumericsConfig(batch_size=settings.batch_size, precision="float32", threads=settings.threads)
        self.sampler = Sampler(loaded.generator, generator, numerics, device)
        self.settings, self.output = settings, output
        self.claim = InversionClaim(
            checkpoint_sha256=loaded.sha256,
            noise=generator.noise,
            classes=generator.classes,
            settings=settings,
        )
        self.claim_sha256 = hashlib.sha256(canonical_json(self.claim.model_dump(mode="json"))).hexdigest()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of w and their length."""
        spec = self.sampler.generator.spec
        return spec.num_ws, spec.w_dim

    def frame(self, size: tuple[int, int]) -> Frame:
        """How a photo of this height and width lies in the generator's picture."""
        return Frame(size, self.sampler.generator.spec.image_size, self.settings.fit)

    @cached_property
    def encoder(self) -> LatentEncoder | None:
        """Trained first if the output has none."""
        config = self.settings.encoder
        if config is None:
            return None
        with precision(self.sampler.generator, self.settings.precision):
            return trained_encoder(self.sampler, config, self.settings.seed, self.output, self.claim.checkpoint_sha256)

    @cached_property
    def _spread(self) -> float:
        """Of the generator's latents: root mean square distance from their average, per dimension."""
        if self.encoder is None:
            _, spread_D = latent_spread(self.sampler, EncoderConfig().first_seed)
        else:
            spread_D = self.encoder.spread_D
        return float(spread_D.square().mean().sqrt())

    def guess(self, photos_BCHW: Tensor) -> Tensor:
        """ws [B, L, D] to start from: the encoder's, or the average latent."""
        if self.encoder is not None:
            with repeatable_kernels():
                return self.encoder(photos_BCHW)
        return self.sampler.generator.mapping.w_avg.expand(len(photos_BCHW), *self.shape).clone()

    def invert(self, photos_BCHW: Tensor, sha256s: Sequence[str]) -> dict[str, Tensor]:
        """ws [B, L, D] by space of 1 to batch_size photos in frames, in [-1, 1]. sha256s: of their files.

        Each photo's latents depend on it alone, to the bit.
        """
        settings, count = self.settings, len(photos_BCHW)
        padding = settings.batch_size - count
        photos_BCHW = torch.cat([photos_BCHW, photos_BCHW[-1:].expand(padding, -1, -1, -1)]).to(self.sampler.device)
        seeds = [f"{settings.seed}/{sha256}" for sha256 in [*sha256s, *[sha256s[-1]] * padding]]
        start_BLD = self.guess(photos_BCHW)
        with repeatable_kernels():
            loss = ReconstructionLoss(settings.loss, photos_BCHW, self._features(photos_BCHW))
        found = dict[str, Tensor]()
        with precision(self.sampler.generator, settings.precision):
            for space in settings.spaces:
                ws_BLD = project(
                    self.sampler.generator,
                    self.claim.noise,
                    loss,
                    start_BLD,
                    self._spread,
                    settings.projector,
                    space=space,
                    steps=getattr(settings.steps, space),
                    noise_seeds=seeds,
                )
                found[space] = ws_BLD[:count]
        return found

    def _features(self, photos_BCHW: Tensor) -> Features | None:
        """The encoder's features in units of their spread over these photos' own, each photo's its own."""
        encoder = self.encoder
        if encoder is None or self.settings.loss.perceptual == 0:
            return None
        scales = [
            each.flatten(1).std(dim=1).clamp_min(1e-3)[:, None, None, None] for each in encoder.features(photos_BCHW)
        ]
        return lambda images_BCHW: [
            each / scale for each, scale in zip(encoder.features(images_BCHW), scales, strict=True)
        ]


def claim_output(inversion: Inversion) -> None:
    """Make the output this inversion's, or find that it is. Raises OutputError, naming the keys, if it is another's."""
    path = inversion.output / INVERSION_FILE
    if not path.exists():
        strangers = [each for each in inversion.output.iterdir() if not each.name.startswith(".")]
        if strangers:
            raise OutputError(f"{inversion.output}: holds other files, such as {strangers[0].name}; use a new folder")
        write_atomically(path, inversion.claim.model_dump_json(indent=1).encode())
        return
    theirs = read_claim(inversion.output)
    differences = differing_keys(inversion.claim.model_dump(mode="json"), theirs.model_dump(mode="json"))
    if differences:
        head = f"{inversion.output}: was made with other settings ({INVERSION_FILE}); use a new output, or change back:"
        raise OutputError("\n  ".join([head, *differences]))


def read_claim(output: Path) -> InversionClaim:
    """Raises OutputError where it is missing or damaged."""
    path = output / INVERSION_FILE
    try:
        return InversionClaim.model_validate_json(path.read_bytes())
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise OutputError(f"{path}: is damaged; restore it, or use a new output") from error


@dataclass(frozen=True)
class Latents:
    """A photo with its latents."""

    photo: CheckedPhoto
    about: InvertedPhoto
    ws: dict[str, Tensor]
    """[L, D] by space."""


def invert_missing(inversion: Inversion, photos: Sequence[CheckedPhoto]) -> tuple[list[CheckedPhoto], list[str]]:
    """Invert the photos whose latents the output lacks, batch_size at once, and commit each photo's.

    Returns the photos that have latents now, and problems of the others: a reconstruction that is no number. Raises
    OutputError where files of the output are damaged or cannot be written.
    """
    todo, failed = [photo for photo in photos if not _is_done(inversion, photo)], list[str]()
    size = inversion.settings.batch_size
    for start in range(0, len(todo), size):
        batch = todo[start : start + size]
        failed += _invert_batch(inversion, batch)
        log(f"inverted {min(start + size, len(todo))} of {len(todo)} photos")
    lost = {line.split(": ")[0] for line in failed}
    return [photo for photo in photos if str(photo.file) not in lost], failed


def invert_checked(inversion: Inversion, photos: Sequence[CheckedPhoto]) -> tuple[list[CheckedPhoto], list[str]]:
    """`invert_missing` under the output's lock, once it is this inversion's."""
    with locked(inversion.output):
        sweep(inversion.output)
        claim_output(inversion)
        return invert_missing(inversion, photos)


def _is_done(inversion: Inversion, photo: CheckedPhoto) -> bool:
    found = read_latents(inversion.output, photo.name, inversion.shape)
    if found is None:
        return False
    about, _ = found
    if about.photo_sha256 != photo.sha256:
        log(f"{photo.file}: has changed since it was inverted; inverting it again", level="warning")
        return False
    return about.claim_sha256 == inversion.claim_sha256


def framed(inversion: Inversion, photo: CheckedPhoto) -> Tensor:
    """[C, H, W] float32 in [-1, 1], of the generator's size."""
    channels = inversion.sampler.generator.spec.img_channels
    return torch.from_numpy(inversion.frame(photo.size).put(read_photo(photo.file), channels))


def _invert_batch(inversion: Inversion, batch: Sequence[CheckedPhoto]) -> list[str]:
    photos_BCHW = torch.stack([framed(inversion, photo) for photo in batch])
    found = inversion.invert(photos_BCHW, [photo.sha256 for photo in batch])
    images = {space: inversion.sampler.of_ws(ws_BLD).images_BCHW.float().cpu() for space, ws_BLD in found.items()}
    errors = {space: psnr(images_BCHW, photos_BCHW) for space, images_BCHW in images.items()}
    failed = []
    for position, photo in enumerate(batch):
        decibel = {space: round(float(errors_B[position]), 3) for space, errors_B in errors.items()}
        if not all(bool(torch.isfinite(ws_BLD[position]).all()) for ws_BLD in found.values()):
            failed.append(f"{photo.file}: its optimisation left the numbers; a lower projector.learning_rate may help")
            continue
        about = InvertedPhoto(
            name=photo.name,
            photo_sha256=photo.sha256,
            height=photo.size[0],
            width=photo.size[1],
            claim_sha256=inversion.claim_sha256,
            psnr_db=decibel,
        )
        sheet = [photos_BCHW[position], *(images_BCHW[position] for images_BCHW in images.values())]
        write_sheet(inversion.output / SHEETS / f"{photo.name}.png", sheet)
        write_latents(inversion.output, about, {space: ws_BLD[position] for space, ws_BLD in found.items()})
    return failed


def sweep(output: Path) -> None:
    """Remove what a killed run has left half-written. The caller holds the folder's lock."""
    for left in output.rglob(".*.tmp"):
        if left.is_file():
            left.unlink()


def invert_folder(config: InversionConfig) -> int:
    """What `labelmill invert` does; returns the number of photos that have latents now.

    Raises UnreadablePhotosError, once all others are done, for photos that cannot be used; LabelmillError kinds before
    work for everything else.
    """
    photos = check_photos(config.photos, config.output, warn, shape_problem)
    inversion = Inversion(config.generator, config.settings, config.output, choose_device(config.device))
    try:
        done, failed = invert_checked(inversion, photos.good)
    except OSError as error:
        raise OutputError(f"output: {config.output} cannot be written: {error.strerror or error}") from error
    photos.raise_problems(f"the latents of the other {len(done)} are in {config.output}", tuple(failed))
    return len(done)
