"""The generator of a file of torch's tensors, wherever it lies in it and whatever library named its parts.

The file may be a pickle of NVIDIA's, a whole module, a training's checkpoint or a state dict, at any depth and behind
any prefix (`module.`, `_orig_mod.`, `decoder.`): the constant that synthesis begins with tells the place and the
library. Where several generators lie in a file, the averaged one is used.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from pipeline.generator.checkpoints.assemble import ReadNetworks, build_discriminator, build_generator
from pipeline.generator.checkpoints.contents import Contents, Entry, Module
from pipeline.generator.checkpoints.inert import MAX_PARTS, OTHER_NETWORK, UnreadableError, Unusable, text_of
from pipeline.generator.checkpoints.layouts import FILTER, LAYOUTS, NVIDIA, Layout, Target
from pipeline.generator.checkpoints.named_tensors import (
    Conversion,
    NamedTensor,
    check_filter,
    rate_ratio,
    stored_filter,
    unchanged,
)
from pipeline.generator.checkpoints.no_generator import describe_missing_generator
from pipeline.generator.checkpoints.nvidia import SG3_REPOSITORY_FORMAT, check_generator, conv_clamp_of
from pipeline.generator.checkpoints.rosinality import DISCRIMINATOR_MARK, discriminator_tensors
from pipeline.generator.checkpoints.tensors import StoredTensor
from pipeline.generator.discriminator import Discriminator
from pipeline.generator.networks import GeneratorSpec

SG3_CONV_CLAMP = 256.0

_AVERAGED = re.compile(
    r"(?i:(^|_|-)(ema|smooth|avg|average|averaged|running|shadow)(_|-|\d|$)|^gs$)|(?<=[a-z])(EMA|Ema)|EMA(?=[A-Z])"
)
_AVERAGE_NAMES = ("latent_avg", "w_avg", "dlatent_avg", "mean_latent", "latent_mean", "avg_latent", "truncation_latent")
_NVIDIA_DISCRIMINATOR_MARK = "b4.fc.weight"
_MULTIPLIERS = ("bias_gain", "lr_mul", "bscale")
"""Names of the attribute of mapping layers that holds their learning rate multiplier, by library."""
_AGREEMENT = 1e-6
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
        return any(_AVERAGED.search(part) for part in self.prefix.split("."))


def read_torch_networks(contents: Contents, num_file_bytes: int, *, discriminator: bool) -> ReadNetworks:
    """The averaged generator of a file. Raises UnreadableError, which says what else the file is."""
    chosen = _choose(_candidates(contents), contents)
    modules = _modules_behind(contents, chosen.prefix)
    format_, conv_clamp = _settings(chosen.layout, modules)
    known = {name: chosen.layout.target_of(name) for name in chosen.state}
    average_path = _find_average(contents, chosen)
    _refuse_unknown(contents, chosen, known, average_path)
    named = _named_tensors(chosen, known, modules)
    provenance = {"licence": chosen.layout.licence, "weights": chosen.title}
    if chosen.layout.assumed and not modules:
        provenance["assumed"] = chosen.layout.assumed + _assumed_latents(named)
    if average_path is not None and "mapping.w_avg" not in named:
        average = _common_row(contents.entries[average_path].tensor, _width_of_w(named))
        if isinstance(average, str):
            provenance["file's average"] = f"{average_path} {average}: not used"
        else:
            named["mapping.w_avg"] = average
            provenance["average"] = f"the file's {average_path}"
    if chosen.layout.has_square_mapping:
        _check_square_mapping(named)
    generator, filled_in = build_generator(named, conv_clamp=conv_clamp, num_file_bytes=num_file_bytes)
    if any(path.split(".")[0] in ("bg_extractor", "bg_extractor_ema") for path in contents.entries):
        provenance["alpha network"] = "the file's Labels4Free bg_extractor, not used"
    found = _find_discriminator(contents)
    return ReadNetworks(
        format_,
        generator,
        _read_discriminator(contents, found, generator.spec, _default_clamp(format_), num_file_bytes)
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
        state = _behind(contents, prefix)
        layouts = [layout for layout in LAYOUTS if layout.constant == constant and layout.fits(state)]
        if not layouts:
            raise UnreadableError(
                f"its generator {prefix.rstrip('.')!r} is GenForce's or Hammer's, which have the same names, and lacks "
                f"the filters and the average that tell them apart"
            )
        candidates.append(_Candidate(layouts[0], prefix, state))
    return sorted(candidates, key=lambda candidate: not candidate.is_averaged)


def _behind(contents: Contents, prefix: str) -> dict[str, Entry]:
    """Tensors behind a prefix."""
    start = len(prefix)
    return {path[start:]: entry for path, entry in contents.entries.items() if path.startswith(prefix)}


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


def _modules_behind(contents: Contents, prefix: str) -> dict[str, Module]:
    """The modules that the generator's tensors lie in, its own under ""; empty for a state dict."""
    own = prefix.removesuffix(".")
    if own not in contents.modules:
        return {}
    return {
        path[len(prefix) :] if path != own else "": module
        for path, module in contents.modules.items()
        if path == own or path.startswith(prefix)
    }


def _settings(layout: Layout, modules: Mapping[str, Module]) -> tuple[str, float | None]:
    """The format's name and the clamp. Raises UnreadableError for settings that this StyleGAN2 does not have."""
    if not modules or not layout.clamps:
        return layout.format, None
    format_ = check_generator(modules) if layout is NVIDIA else layout.format
    return format_, conv_clamp_of(modules, _default_clamp(format_))


def _default_clamp(format_: str) -> float | None:
    """The clamp of modules that do not remember theirs."""
    return SG3_CONV_CLAMP if format_ == SG3_REPOSITORY_FORMAT else None


def _refuse_unknown(
    contents: Contents, chosen: _Candidate, known: Mapping[str, Target | None], average_path: str | None
) -> None:
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
    required = chosen.layout.required_module
    names = contents.module_names.get(chosen.prefix.removesuffix("."))
    if required and names is not None:
        listed = (name for name in islice(names, MAX_PARTS) if isinstance(name, str))
        if not any(name.endswith(required) for name in listed):
            raise UnreadableError(
                f"a generator without the modules *{required} that {chosen.layout.code} has: its bilinear variant, "
                f"which resizes in another way",
                "Only networks with StyleGAN2's own filters work",
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
        stored = _usable(name, chosen.state[name].tensor)
        if target is FILTER:
            check_filter(stored_filter(stored))
        else:
            adjust = _rescaling(target.name, name, modules)
            named[target.name] = NamedTensor.of(
                stored, target.arrange, target.adjust if adjust is unchanged else adjust
            )
    return named


def _rescaling(target: str, name: str, modules: Mapping[str, Module]) -> Conversion:
    """What brings a mapping layer's tensor to our learning rate multiplier; other tensors stay."""
    ratio = rate_ratio(_multiplier(name, modules)) if target.startswith("mapping.fc") else 1.0
    return unchanged if ratio == 1.0 else partial(torch.mul, other=ratio)


def _usable(name: str, tensor: StoredTensor | Unusable) -> StoredTensor:
    if isinstance(tensor, Unusable):
        raise tensor.error(text_of(name))
    return tensor


def _multiplier(name: str, modules: Mapping[str, Module]) -> object:
    """The learning rate multiplier that the layer of a mapping's tensor, or the module around it, remembers."""
    parts = name.split(".")
    for depth in (1, 2):
        module = modules.get(".".join(parts[:-depth]))
        for attribute in _MULTIPLIERS:
            if module is not None and attribute in module.state:
                return module.state[attribute]
    return None


def _assumed_latents(named: Mapping[str, NamedTensor]) -> str:
    """What to add where the first mapping layer takes twice w's width, as beside a class embedding."""
    first, w_dim = named.get("mapping.fc0.weight"), _width_of_w(named)
    if first is None or "mapping.embed.weight" in named or not w_dim or first.shape[1:] != (2 * w_dim,):
        return ""
    return f"; unconditional, with latents of {2 * w_dim} numbers: a class embedding, had it been there, is not"


# ---- The average of w ----


def _find_average(contents: Contents, chosen: _Candidate) -> str | None:
    """The path of an average of w that lies beside the generator, or above it."""
    places = chosen.prefix.rstrip(".").split(".") if chosen.prefix else []
    for depth in range(len(places), -1, -1):
        for name in _AVERAGE_NAMES:
            path = ".".join([*places[:depth], name])
            if path in contents.entries:
                return path
    return None


def _width_of_w(named: Mapping[str, NamedTensor]) -> int:
    shape = named["synthesis.b4.conv1.affine.weight"].shape if "synthesis.b4.conv1.affine.weight" in named else ()
    return shape[1] if len(shape) == 2 else 0


def _common_row(stored: StoredTensor | Unusable, w_dim: int) -> NamedTensor | str:
    """The average [w_dim], where one row [.., w_dim] stands for each row of w too; else why there is none."""
    if isinstance(stored, Unusable):
        return text_of(stored.reason)
    if w_dim < 1 or stored.num_elements < w_dim or stored.num_elements % w_dim or stored.num_elements > w_dim * 64:
        return f"has shape {stored.shape}, w has {w_dim} numbers"
    rows_LD = stored.to_float32().reshape(-1, w_dim)
    if float((rows_LD - rows_LD[0]).abs().max()) > _AGREEMENT * float(rows_LD.abs().max()):
        return f"has {len(rows_LD)} rows that differ, one average for all rows is needed"
    return NamedTensor.of(stored, _first_row(w_dim))


def _first_row(w_dim: int) -> Callable[[Tensor], Tensor]:
    return lambda values: values.reshape(-1, w_dim)[0]


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


# ---- The discriminator ----


def _find_discriminator(contents: Contents) -> str | None:
    """The path of a tensor that only a discriminator has: of one that is not averaged, the least deep."""
    marks = (DISCRIMINATOR_MARK, _NVIDIA_DISCRIMINATOR_MARK)
    paths = [path for path in contents.entries if path.endswith(marks)]
    usable = [path for path in paths if any(path == mark or path.endswith(f".{mark}") for mark in marks)]
    return min(usable, key=lambda path: (_AVERAGED.search(path) is not None, path.count("."), path), default=None)


def _read_discriminator(
    contents: Contents, path: str, spec: GeneratorSpec, default_clamp: float | None, num_file_bytes: int
) -> Discriminator:
    is_nvidia = path.endswith(_NVIDIA_DISCRIMINATOR_MARK)
    prefix = path.removesuffix(_NVIDIA_DISCRIMINATOR_MARK if is_nvidia else DISCRIMINATOR_MARK)
    owner = contents.entries[path].owner
    entries = {name: entry for name, entry in _behind(contents, prefix).items() if entry.owner == owner}
    state = {name: _usable(name, entry.tensor) for name, entry in entries.items()}
    modules = _modules_behind(contents, prefix)
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
    return {name: NamedTensor.of(stored, adjust=_rescaling(name, name, modules)) for name, stored in state.items()}
