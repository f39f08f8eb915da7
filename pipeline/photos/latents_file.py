"""The file of one photo's latents: what commits them. Nothing in it is executed.

Shape suffixes: L rows of w, D style.
"""

from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.safetensors_json import (
    DamagedFileError,
    ForeignFileError,
    load_with_json,
    save_with_json,
)
from labelmill.schemas.errors import OutputError
from labelmill.schemas.inversion import InvertedPhoto

LATENTS = "latents"


def latents_path(output: Path, name: str) -> Path:
    """Where an output keeps a photo's latents. name: the photo's path below its folder, without ending."""
    return output / LATENTS / f"{name}.safetensors"


def write_latents(output: Path, about: InvertedPhoto, ws: dict[str, Tensor]) -> None:
    """ws: [L, D] by space."""
    tensors = {space: ws_LD.detach().float().cpu().contiguous() for space, ws_LD in sorted(ws.items())}
    write_atomically(latents_path(output, about.name), save_with_json(tensors, about.model_dump_json()))


def read_latents(output: Path, name: str, shape: tuple[int, int]) -> tuple[InvertedPhoto, dict[str, Tensor]] | None:
    """What `write_latents` wrote, None where nothing is. shape: L and D. Raises OutputError for a damaged file."""
    path = latents_path(output, name)
    try:
        values, tensors = load_with_json(path.read_bytes())
        about = InvertedPhoto.model_validate(values)
    except FileNotFoundError:
        return None
    except (OSError, DamagedFileError, ForeignFileError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise OutputError(
            f"{path}: cannot be used ({reason}); delete it and rerun to invert the photo again"
        ) from error
    if tensors.keys() != about.psnr_db.keys() or any(tensor.shape != shape for tensor in tensors.values()):
        raise OutputError(f"{path}: does not hold latents of this generator; delete it and rerun")
    return about, dict(tensors)
