"""Generators from files: one module a format, chosen by `open_checkpoint` from the file's first bytes and content.

Nothing in a file is ever executed, and what is allocated stays in proportion to the file.
"""

import hashlib

import torch

from pipeline.generator.checkpoints.assemble import ReadNetworks
from pipeline.generator.checkpoints.inert import Budget, Constructor, UnreadableError
from pipeline.generator.checkpoints.native import CheckpointInfo, LoadedCheckpoint, parse_generator
from pipeline.generator.checkpoints.nvidia import PERSISTENT, is_nvidia, read_nvidia
from pipeline.generator.checkpoints.restricted import read_pickle
from pipeline.generator.checkpoints.rosinality import is_rosinality, read_rosinality
from pipeline.generator.checkpoints.source import bundled_names, display_name, read_bytes
from pipeline.generator.checkpoints.tensorflow import NETWORK, is_tensorflow, read_tensorflow
from pipeline.generator.checkpoints.tensors import BASIC_CONSTRUCTORS, record
from pipeline.generator.checkpoints.torch_archive import (
    STREAM_MAGIC,
    ZIP_MAGIC,
    load_from_bytes,
    read_saved,
)
from schemas.errors import CheckpointError

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "LoadedCheckpoint",
    "bundled_names",
    "open_checkpoint",
    "parse_checkpoint",
]

_PICKLE_MAGIC = b"\x80"
_GZIP_MAGIC = b"\x1f\x8b"


def open_checkpoint(ref: str, device: str | torch.device = "cpu", *, discriminator: bool = False) -> LoadedCheckpoint:
    """Load a generator from `bundled:NAME`, a path or a URL onto a device.

    Works: pickles of stylegan2-ada-pytorch, of the stylegan3 repository (StyleGAN2 configurations) and of
    TensorFlow StyleGAN2 and StyleGAN2-ADA, rosinality's .pt files and state dicts, labelmill's .safetensors.
    `discriminator` keeps the file's, if it has one. Raises CheckpointError, which names the file, what was found
    and what would work.
    """
    loaded = parse_checkpoint(display_name(ref), read_bytes(ref), discriminator=discriminator)
    loaded.generator.to(device)
    if loaded.discriminator is not None:
        loaded.discriminator.to(device)
    return loaded


def parse_checkpoint(name: str, content: bytes, *, discriminator: bool = False) -> LoadedCheckpoint:
    """Load a generator from a file's content onto the CPU; `name` is for messages. Raises CheckpointError."""
    try:
        _refuse_non_checkpoints(content)
        if _is_safetensors(content):
            return parse_generator(name, content)
        networks = _read_foreign(content, discriminator)
    except UnreadableError as error:
        raise CheckpointError(f"{name}: {error}") from error
    info = CheckpointInfo(name, networks.format, networks.provenance, networks.has_discriminator)
    digest = hashlib.sha256(content).hexdigest()
    return LoadedCheckpoint(networks.generator, digest, info, networks.discriminator)


def _read_foreign(content: bytes, discriminator: bool) -> ReadNetworks:
    root, num_bytes = _read_root(content), len(content)
    if is_nvidia(root):
        return read_nvidia(root, num_bytes, discriminator=discriminator)
    if is_tensorflow(root):
        return read_tensorflow(root, num_bytes, discriminator=discriminator)
    if is_rosinality(root):
        return read_rosinality(root, num_bytes, discriminator=discriminator)
    raise UnreadableError(f"holds a {type(root).__name__}, not a checkpoint of a kind that works")


def _read_root(content: bytes) -> object:
    """The object that a pickle or torch file holds, as inert records and views."""
    view, budget = memoryview(content), Budget()
    if content.startswith((ZIP_MAGIC, STREAM_MAGIC)):
        return read_saved(view, budget)
    if not content.startswith(_PICKLE_MAGIC):
        raise UnreadableError("not a checkpoint: it is neither a pickle (.pkl), a torch file (.pt) nor .safetensors")
    constructors: dict[str, Constructor] = {
        **BASIC_CONSTRUCTORS,
        "torch.storage._load_from_bytes": load_from_bytes(budget),
        "dnnlib.util.EasyDict": BASIC_CONSTRUCTORS["collections.OrderedDict"],
        PERSISTENT: record(PERSISTENT),
        NETWORK: record(NETWORK),
    }
    return read_pickle(view, constructors, budget)


def _is_safetensors(content: bytes) -> bool:
    """The format begins with its header's length in 8 bytes and the header, which is JSON."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") < 2**32


def _refuse_non_checkpoints(content: bytes) -> None:
    """Raises UnreadableError for what is commonly found under a checkpoint's name."""
    if not content:
        raise UnreadableError("an empty file. Fetch it again")
    start = content[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UnreadableError("a Git LFS pointer, not the file itself; run `git lfs pull` where it came from")
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        raise UnreadableError(
            "an HTML page saved under a checkpoint's name (a login, quota or error page); fetch the file again"
        )
    if start.startswith(b"<?xml"):
        raise UnreadableError("an XML document, such as a storage service's error; fetch the file again")
    if content.startswith(_GZIP_MAGIC):
        raise UnreadableError("compressed with gzip; unpack it first")
