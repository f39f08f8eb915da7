"""Judges of mask quality on the avatars domain: two networks per resolution, trained on exact renders, bundled with
their cards.

They say which class each pixel of a portrait has, generated ones included, for which no exact mask exists. How
far two such judges of different build agree bounds what any comparison with one of them can show.

Shape suffixes: B batch, C channels, H height, W width, N classes, D features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.avatars.renders import RESOLUTION
from labelmill.pipeline.benchmark.oracle.networks import ARCHITECTURES, DilatedNet, OracleOutput, UNet
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.safetensors_json import load_with_json, save_with_json
from labelmill.pipeline.training.half_weights import half_weights, load_half_weights
from labelmill.schemas.errors import LabelmillError

OracleName = Literal["a", "b"]

FORMAT = "labelmill-oracle"
VERSION = 1
_BUNDLED_FOLDER = Path(__file__).resolve().parent / "bundled"
_BATCH_SIZE = 32
"""Images at once, always: the size of a batch chooses kernels and thereby bits."""


class OracleError(LabelmillError):
    """An oracle's weights or the images given to it are unusable."""


@dataclass(frozen=True)
class OracleInfo:
    """What an oracle's file says of itself."""

    architecture: str
    """A key of ARCHITECTURES."""
    classes: tuple[str, ...]
    """Names by class id."""
    resolution: int
    """Height and width of the images that it looks at."""
    provenance: dict[str, str]
    """Free text by key: data, steps, figures, licence, attribution."""


def bundled_resolutions() -> tuple[int, ...]:
    """Resolutions for which there are judges."""
    return tuple(sorted(int(path.stem.split("-")[2]) for path in _BUNDLED_FOLDER.glob("oracle-b-*.safetensors")))


def open_oracle(name: OracleName, resolution: int, device: str | torch.device = "cpu") -> Oracle:
    """The bundled oracle "a" (a U-Net) or "b" (a dilated network) for images of a resolution. Raises OracleError on
    other names and resolutions."""
    if name not in get_args(OracleName):
        raise OracleError(f"no oracle {name!r}; there are {' and '.join(map(repr, get_args(OracleName)))}")
    if resolution not in bundled_resolutions():
        sizes = " and ".join(f"{size} px" for size in bundled_resolutions())
        raise OracleError(f"no oracle for images of {resolution} px; there are some for {sizes}")
    return load_oracle(_BUNDLED_FOLDER / oracle_file(name, resolution), device)


def oracle_file(name: OracleName, resolution: int) -> str:
    """Name of an oracle's file."""
    return f"oracle-{name}-{resolution}.safetensors"


def load_oracle(path: Path, device: str | torch.device = "cpu") -> Oracle:
    """An oracle from a file that `save_oracle` wrote. Raises OracleError, which names it; executes nothing."""
    info, tensors = _read(path)
    network = build_network(info)
    try:
        load_half_weights(network, tensors)
    except ValueError as error:
        raise OracleError(
            f"{path}: not the weights of a {info.architecture} oracle ({error}); install again"
        ) from error
    return Oracle(network, info, device)


def build_network(info: OracleInfo) -> UNet | DilatedNet:
    """The untrained network of an architecture."""
    return ARCHITECTURES[info.architecture](len(info.classes), info.resolution)


def save_oracle(path: Path, network: UNet | DilatedNet, info: OracleInfo) -> None:
    """Write weights as float16 with what they are, atomically."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": info.architecture,
        "classes": list(info.classes),
        "resolution": info.resolution,
        "provenance": info.provenance,
    }
    write_atomically(path, save_with_json(half_weights(network), json.dumps(header, sort_keys=True)))


class Oracle:
    """A trained network, float32. Its answer to an image has the same bits in any batch and with any threads."""

    def __init__(self, network: UNet | DilatedNet, info: OracleInfo, device: str | torch.device = "cpu") -> None:
        self.device, self.info = torch.device(device), info
        self.network = network.eval().requires_grad_(False).to(self.device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id; 0 is the background, all others are foreground."""
        return self.info.classes

    def segment(self, images_BCHW: Tensor) -> Tensor:
        """The likeliest class of each pixel, uint8 [B, R, R], on the oracle's device.

        images float32 [B, 3, R, R] RGB of the oracle's resolution, nominally in [-1, 1], where they are cut off as in
        a saved file. Raises OracleError on other shapes.
        """
        return torch.cat([sight.logits_BNHW.argmax(dim=1).byte() for sight in self._look(images_BCHW)])

    def probabilities(self, images_BCHW: Tensor) -> Tensor:
        """The probability of each class, float32 [B, N, R, R]. Takes and raises what `segment` does."""
        return torch.cat([functional.softmax(sight.logits_BNHW, dim=1) for sight in self._look(images_BCHW)])

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Means over each picture of inner activations, float32 [B, D]. Takes and raises what `segment` does."""
        return torch.cat([sight.features_BD for sight in self._look(images_BCHW)])

    def _look(self, images_BCHW: Tensor) -> Iterator[OracleOutput]:
        shape, side = tuple(images_BCHW.shape), self.info.resolution
        if len(shape) != 4 or shape[0] == 0 or shape[1:] != (3, side, side):
            raise OracleError(
                f"images of shape {list(shape)}; this oracle takes [B, 3, {side}, {side}] with B at least 1"
            )
        for part_BCHW in images_BCHW.split(_BATCH_SIZE):
            num = len(part_BCHW)
            padded_BCHW = torch.zeros(_BATCH_SIZE, *shape[1:], device=self.device)
            padded_BCHW[:num] = part_BCHW.detach().to(self.device, torch.float32).clamp(-1, 1)
            with repeatable_kernels():
                sight = self.network(padded_BCHW)
            yield OracleOutput(sight.logits_BNHW[:num], sight.features_BD[:num])


def _read(path: Path) -> tuple[OracleInfo, dict[str, Tensor]]:
    try:
        header, tensors = load_with_json(path.read_bytes())
        found = header["format"], header["version"]
        resolution = header.get("resolution", RESOLUTION)  # which the first oracles' files do not say
        info = OracleInfo(header["architecture"], tuple(header["classes"]), resolution, dict(header["provenance"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OracleError(f"{path}: not an oracle's weights ({error}); install labelmill again") from error
    if found != (FORMAT, VERSION) or info.architecture not in ARCHITECTURES:
        raise OracleError(f"{path}: holds {found} {info.architecture!r}; this labelmill reads {(FORMAT, VERSION)}")
    return info, tensors
