"""A picture of what a generator makes: samples, and how its colours move under style mixing.

Shape suffixes: B batch, L rows of w, D style, Z latent.
"""

from pathlib import Path

import numpy as np
import torch

from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import to_uint8
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.pipeline.process.files import write_atomically

SHEET_ROWS, SHEET_COLUMNS = 8, 12


@torch.no_grad()
def write_sheet(path: Path, generator: Generator, psi: float = 1.0) -> None:
    """A PNG of seeds 0, 1, ... : samples in the upper half, below it style mixing.

    Each lower row keeps one image's rows of w below 4 and takes the others from the images of the first row.
    """
    spec = generator.spec
    count = SHEET_ROWS * SHEET_COLUMNS // 2
    z_BZ = np.stack([np.random.RandomState(seed).randn(spec.z_dim) for seed in range(count)])
    device = next(generator.parameters()).device
    classes = torch.eye(spec.c_dim, device=device)[torch.arange(count) % spec.c_dim] if spec.c_dim else None
    ws_BLD = generator.truncate(generator.map(torch.from_numpy(z_BZ).float().to(device), classes), psi)
    base_BLD = ws_BLD[SHEET_COLUMNS : SHEET_COLUMNS + count // SHEET_COLUMNS].repeat_interleave(SHEET_COLUMNS, 0)
    donor_BLD = ws_BLD[:SHEET_COLUMNS].repeat(count // SHEET_COLUMNS, 1, 1)
    crossover = min(4, spec.num_ws - 2)
    mixed_BLD = torch.cat([base_BLD[:, :crossover], donor_BLD[:, crossover:]], dim=1)
    images = [generator.synthesize(ws).images_BCHW for ws in (ws_BLD, mixed_BLD)]
    pixels = to_uint8(torch.cat(images)).cpu().numpy()
    size = spec.resolution
    grid = pixels.reshape(SHEET_ROWS, SHEET_COLUMNS, size, size, -1).transpose(0, 2, 1, 3, 4)
    write_atomically(path, encode_picture(grid.reshape(SHEET_ROWS * size, SHEET_COLUMNS * size, -1)))
