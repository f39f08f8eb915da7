"""What a training remembers: weights, moments and counters, in small files that appear all at once.

A state is a folder named after its step. It is written under a hidden name and renamed when complete, so a kill
at any moment leaves the previous state, and no file passes 16 MiB at the sizes labelmill trains. Its progress file
holds the SHA-256 of each other file. One training at a time works in a folder: `locked` holds it.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from labelmill.pipeline.process.files import write_atomically
from labelmill.schemas.errors import LabelmillError, LockedError

PROGRESS_FILE = "progress.json"
GENERATOR_FILE = "generator.safetensors"
"""What a generator's training leaves beside its states: the one kind that can start again from its weights."""
_LOCK_FILE = ".lock"
_HASHES = "sha256"
"""Of the progress file: the other files' hashes, by name."""


class TrainingStateError(LabelmillError):
    """A saved training cannot be continued as asked."""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep other trainings out of a folder. The lock goes with the process, however it ends.

    Raises LockedError where another one is at work.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / _LOCK_FILE).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise LockedError(
                f"{output}: another training is running there (process {stream.read().strip() or 'unknown'}); wait for "
                f"it, stop it, or choose another output"
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def write_state(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], progress: Mapping[str, object]
) -> None:
    """Publish folder/<step>: one safetensors file a name, progress.json; older states are removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".writing-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    hashes: dict[str, str] = {}
    for name, group in tensors.items():
        content = save({key: tensor.detach().cpu().contiguous() for key, tensor in group.items()})
        hashes[name] = hashlib.sha256(content).hexdigest()
        write_atomically(temporary / f"{name}.safetensors", content)
    write_atomically(temporary / PROGRESS_FILE, json.dumps({**progress, _HASHES: hashes}, indent=1).encode())
    target = folder / f"{step:09d}"
    if (target / PROGRESS_FILE).is_file():  # this very step is there already
        shutil.rmtree(temporary)
        return
    shutil.rmtree(target, ignore_errors=True)  # a copy that was cut short
    temporary.rename(target)
    # Older states, and what a kill left of writing or of removing one.
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def latest_state(folder: Path) -> Path | None:
    """The newest complete state in a folder."""
    states = _states(folder)
    return states[-1] if states else None


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if (path / PROGRESS_FILE).is_file())


def read_progress(state: Path) -> dict[str, object]:
    """The counters of a state. Raises TrainingStateError when they are not JSON."""
    try:
        progress = json.loads((state / PROGRESS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise _damaged(state / PROGRESS_FILE, str(error)) from error
    if not isinstance(progress, dict) or not isinstance(progress.get(_HASHES, {}), dict):
        raise _damaged(state / PROGRESS_FILE, "not what a training writes")
    return progress


def _damaged(path: Path, reason: str) -> TrainingStateError:
    state = path.parent
    weights = state.parent.parent / GENERATOR_FILE
    start = f" with initialise_from: {weights}, or without it" if weights.exists() else ""
    return TrainingStateError(f"{path}: damaged ({reason}). Restore it, or remove {state} and start again{start}")


def read_tensors(state: Path, name: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors stored under a name. Raises TrainingStateError unless the file is as it was written, and its tensors
    are named and shaped as those of `like`, if that is given."""
    path = state / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    expected = read_progress(state).get(_HASHES)
    if isinstance(expected, dict) and hashlib.sha256(content).hexdigest() != expected.get(name):
        raise _damaged(path, "its SHA-256 is not the one that was written with it")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error
    if like is not None:
        odd = sorted(key for key in tensors.keys() | like.keys() if _shape(tensors, key) != _shape(like, key))
        if odd:
            weights = state.parent.parent / GENERATOR_FILE
            start = f" with initialise_from: {state.parent} to keep the weights" if weights.exists() else ""
            raise TrainingStateError(
                f"{path}: does not fit this training in {len(odd)} tensors, the first is {odd[0]!r}; another version "
                f"of labelmill saved it. Train into another output{start}, or finish with that version"
            )
    return tensors


def _shape(tensors: Mapping[str, Tensor], key: str) -> torch.Size | None:
    return tensors[key].shape if key in tensors else None
