"""What a checkpoint is, in words and in two pictures, and its conversion to labelmill's own format.

Shape suffixes: B batch, C channels, H height, W width, L rows of w, D style.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.generator.checkpoints import LoadedCheckpoint
from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, Trunk, row_resolution
from labelmill.pipeline.generator.sampling import latents, to_uint8
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.files import write_atomically
from labelmill.schemas.errors import CheckpointError

Image = NDArray[np.uint8]

CELL_LIMITS = (64, 256)
_BATCH_PIXELS = 2**19
_GAP = 4
_MARGIN = 96
_INK = (40, 40, 40)


@dataclass(frozen=True)
class Description:
    """What `labelmill inspect` prints; `--json` prints the fields."""

    name: str
    format: str
    sha256: str
    resolution: int
    """Of the last block: height and width of square images."""
    height: int
    width: int
    img_channels: int
    """1: gray; 3: RGB."""
    num_ws: int
    z_dim: int
    w_dim: int
    num_classes: int
    """0: unconditional."""
    mapping_layers: int
    mapping_width: int
    """Features of all mapping layers but the last."""
    channels: dict[int, int]
    """Width by resolution."""
    architecture: str
    conv_clamp: float | None
    num_parameters: int
    has_discriminator: bool
    licence: str
    provenance: dict[str, str]
    """Everything else that is known, such as what the file lacked and how it was filled in."""

    def as_json(self) -> dict[str, object]:
        """The fields, for json.dumps."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for people."""
        size = f"{self.width} x {self.height} px (width x height)" if self.height != self.width else f"{self.height} px"
        in_pixels = self.height == self.width == self.resolution
        colours = "gray, " if self.img_channels == 1 else ""
        widths = ", ".join(f"{f'{r} px' if in_pixels else f'b{r}'}: {width}" for r, width in self.channels.items())
        classes = f"{self.num_classes} classes" if self.num_classes else "unconditional"
        layers = f"{self.mapping_layers} mapping layers"
        if self.mapping_width != self.w_dim:
            layers += f" of {self.mapping_width} features"
        clamp = "none" if self.conv_clamp is None else f"{self.conv_clamp:g}"
        facts = {
            "file": self.name,
            "format": self.format,
            "sha256": self.sha256,
            "network": f"StyleGAN2 {self.architecture}, {size}, {colours}{classes}",
            "latents": f"z {self.z_dim}, w {self.w_dim}, {self.num_ws} rows of w, {layers}",
            "channels": widths,
            "clamp": clamp,
            "parameters": f"{self.num_parameters:,}",
            "discriminator": "kept in the file" if self.has_discriminator else "none",
            "licence": self.licence,
            **self.provenance,
        }
        return [f"{key:>14}  {value}" for key, value in facts.items()]


def describe_checkpoint(loaded: LoadedCheckpoint) -> Description:
    """The facts on a checkpoint."""
    spec = loaded.generator.spec
    provenance = dict(loaded.info.provenance)
    return Description(
        name=loaded.info.name,
        format=loaded.info.format,
        sha256=loaded.sha256,
        resolution=spec.resolution,
        height=spec.image_size[0],
        width=spec.image_size[1],
        img_channels=spec.img_channels,
        num_ws=spec.num_ws,
        z_dim=spec.z_dim,
        w_dim=spec.w_dim,
        num_classes=spec.c_dim,
        mapping_layers=spec.mapping_layers,
        mapping_width=spec.w_dim if spec.mapping_width is None else spec.mapping_width,
        channels=dict(spec.channels),
        architecture=spec.architecture,
        conv_clamp=spec.conv_clamp,
        num_parameters=sum(parameter.numel() for parameter in loaded.generator.parameters()),
        has_discriminator=loaded.info.has_discriminator,
        licence=provenance.pop("licence", "not stated in the file"),
        provenance=provenance,
    )


def convert(loaded: LoadedCheckpoint, path: Path) -> None:
    """Write the generator in labelmill's format, float32, with where it came from. Raises CheckpointError."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"--convert {path}: must end in .safetensors, the one format that labelmill writes")
    origin = {
        "converted from": loaded.info.name,
        "original format": loaded.info.format,
        "original sha256": loaded.sha256,
    }
    try:
        save_generator(path, loaded.generator, {**loaded.info.provenance, **origin})
    except OSError as error:
        raise CheckpointError(f"--convert {path}: cannot be written: {error.strerror or error}") from error


def write_sample_sheet(path: Path, generator: Generator, *, psi: float, rows: int = 4, columns: int = 8) -> None:
    """A PNG of the images of seeds 0, 1, ...; of a conditional generator, classes in turn."""
    ws_BLD = _styles(generator, range(rows * columns), psi)
    cells = _synthesised(generator, ws_BLD)
    labels = [f"seed {row * columns}" for row in range(rows)]
    _write(path, _grid([cells[row * columns : (row + 1) * columns] for row in range(rows)], labels))


def write_style_mixing_sheet(
    path: Path, generator: Generator, *, psi: float, donors: int = 6, crossovers: Sequence[int] | None = None
) -> None:
    """A PNG on which row of w to mix from: a line for each crossover.

    First line: the image of seed 0 and the donors, seeds 1, 2, ... Every other line keeps the rows of w below its
    crossover from seed 0 and takes the others from the donor above. `crossovers` are 1 to num_ws - 1, all of them
    when None. Raises CheckpointError for others.
    """
    spec, num_ws = generator.spec, generator.spec.num_ws
    crossovers = range(1, num_ws) if crossovers is None else crossovers
    for crossover in crossovers:
        if not 1 <= crossover < num_ws:
            raise CheckpointError(f"crossover {crossover}: this generator has rows 1 to {num_ws - 1} to mix from")
    ws_BLD = _styles(generator, range(donors + 1), psi)
    base_1LD, donors_BLD = ws_BLD[:1], ws_BLD[1:]
    cells = [_synthesised(generator, ws_BLD)]
    for crossover in crossovers:
        mixed_BLD = torch.cat([base_1LD[:, :crossover].expand(donors, -1, -1), donors_BLD[:, crossover:]], dim=1)
        with repeatable_kernels():
            trunk = generator.trunk(base_1LD, crossover)
        cells.append([cells[0][0], *_synthesised(generator, mixed_BLD, trunk)])
    labels = ["donors", *(_crossover_label(crossover, spec) for crossover in crossovers)]
    _write(path, _grid(cells, labels))


def _crossover_label(crossover: int, spec: GeneratorSpec) -> str:
    """The row and what it styles: the resolution, or of rectangular images the block."""
    if crossover == spec.num_ws - 1:
        return f"row {crossover}: RGB"
    height, width = spec.const_size
    resolution = row_resolution(crossover)
    return f"row {crossover}: " + (f"{resolution} px" if height == width == 4 else f"b{resolution}")


def _styles(generator: Generator, seeds: Sequence[int], psi: float) -> Tensor:
    """Truncated ws [B, num_ws, w_dim] of seeds."""
    spec, device = generator.spec, generator.mapping.w_avg.device
    z_BZ = latents(seeds, spec.z_dim).to(device)
    ids = torch.arange(len(seeds), device=device) % max(1, spec.c_dim)
    classes_BZ = torch.nn.functional.one_hot(ids, spec.c_dim).float() if spec.c_dim else None
    with repeatable_kernels():
        return generator.truncate(generator.map(z_BZ, classes_BZ), psi)


def _synthesised(generator: Generator, ws_BLD: Tensor, trunk: Trunk | None = None) -> list[Image]:
    """Images, gray ones as RGB, resized to cells that can be looked at; `trunk` is what they all share."""
    height, width = generator.spec.image_size
    longer = max(height, width)
    scale = min(max(longer, CELL_LIMITS[0]), CELL_LIMITS[1]) / longer
    cell_size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    images: list[Image] = []
    for part_BLD in ws_BLD.split(max(1, _BATCH_PIXELS // (height * width))):
        shared = None if trunk is None else trunk.repeat_interleave(len(part_BLD))
        with repeatable_kernels():
            synthesis = generator.synthesize(part_BLD, trunk=shared)
        for image_HWC in to_uint8(synthesis.images_BCHW).cpu().numpy():
            cell = cv2.resize(np.repeat(image_HWC, 3 // image_HWC.shape[2], axis=2), cell_size, interpolation=method)
            images.append(np.asarray(cell, dtype=np.uint8))
    return images


def _grid(cells: Sequence[Sequence[Image]], labels: Sequence[str]) -> Image:
    """Lines of equal images on white, a label before each line."""
    height, width = cells[0][0].shape[:2]
    down, across = height + _GAP, width + _GAP
    sheet = np.full((len(cells) * down + _GAP, _MARGIN + len(cells[0]) * across + _GAP, 3), 255, dtype=np.uint8)
    for row, (line, label) in enumerate(zip(cells, labels, strict=True)):
        top = row * down + _GAP
        cv2.putText(sheet, label, (_GAP, top + height // 2 + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _INK, 1, cv2.LINE_AA)
        for column, image in enumerate(line):
            left = _MARGIN + column * across
            sheet[top : top + height, left : left + width] = image
    return sheet


def _write(path: Path, sheet: Image) -> None:
    try:
        write_atomically(path, encode_picture(sheet))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error
