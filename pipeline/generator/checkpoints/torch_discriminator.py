"""The discriminator of a file of torch's tensors, under NVIDIA's names or rosinality's, wherever it lies in it."""

from collections.abc import Mapping

from labelmill.pipeline.generator.checkpoints.assemble import build_discriminator
from labelmill.pipeline.generator.checkpoints.contents import Contents, Module, is_averaged
from labelmill.pipeline.generator.checkpoints.named_tensors import NamedTensor
from labelmill.pipeline.generator.checkpoints.nvidia import conv_clamp_of, rescaling_of
from labelmill.pipeline.generator.checkpoints.rosinality import DISCRIMINATOR_MARK, discriminator_tensors
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor
from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.networks import GeneratorSpec

_NVIDIA_DISCRIMINATOR_MARK = "b4.fc.weight"


def find_discriminator(contents: Contents) -> str | None:
    """The path of a tensor that only a discriminator has: of one that is not averaged, the least deep."""
    marks = (DISCRIMINATOR_MARK, _NVIDIA_DISCRIMINATOR_MARK)
    paths = [path for path in contents.entries if path.endswith(marks)]
    usable = [path for path in paths if any(path == mark or path.endswith(f".{mark}") for mark in marks)]
    return min(usable, key=lambda path: (is_averaged(path), path.count("."), path), default=None)


def read_discriminator(
    contents: Contents, path: str, spec: GeneratorSpec, default_clamp: float | None, num_file_bytes: int
) -> Discriminator:
    """The discriminator that a path of `find_discriminator` belongs to. Raises UnreadableError."""
    is_nvidia = path.endswith(_NVIDIA_DISCRIMINATOR_MARK)
    prefix = path.removesuffix(_NVIDIA_DISCRIMINATOR_MARK if is_nvidia else DISCRIMINATOR_MARK)
    owner = contents.entries[path].owner
    entries = {name: entry for name, entry in contents.behind(prefix).items() if entry.owner == owner}
    state = {name: entry.stored(name) for name, entry in entries.items()}
    modules = contents.modules_behind(prefix)
    group_size = modules["b4.mbstd"].state.get("group_size", 4) if "b4.mbstd" in modules else 4
    return build_discriminator(
        _nvidia_discriminator_tensors(state, modules) if is_nvidia else discriminator_tensors(state),
        spec=spec,
        conv_clamp=conv_clamp_of(modules, default_clamp),
        group_size=group_size if isinstance(group_size, int) and group_size > 0 else 4,
        num_file_bytes=num_file_bytes,
    )


def _nvidia_discriminator_tensors(
    state: Mapping[str, StoredTensor], modules: Mapping[str, Module]
) -> dict[str, NamedTensor]:
    return {name: NamedTensor.of(stored, adjust=rescaling_of(name, name, modules)) for name, stored in state.items()}
