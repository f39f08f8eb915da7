"""StyleGAN2 pickles of NVIDIA's TensorFlow repositories (stylegan2, stylegan2-ada), read without their code.

A network is its settings, its variables as numpy arrays and its component networks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from labelmill.pipeline.generator.checkpoints.assemble import ReadNetworks, build_discriminator, build_generator
from labelmill.pipeline.generator.checkpoints.inert import (
    MAX_NAME,
    MAX_PARTS,
    Record,
    UnreadableError,
    Unusable,
    describe_value,
    dictionary_of,
    text_of,
)
from labelmill.pipeline.generator.checkpoints.layouts import NVIDIA_LICENCE_NOTE
from labelmill.pipeline.generator.checkpoints.named_tensors import NamedTensor, rate_ratio
from labelmill.pipeline.generator.checkpoints.tensorflow_names import (
    DISCRIMINATOR_RULES,
    GENERATOR_RULES,
    IGNORED,
    Rule,
    target_of,
)
from labelmill.pipeline.generator.checkpoints.tensors import StoredArray, StoredTensor, tensor_of_number
from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.networks import GeneratorSpec

NETWORK = "dnnlib.tflib.network.Network"
FORMAT = "TensorFlow StyleGAN2 pickle"

_MIN_VERSION = 4
_GIVE_STYLEGAN2 = "Give a network of the kind that works"
_MAX_NETWORKS = 16

# Settings that show in the variables, or that touch training, precision and sampling only.
_HARMLESS_SETTINGS = frozenset(
    {
        "num_channels", "resolution", "label_size", "latent_size", "dlatent_size", "mapping_layers", "mapping_fmaps",
        "label_fmaps", "mapping_lrmul", "fmap_base", "fmap_max", "fmap_min", "fmap_decay", "num_fp16_res",
        "architecture", "use_noise", "randomize_noise", "fused_modconv", "dlatent_broadcast", "truncation_psi",
        "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val", "dlatent_avg_beta", "w_avg_beta",
        "style_mixing_prob", "conv_clamp", "mbstd_group_size", "mbstd_num_features", "freeze_layers",
    }
)  # fmt: skip
# Settings that work with one value only.
_FIXED_SETTINGS: dict[str, tuple[object, ...]] = {
    "nonlinearity": ("lrelu", None),
    "mapping_nonlinearity": ("lrelu", None),
    "normalize_latents": (True, None),
    "dtype": ("float32", None),
    "structure": ("auto", "fixed", None),
}


@dataclass(frozen=True)
class Network:
    """A stored network."""

    name: str
    settings: dict[object, object]
    variables: dict[str, StoredTensor | Unusable]
    """Those of its components too, under their names and a slash."""

    @property
    def is_discriminator(self) -> bool:
        return any("FromRGB" in name for name in self.variables) or self.name == "D"


def is_tensorflow(root: object) -> bool:
    """Whether an unpickled value is a network of these repositories or a tuple of some."""
    return bool(_networks_in(root))


def _networks_in(root: object) -> list[Record]:
    """The networks of a pickle, in order: of a tuple or list, or one alone."""
    values = root if isinstance(root, tuple | list) else (root,)
    found = (value for value in islice(values, _MAX_NETWORKS))
    return [value for value in found if isinstance(value, Record) and value.name == NETWORK]


def read_tensorflow(root: object, num_file_bytes: int, *, discriminator: bool) -> ReadNetworks:
    """The averaged generator (the last of G, D, Gs). Raises UnreadableError."""
    networks = [_read_network(value) for value in _networks_in(root)]
    generators = [network for network in networks if not network.is_discriminator]
    if not generators:
        raise UnreadableError("holds a discriminator but no generator", "Use the network pickle that training saved")
    chosen = generators[-1]
    _check_generation(chosen)
    conv_clamp = _check_settings(chosen)
    multiplier = chosen.settings.get("mapping_lrmul")
    generator, filled_in = build_generator(
        _renamed(chosen.variables, GENERATOR_RULES, r"mapping/Dense.*", multiplier),
        conv_clamp=conv_clamp,
        num_file_bytes=num_file_bytes,
    )
    weights = chosen.name if chosen.name in ("G", "Gs") else "generator"
    found = next((network for network in networks if network.is_discriminator and network.variables), None)
    return ReadNetworks(
        FORMAT,
        generator,
        _read_discriminator(found, generator.spec, num_file_bytes) if discriminator else None,
        found is not None,
        {"licence": NVIDIA_LICENCE_NOTE, "weights": weights, **filled_in},
    )


def _read_discriminator(network: Network | None, spec: GeneratorSpec, num_file_bytes: int) -> Discriminator | None:
    if network is None:
        return None
    conv_clamp = _check_settings(network)
    group_size = network.settings.get("mbstd_group_size", 4)
    return build_discriminator(
        _renamed(network.variables, DISCRIMINATOR_RULES, r"Mapping\d+/.*", network.settings.get("mapping_lrmul", 0.1)),
        spec=spec,
        conv_clamp=conv_clamp,
        group_size=group_size if isinstance(group_size, int) and group_size > 0 else 4,
        num_file_bytes=num_file_bytes,
    )


def _read_network(value: object) -> Network:
    state = _state(value)
    version = state.get("version")
    if not isinstance(version, int):
        raise UnreadableError(f"damaged: a TensorFlow network of version {describe_value(version)}")
    if version < _MIN_VERSION:
        raise UnreadableError(
            f"a StyleGAN1 or older network (TensorFlow pickle of version {version}, StyleGAN2's are {_MIN_VERSION} "
            f"and up); StyleGAN2 works",
            _GIVE_STYLEGAN2,
        )
    settings = dictionary_of(state.get("static_kwargs"))
    if settings is None:
        raise UnreadableError("damaged: a TensorFlow network without settings")
    return Network(text_of(state.get("name")), settings, dict(_variables(state)))


def _state(value: object) -> dict[object, object]:
    if not isinstance(value, Record) or value.name != NETWORK or not isinstance(value.state, dict):
        raise UnreadableError(f"damaged: {describe_value(value)} instead of a TensorFlow network")
    return value.state


def _variables(root: dict[object, object]) -> Iterator[tuple[str, StoredTensor | Unusable]]:
    """Variables of a network and its components, by name."""
    pending, num_parts = [("", root)], 1
    while pending:
        prefix, state = pending.pop()
        components, variables = dictionary_of(state.get("components", {})), state.get("variables", [])
        if components is None or not isinstance(variables, list):
            raise UnreadableError("damaged: a TensorFlow network with unusable components or variables")
        num_parts += len(components) + len(variables)
        if num_parts > MAX_PARTS or len(prefix) > MAX_NAME:
            raise UnreadableError("damaged: its networks contain each other")
        for item in variables:
            yield _variable(prefix, item)
        pending += [(f"{prefix}{text_of(name)}/", _state(component)) for name, component in components.items()]


def _variable(prefix: str, item: object) -> tuple[str, StoredTensor | Unusable]:
    name, value = item if isinstance(item, tuple | list) and len(item) == 2 else (None, None)
    tensor = value.tensor if isinstance(value, StoredArray) else value
    if isinstance(tensor, int | float):  # numpy's way with arrays without dimensions
        tensor = tensor_of_number(tensor)
    if not isinstance(name, str):
        raise UnreadableError("damaged: a variable without name")
    if not isinstance(tensor, StoredTensor | Unusable):
        tensor = Unusable(f"is {text_of(tensor)}, no array")
    return f"{prefix}{text_of(name)}", tensor


def _check_generation(network: Network) -> None:
    """Raises UnreadableError for the predecessors of StyleGAN2."""
    for name in network.variables:
        if "StyleMod" in name or "ToRGB_lod" in name:
            raise UnreadableError(
                f"a StyleGAN1 generator, or one of StyleGAN2's configurations A to D (it has {name[:80]!r}); "
                f"StyleGAN2's configurations E and F, and StyleGAN2-ADA, work",
                _GIVE_STYLEGAN2,
            )
        if "LabelConcat" in name:
            raise UnreadableError(
                "a class-conditional network of the first StyleGAN2 code, which joins labels and latents before "
                "normalising; conditional networks of StyleGAN2-ADA work",
                _GIVE_STYLEGAN2,
            )


def _check_settings(network: Network) -> float | None:
    """The network's clamp. Raises UnreadableError for settings with which its output would come out wrong."""
    for name, value in network.settings.items():
        allowed = _FIXED_SETTINGS.get(name) if isinstance(name, str) else None
        usable = allowed is None or (isinstance(value, str | bool | None) and value in allowed)
        if name == "resample_kernel":
            usable = value is None or (isinstance(value, list | tuple) and [_plain(v) for v in value] == [1, 3, 3, 1])
        elif name in ("resolution_h", "resolution_w"):
            usable = isinstance(value, int) and value == _plain(network.settings.get("resolution"))
        elif allowed is None:
            usable = name in _HARMLESS_SETTINGS
        if not usable:
            raise UnreadableError(
                f"unknown architecture option {describe_value(name)} = {describe_value(value)}: a fork of NVIDIA's "
                f"code, with which images may differ from this StyleGAN2's",
                "Give a network that NVIDIA's own TensorFlow code can run",
            )
    clamp = network.settings.get("conv_clamp")
    if clamp is None:
        return None
    if not isinstance(clamp, int | float) or not clamp > 0:
        raise UnreadableError(
            f"unknown architecture option: conv_clamp {describe_value(clamp)}",
            "Give a network with a positive clamp or none",
        )
    return float(clamp)


def _plain(value: object) -> object:
    return value if isinstance(value, int | float) else None


def _renamed(
    variables: dict[str, StoredTensor | Unusable], rules: tuple[Rule, ...], mapping_names: str, multiplier: object
) -> dict[str, NamedTensor]:
    """Variables under our names, in our layouts."""
    ratio, renamed = rate_ratio(multiplier), {}
    for name, stored in variables.items():
        if name in IGNORED:
            continue
        target, arrange, adjust = target_of(name, rules)
        if isinstance(stored, Unusable):
            raise stored.error(name)
        if ratio != 1.0 and re.fullmatch(mapping_names, name):
            adjust = partial(torch.mul, other=ratio)
        renamed[target] = NamedTensor.of(stored, arrange, adjust)
    return renamed
