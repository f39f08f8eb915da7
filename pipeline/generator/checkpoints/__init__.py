"""Generators from files: one module a format, chosen by `open_checkpoint` from the file's first bytes and content.

Nothing in a file is ever executed, and what is allocated stays in proportion to the file.
"""

import hashlib

import torch

from labelmill.pipeline.generator.checkpoints.assemble import ReadNetworks
from labelmill.pipeline.generator.checkpoints.contents import Contents, list_contents
from labelmill.pipeline.generator.checkpoints.inert import (
    FETCH_AGAIN,
    Budget,
    Constructor,
    Global,
    Record,
    UnreadableError,
    Unusable,
    text_of,
)
from labelmill.pipeline.generator.checkpoints.native import CheckpointInfo, LoadedCheckpoint, is_native, parse_generator
from labelmill.pipeline.generator.checkpoints.no_generator import NoGeneratorError
from labelmill.pipeline.generator.checkpoints.numpy_archive import is_numpy_archive, read_numpy_archive
from labelmill.pipeline.generator.checkpoints.restricted import read_pickle
from labelmill.pipeline.generator.checkpoints.safetensors_file import is_safetensors, read_safetensors
from labelmill.pipeline.generator.checkpoints.source import bundled_names, read_bytes
from labelmill.pipeline.generator.checkpoints.tensorflow import is_tensorflow, read_tensorflow
from labelmill.pipeline.generator.checkpoints.tensors import BASIC_CONSTRUCTORS
from labelmill.pipeline.generator.checkpoints.torch_archive import (
    STREAM_MAGIC,
    ZIP_MAGIC,
    load_from_bytes,
    read_saved,
)
from labelmill.pipeline.generator.checkpoints.torch_networks import read_torch_networks
from labelmill.schemas.errors import CheckpointError
from labelmill.schemas.secrets import plain_address

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "LoadedCheckpoint",
    "bundled_names",
    "open_checkpoint",
    "parse_checkpoint",
    "parse_contents",
]

_PICKLE_MAGIC = b"\x80"
# A dictionary, a tuple, a list, a name.
_OLD_PICKLE_STARTS = (b"(", b"}", b"]", b"c")
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_LISTED_NAMES = 3


def open_checkpoint(ref: str, device: str | torch.device = "cpu", *, discriminator: bool = False) -> LoadedCheckpoint:
    """Load a generator from `bundled:NAME`, a path or a URL onto a device.

    Works: pickles of stylegan2-ada-pytorch, of the stylegan3 repository (StyleGAN2 configurations) and of
    TensorFlow StyleGAN2 and StyleGAN2-ADA; whole modules and state dicts (.pt, .pkl, .safetensors, .npz) under the
    names of NVIDIA, rosinality, BasicSR, MMGeneration, GenForce and Hammer; labelmill's .safetensors.
    `discriminator` keeps the file's, if it has one. Raises CheckpointError, which names the file, what was found
    and what would work.
    """
    loaded = parse_checkpoint(plain_address(ref), read_bytes(ref), discriminator=discriminator)
    loaded.generator.to(device)
    if loaded.discriminator is not None:
        loaded.discriminator.to(device)
    return loaded


def parse_checkpoint(name: str, content: bytes, *, discriminator: bool = False) -> LoadedCheckpoint:
    """Load a generator from a file's content onto the CPU; `name` is for messages. Raises CheckpointError."""
    try:
        _refuse_non_checkpoints(content)
        if is_safetensors(content) and is_native(content):
            return parse_generator(name, content)
        networks = _read_foreign(content, discriminator)
    except UnreadableError as error:
        raise CheckpointError(f"{name}: {error.sentence()}") from error
    info = CheckpointInfo(name, networks.format, networks.provenance, networks.has_discriminator)
    digest = hashlib.sha256(content).hexdigest()
    return LoadedCheckpoint(networks.generator, digest, info, networks.discriminator)


def parse_contents(name: str, content: bytes) -> Contents:
    """All tensors of a file, by their paths, whatever network they are of; `name` is for messages.

    Raises CheckpointError.
    """
    try:
        _refuse_non_checkpoints(content)
        return list_contents(_read_root(content, Budget.of(len(content))))
    except UnreadableError as error:
        raise CheckpointError(f"{name}: {error.sentence()}") from error


def _read_foreign(content: bytes, discriminator: bool) -> ReadNetworks:
    budget, num_bytes = Budget.of(len(content)), len(content)
    root = _read_root(content, budget)
    if is_tensorflow(root):
        networks = read_tensorflow(root, num_bytes, discriminator=discriminator)
    else:
        contents = list_contents(root)
        if not (contents.keys or contents.modules or contents.entries.keys() - {""}):
            raise UnreadableError(f"holds {_kind(root)}, not a checkpoint{_named(budget)}")
        try:
            networks = read_torch_networks(contents, num_bytes, discriminator=discriminator)
        except NoGeneratorError as error:
            raise UnreadableError(f"{error}{_named(budget)}", error.advice) from error
    if budget.unknown_names:
        networks.provenance["other names"] = f"{_listed(budget)}: stay names, nothing of them was executed"
    return networks


def _kind(root: object) -> str:
    if isinstance(root, Unusable):
        return f"a value that {root.reason}"
    return text_of(root) if isinstance(root, Record | Global) else f"a {type(root).__name__}"


def _named(budget: Budget) -> str:
    """The end of a sentence on a file without a generator, for the names of code in it."""
    if not budget.unknown_names:
        return ""
    return f"; it names {_listed(budget)}, which no generator needs: refused, nothing was executed"


def _listed(budget: Budget) -> str:
    names = [repr(name) for name in budget.unknown_names]
    more = f" and {len(names) - _MAX_LISTED_NAMES} more" if len(names) > _MAX_LISTED_NAMES else ""
    return ", ".join(names[:_MAX_LISTED_NAMES]) + more


def _read_root(content: bytes, budget: Budget) -> object:
    """The object that a file holds, as inert records and views."""
    view = memoryview(content)
    if is_safetensors(content):
        return read_safetensors(view)
    if content.startswith(ZIP_MAGIC) and is_numpy_archive(view):
        return read_numpy_archive(view)
    if content.startswith((ZIP_MAGIC, STREAM_MAGIC)):
        return read_saved(view, budget)
    if content.startswith(_OLD_PICKLE_STARTS) and content.endswith(b"."):
        raise UnreadableError(
            "a pickle of protocol 0 or 1", "Save it again with a newer one: pickle.dump(networks, file, protocol=4)"
        )
    if not content.startswith(_PICKLE_MAGIC):
        raise UnreadableError(
            "not a checkpoint: it is neither a pickle (.pkl), a torch file (.pt), an .npz archive nor .safetensors",
            FETCH_AGAIN,
        )
    constructors: dict[str, Constructor] = {
        **BASIC_CONSTRUCTORS,
        "torch.storage._load_from_bytes": load_from_bytes(budget),
    }
    return read_pickle(view, constructors, budget)


def _refuse_non_checkpoints(content: bytes) -> None:
    """Raises UnreadableError for what is commonly found under a checkpoint's name."""
    if not content:
        raise UnreadableError("an empty file", FETCH_AGAIN)
    start = content[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UnreadableError("a Git LFS pointer, not the file itself; run `git lfs pull` where it came from", "")
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        raise UnreadableError(
            "an HTML page saved under a checkpoint's name (a login, quota or error page); fetch the file again", ""
        )
    if start.startswith(b"<?xml"):
        raise UnreadableError("an XML document, such as a storage service's error; fetch the file again", "")
    if content.startswith(_GZIP_MAGIC):
        raise UnreadableError("compressed with gzip; unpack it first", "")
