"""The generator of a file of torch's tensors, wherever it lies in it and whatever library named its parts.

The file may be a pickle of NVIDIA's, a whole module, a training's checkpoint or a state dict, at any depth and behind
any prefix (`module.`, `_orig_mod.`, `decoder.`): the constant that synthesis begins with tells the place and the
library. Where several generators lie in a file, the averaged one is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from labelmill.pipeline.generator.checkpoints.assemble import ReadNetworks, build_generator
from labelmill.pipeline.generator.checkpoints.contents import Contents, Entry, Module, is_averaged
from labelmill.pipeline.generator.checkpoints.inert import MAX_PARTS, OTHER_NETWORK, UnreadableError, Unusable, text_of
from labelmill.pipeline.generator.checkpoints.layouts import FILTER, LAYOUTS, NVIDIA, Layout, Target
from labelmill.pipeline.generator.checkpoints.named_tensors import NamedTensor, check_filter, stored_filter, unchanged
from labelmill.pipeline.generator.checkpoints.no_generator import describe_missing_generator
from labelmill.pipeline.generator.checkpoints.nvidia import (
    SG3_REPOSITORY_FORMAT,
    check_generator,
    conv_clamp_of,
    rescaling_of,
)
from labelmill.pipeline.generator.checkpoints.stored_average import common_row, find_average
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor
from labelmill.pipeline.generator.checkpoints.torch_discriminator import find_discriminator, read_discriminator

SG3_CONV_CLAMP = 256.0

_WRAPPERS = ("", "module", "_orig_mod")
_MAX_CANDIDATES = 64


@dataclass(frozen=True)
class _Candidate:
    """A generator in the file."""

    layout: Layout
    prefix: str
    """What stands before its names, with the dot."""
    state: Mapping[str, Entry]
    """All tensors behind the prefix, by the rest of their paths."""

    @property
    def title(self) -> str:
        """Its path without the prefixes of data-parallel and compiled modules."""
        parts = [part for part in self.prefix.split(".") if part not in _WRAPPERS]
        return ".".join(parts) or "the file itself"

    @property
    def is_averaged(self) -> bool:
        return is_averaged(self.prefix)


def read_torch_networks(contents: Contents, num_file_bytes: int, *, discriminator: bool) -> ReadNetworks:
    """The averaged generator of a file. Raises UnreadableError, which says what else the file is."""
    chosen = _choose(_candidates(contents), contents)
    modules = contents.modules_behind(chosen.prefix)
    format_, conv_clamp = _settings(chosen.layout, modules)
    known = {name: chosen.layout.target_of(name) for name in chosen.state}
    average_path = find_average(contents, chosen.prefix)
    _refuse_unknown(chosen, known, average_path)
    _refuse_bilinear(chosen, modules or contents.module_names.get(chosen.prefix.removesuffix(".")))
    named = _named_tensors(chosen, known, modules)
    provenance = {"licence": chosen.layout.licence, "weights": chosen.title}
    if chosen.layout.assumed and not modules:
        provenance["assumed"] = chosen.layout.assumed + _assumed_latents(named)
    if average_path is not None and "mapping.w_avg" not in named:
        average = common_row(contents.entries[average_path].tensor, _width_of_w(named))
        if isinstance(average, str):
            provenance["file's average"] = f"{average_path} {average}: not used"
        else:
            named["mapping.w_avg"] = average
            provenance["average"] = f"the file's {average_path}"
    if chosen.layout.has_square_mapping:
        _check_square_mapping(named)
    generator, filled_in = build_generator(named, conv_clamp=conv_clamp, num_file_bytes=num_file_bytes)
    if any(path.split(".")[0] in ("bg_extractor", "bg_extractor_ema") for path in contents.entries):
        provenance["alpha network"] = "the file's Labels4Free bg_extractor; labeler.weights may name it"
    found = find_discriminator(contents)
    return ReadNetworks(
        format_,
        generator,
        read_discriminator(contents, found, generator.spec, _default_clamp(format_), num_file_bytes)
        if discriminator and found is not None
        else None,
        found is not None,
        {**provenance, **filled_in},
    )


def _candidates(contents: Contents) -> list[_Candidate]:
    """All generators in the file, averaged ones first."""
    found = []
    for path in contents.entries:
        for constant in {layout.constant for layout in LAYOUTS}:
            if path == constant or path.endswith(f".{constant}"):
                found.append((path.removesuffix(constant), constant))
    candidates = []
    for prefix, constant in found[:_MAX_CANDIDATES]:
        state = contents.behind(prefix)
        layouts = [layout for layout in LAYOUTS if layout.constant == constant and layout.fits(state)]
        if layouts:
            candidates.append(_Candidate(layouts[0], prefix, state))
    if found and not candidates:
        raise UnreadableError(
            "a generator of GenForce or Hammer, which have the same names, without the filters and the average that "
            "tell them apart"
        )
    return sorted(candidates, key=lambda candidate: not candidate.is_averaged)


def _choose(candidates: list[_Candidate], contents: Contents) -> _Candidate:
    """The averaged generator, or the only one. Raises UnreadableError where that leaves a choice."""
    if not candidates:
        raise describe_missing_generator(contents)
    best = candidates[0]
    for other in candidates[1:]:
        is_same = other.state[other.layout.constant].tensor is best.state[best.layout.constant].tensor
        if other.is_averaged == best.is_averaged and not is_same:
            raise UnreadableError(
                f"holds several generators, {text_of(best.title)!r} and {text_of(other.title)!r}, and does not say "
                f"which is the average",
                "Save the one to use alone: torch.save({'g_ema': G.state_dict()}, 'weights.pt')",
            )
    return best


def _settings(layout: Layout, modules: Mapping[str, Module]) -> tuple[str, float | None]:
    """The format's name and the clamp. Raises UnreadableError for settings that this StyleGAN2 does not have."""
    if not modules or not layout.clamps:
        return layout.format, None
    format_ = check_generator(modules) if layout is NVIDIA else layout.format
    return format_, conv_clamp_of(modules, _default_clamp(format_))


def _default_clamp(format_: str) -> float | None:
    """The clamp of modules that do not remember theirs."""
    return SG3_CONV_CLAMP if format_ == SG3_REPOSITORY_FORMAT else None


def _refuse_unknown(chosen: _Candidate, known: Mapping[str, Target | None], average_path: str | None) -> None:
    """Raises UnreadableError for tensors among the generator's own that no StyleGAN2 has.

    Those of other dictionaries behind the same prefix, as where the generator lies in the file itself beside a
    discriminator, are none of its own.
    """
    owners = {chosen.state[name].owner for name, target in known.items() if target is not None}
    for name, target in known.items():
        path = chosen.prefix + name
        is_own = chosen.state[name].owner in owners and not _is_counter(chosen.state[name].tensor)
        if target is None and is_own and path != average_path:
            raise UnreadableError(
                f"its generator has {text_of(name, 80)!r}, unknown to StyleGAN2: a fork of {chosen.layout.code}",
                OTHER_NETWORK,
            )


def _refuse_bilinear(chosen: _Candidate, names: Mapping[object, object] | Mapping[str, Module] | None) -> None:
    """Raises UnreadableError where the names of the modules, if they are known, are of another network."""
    required = chosen.layout.required_module
    listed = [name for name in islice(names or (), MAX_PARTS) if isinstance(name, str)]
    if required and listed and not any(name.endswith(required) for name in listed):
        raise UnreadableError(
            f"a generator without the modules *{required} that {chosen.layout.code} has: its bilinear variant, which "
            f"resizes in another way",
            "Give a network with StyleGAN2's own filters",
        )


def _is_counter(tensor: StoredTensor | Unusable) -> bool:
    """Whether a tensor is one whole number, such as the steps of a training."""
    return isinstance(tensor, StoredTensor) and tensor.num_elements == 1 and tensor.storage.kind[0] in "iu"


def _named_tensors(
    chosen: _Candidate, known: Mapping[str, Target | None], modules: Mapping[str, Module]
) -> dict[str, NamedTensor]:
    """The generator's tensors under NVIDIA's names; filters are checked."""
    named = {}
    for name, target in known.items():
        if target is None:
            continue
        stored = chosen.state[name].stored(name)
        if target is FILTER:
            check_filter(stored_filter(stored))
        else:
            adjust = rescaling_of(target.name, name, modules)
            named[target.name] = NamedTensor.of(
                stored, target.arrange, target.adjust if adjust is unchanged else adjust
            )
    return named


def _assumed_latents(named: Mapping[str, NamedTensor]) -> str:
    """What to add where the first mapping layer takes twice w's width, as beside a class embedding."""
    first, w_dim = named.get("mapping.fc0.weight"), _width_of_w(named)
    if first is None or "mapping.embed.weight" in named or not w_dim or first.shape[1:] != (2 * w_dim,):
        return ""
    return f"; unconditional, with latents of {2 * w_dim} numbers: a class embedding, had it been there, is not"


def _width_of_w(named: Mapping[str, NamedTensor]) -> int:
    shape = named["synthesis.b4.conv1.affine.weight"].shape if "synthesis.b4.conv1.affine.weight" in named else ()
    return shape[1] if len(shape) == 2 else 0


def _check_square_mapping(named: Mapping[str, NamedTensor]) -> None:
    """Raises UnreadableError where latents and w differ in width, which these libraries' code cannot have."""
    shape, w_dim = named["mapping.fc0.weight"].shape if "mapping.fc0.weight" in named else (), _width_of_w(named)
    if len(shape) != 2 or not w_dim or shape[1] == w_dim:
        return
    reason = f"the first mapping layer takes {shape[1]} numbers, w has {w_dim}"
    if shape[1] > w_dim:
        raise UnreadableError(
            f"{reason}: exported from a conditional generator without its class embedding; give the original .pkl, "
            f"which works",
            "",
        )
    raise UnreadableError(
        f"{reason}: exported from a generator that this format cannot hold; give the original .pkl, which works", ""
    )
