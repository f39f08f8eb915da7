"""Labels4Free's own checkpoints: the alpha network in a file of torch's, wherever it lies in it.

The authors' code names the same tensors in two ways. It calls the network after the last step `bg_extractor_ema`, and
labels with that, as this does.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from labelmill.pipeline.generator.checkpoints import parse_contents
from labelmill.pipeline.generator.checkpoints.contents import Contents, Entry, is_averaged
from labelmill.pipeline.generator.checkpoints.inert import UnreadableError, text_of
from labelmill.pipeline.generator.checkpoints.source import located_reference, read_bytes
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.alpha_network.labels4free_network import NUM_RESOLUTIONS, Labels4FreeNetwork
from labelmill.schemas.errors import CheckpointError, ConfigError
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig
from labelmill.schemas.secrets import plain_address

_READINGS = range(2 * NUM_RESOLUTIONS)
_MERGES = range(NUM_RESOLUTIONS - 2)
_MARK = "conv_n.weight"
_MAX_CANDIDATES = 64
_NAMINGS: tuple[dict[str, str], ...] = (
    {f"conv_fns{index % 2}.{index // 2}": f"reading.{index}" for index in _READINGS}
    | {f"conv_merge_fns.{index}": f"merging.{index}" for index in _MERGES}
    | {"conv_n": "outer"},
    {f"conv{index + 1}": f"reading.{index}" for index in _READINGS}
    | {f"conv_next{index + 1 if index else ''}": f"merging.{index}" for index in _MERGES}
    | {"conv_n": "outer"},
)
"""Our names of the convolutions by theirs."""


def read_weights(config: AlphaNetworkConfig) -> bytes:
    """The content of the file that `weights` names. Raises CheckpointError."""
    assert config.weights is not None
    try:
        return read_bytes(located_reference(config.weights, config.folder))
    except CheckpointError as error:
        raise CheckpointError(f"labeler.weights: {error}") from error


def weights_sha256(content: bytes) -> str:
    """SHA-256 of the file, hex."""
    return hashlib.sha256(content).hexdigest()


def parse_weights(content: bytes, config: AlphaNetworkConfig, spec: GeneratorSpec) -> tuple[Labels4FreeNetwork, str]:
    """The network in a file, on the CPU, and its place there. Executes nothing of the file.

    Raises CheckpointError for a file that holds none, ConfigError for one that reads other features than this
    generator's.
    """
    name = f"labeler.weights: {plain_address(config.weights or '')}"
    network = Labels4FreeNetwork(spec)
    found = _choose(parse_contents(name, content), name)
    try:
        stored = {ours: found.state[theirs].stored(theirs) for theirs, ours in found.names.items()}
        _check_shapes(stored, network, name)
        return network.with_tensors({ours: tensor.to_float32() for ours, tensor in stored.items()}), found.title
    except UnreadableError as error:
        raise CheckpointError(f"{name}: its {found.title}: {error.sentence()}") from error


@dataclass(frozen=True)
class _Found:
    """An alpha network in the file."""

    prefix: str
    state: Mapping[str, Entry]
    """Its tensors by their names."""
    names: Mapping[str, str]
    """Our names of tensors by theirs."""

    @property
    def title(self) -> str:
        """Its place in the file."""
        parts = [part for part in self.prefix.split(".") if part not in ("", "module", "_orig_mod")]
        return text_of(".".join(parts)) or "network"


def _choose(contents: Contents, name: str) -> _Found:
    """The network that the authors label with, or the only one. Raises CheckpointError."""
    marks = [path for path in contents.entries if f".{path}".endswith(f".{_MARK}")]
    found = [one for path in marks[:_MAX_CANDIDATES] if (one := _found(contents, path)) is not None]
    averaged = [one for one in found if is_averaged(one.prefix)] or found
    if not found:
        raise CheckpointError(
            f"{name}: holds no alpha network of Labels4Free (bg_extractor). Give the file that its training saved, or "
            f"leave out labeler.weights to train a network"
        )
    if len(averaged) > 1:
        raise CheckpointError(
            f"{name}: holds several alpha networks ({', '.join(one.title for one in averaged[:4])}). Save one alone: "
            f"torch.save({{'bg_extractor_ema': network.state_dict()}}, 'weights.pt')"
        )
    _check_names(averaged[0], name)
    return averaged[0]


def _found(contents: Contents, path: str) -> _Found | None:
    """The network that has `conv_n`; None where the tensors beside it have other names."""
    prefix, owner = path.removesuffix(_MARK), contents.entries[path].owner
    state = {name: entry for name, entry in contents.behind(prefix).items() if entry.owner == owner}
    for naming in _NAMINGS:
        if f"{next(iter(naming))}.weight" in state:
            ends = ("weight", "bias")
            return _Found(prefix, state, {f"{a}.{end}": f"{b}.{end}" for a, b in naming.items() for end in ends})
    return None


def _check_names(found: _Found, name: str) -> None:
    lacking, surplus = sorted(found.names.keys() - found.state.keys()), sorted(found.state.keys() - found.names.keys())
    said = [f"{words} {text_of(names[0])}" for words, names in (("lacks", lacking), ("also has", surplus)) if names]
    if said:
        raise _foreign(found.title, " and ".join(said), name)


def _check_shapes(stored: Mapping[str, StoredTensor], network: Labels4FreeNetwork, name: str) -> None:
    """Raises CheckpointError for another network, ConfigError for one of another generator."""
    expected = {ours: tuple(tensor.shape) for ours, tensor in network.state_dict().items()}
    widths = dict(zip((f"reading.{index}.weight" for index in _READINGS), network.layers, strict=True))
    others = []
    for ours, shape in expected.items():
        found = stored[ours].shape
        if ours in widths and len(found) == 4 and found[:1] + found[2:] == shape[:1] + shape[2:]:
            others += [f"{widths[ours]} {found[1]}, here {shape[1]}"] if found != shape else []
        elif found != shape:
            raise _foreign("network", f"has {ours} of shape {found}, not {shape}", name)
    if others:
        raise ConfigError(
            f"{name}: was trained on another generator, whose convolutions have other numbers of channels: "
            f"{'; '.join(others)}. Give the network that was trained on this generator, or leave out labeler.weights "
            f"to train one"
        )


def _foreign(title: str, what: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: its {title} is no alpha network as Labels4Free published it: it {what}. Leave out labeler.weights to "
        f"train a network"
    )
