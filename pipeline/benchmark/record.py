"""Records of measured rows: how a row is kept, and whether it still counts.

A row counts as long as its key is the one that it would get now: a hash of whatever decides its numbers, which is
settings, libraries, weights, and the code that the measuring functions reach. What only prints is no part of it.
"""

import hashlib
import inspect
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from labelmill.pipeline.benchmark.reach import Place, Reach
from labelmill.pipeline.generator.checkpoints.source import read_bytes
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.store.store import Store
from labelmill.schemas.fingerprint import canonical_json

_ROOT = Path(__file__).resolve().parents[2]
_Row = TypeVar("_Row", bound=BaseModel)
Measuring = Callable[..., Any]
"""A function or class of the product."""


@dataclass(frozen=True)
class Machine:
    """What rows are measured on."""

    device: str
    threads: int
    versions: dict[str, str]
    """Of Python and libraries."""

    @classmethod
    def here(cls, device: torch.device, threads: int, libraries: Iterable[str]) -> "Machine":
        """This one."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
        versions = {"python": platform.python_version(), **{library: version(library) for library in libraries}}
        return cls(name, threads, versions)


def read_row(store: Store, path: str, kind: type[_Row], **expected: object) -> _Row | None:
    """The row at a path; None if there is none, it is damaged, or a field is not as expected, such as its key."""
    try:
        row = kind.model_validate_json(store.read(path))
    except (FileNotFoundError, ValidationError):
        return None
    return row if all(getattr(row, name) == value for name, value in expected.items()) else None


def write_row(store: Store, path: str, row: BaseModel) -> None:
    """Keep a finished row, atomically."""
    store.replace(path, row.model_dump_json(indent=1).encode())


def row_key(measuring: Iterable[Measuring], sampler: Sampler, **values: object) -> str:
    """A hash of what a row is measured with.

    measuring: what measures rows. sampler: that makes their images. values: whatever else decides, as JSON values.
    """
    content = {"code": code_digest(*measuring), "images": _sampled_by(sampler), **values}
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _sampled_by(sampler: Sampler) -> dict[str, object]:
    return {
        "network": repr(sampler.generator.spec),
        "weights": network_sha256(sampler.generator),
        "config": sampler.config.model_dump(mode="json"),
        "numerics": sampler.numerics.model_dump(mode="json"),
    }


def network_sha256(network: nn.Module) -> str:
    """A hash of a network's numbers, whichever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def bundled_weights_sha256(opener: Measuring) -> list[str]:
    """Hashes of the weights that are bundled beside the module of the function that opens them."""
    folder = _file_of(opener).parent / "bundled"
    found = [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")]
    assert found, f"{folder} holds no weights"
    return sorted(found)


@cache
def code_digest(*measuring: Measuring) -> str:
    """A hash of the code that functions and classes reach, as it is at the first call: an edit made meanwhile changes
    nothing of what runs."""
    return reach_of(*measuring).digest()


def reach_of(*measuring: Measuring) -> Reach:
    """The code that decides what they measure. Where rows are stored, how keys are made and where files are read from
    decide no number."""
    return Reach(_ROOT, map(_place, measuring), without=[_place(each) for each in (Store, row_key, read_bytes)])


def _place(definition: Measuring) -> Place:
    return _file_of(definition), definition.__qualname__.partition(".")[0]


def _file_of(definition: Measuring) -> Path:
    return Path(inspect.getfile(definition)).resolve()
