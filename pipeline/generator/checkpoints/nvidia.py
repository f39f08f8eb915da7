"""What NVIDIA's PyTorch repositories (stylegan2-ada-pytorch, stylegan3) store beside a network's tensors.

Each module in their pickles is stored as source text, which NVIDIA's loader executes, beside a dictionary of its
parameters, buffers, submodules and settings. Only the dictionary is used here.
"""

from collections.abc import Mapping
from functools import partial

import torch

from labelmill.pipeline.generator.checkpoints.assemble import embedding_width_error
from labelmill.pipeline.generator.checkpoints.contents import Module
from labelmill.pipeline.generator.checkpoints.inert import UnreadableError, describe_value, dictionary_of, text_of
from labelmill.pipeline.generator.checkpoints.named_tensors import Conversion, rate_ratio, unchanged

ADA_FORMAT = "stylegan2-ada-pytorch pickle"
SG3_REPOSITORY_FORMAT = "stylegan3-repository StyleGAN2 pickle"

# Settings that this reader understands: either they show in the tensors, or they are looked at below, or they touch
# training and precision only.
_MAPPING_OPTIONS = frozenset(
    {"num_layers", "embed_features", "layer_features", "activation", "lr_multiplier", "w_avg_beta"}
)
_SYNTHESIS_OPTIONS = frozenset(
    {
        "channel_base", "channel_max", "num_fp16_res", "conv_clamp", "architecture", "resample_filter",
        "fp16_channels_last", "fused_modconv_default", "use_noise", "activation", "init_res", "square",
    }
)  # fmt: skip
_GENERATOR_OPTIONS = frozenset(
    {"z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs", "square"}
)
# Names of the attribute of mapping layers that holds their learning rate multiplier, by library.
_MULTIPLIERS = ("bias_gain", "lr_mul", "bscale")
# Options of forks that change no image, whatever their value: they touch training or memory only.
_IDLE_OPTIONS = frozenset({"freeze_layers", "force_fp32", "use_checkpoint", "grad_checkpointing", "class_name"})


def check_generator(modules: Mapping[str, Module]) -> str:
    """The format of a generator's modules, by dotted name, the generator's own under "".

    Raises UnreadableError for StyleGAN3, and for options with which its images would come out wrong.
    """
    if "synthesis.input" in modules or any(name.startswith("synthesis.L") for name in modules):
        raise UnreadableError(
            "a StyleGAN3 generator (its synthesis begins with an input layer); StyleGAN2 works",
            "Give a StyleGAN2 generator",
        )
    options = modules[""].options
    is_nested = "synthesis_kwargs" in options
    flat = {name: value for name, value in options.items() if name not in _GENERATOR_OPTIONS | _IDLE_OPTIONS}
    synthesis, mapping = ({**flat, **_options_in(options, "synthesis_kwargs")}, _options_in(options, "mapping_kwargs"))
    for group, known in ((synthesis, _SYNTHESIS_OPTIONS), (mapping, _MAPPING_OPTIONS)):
        for name, value in group.items():
            if name not in known | _IDLE_OPTIONS:
                raise _unknown_option(name, value)
    _check_embedding(modules, mapping)
    _check_attributes(modules)
    has_new_attributes = "synthesis" in modules and "num_fp16_res" in modules["synthesis"].state
    is_ada = is_nested or not (flat or has_new_attributes)
    return ADA_FORMAT if is_ada else SG3_REPOSITORY_FORMAT


def _options_in(options: Mapping[object, object], name: str) -> dict[object, object]:
    """A dictionary among options; empty without it."""
    value = options.get(name)
    found = dictionary_of(value)
    if value is not None and found is None:
        raise _unknown_option(name, value)
    return found or {}


def _unknown_option(name: object, value: object) -> UnreadableError:
    return UnreadableError(
        f"unknown architecture option {describe_value(name)} = {describe_value(value)}: a fork of NVIDIA's code, with "
        f"which images may differ from this StyleGAN2's",
        "If it changes no image, save the weights alone, where the fork is installed: "
        "torch.save({'g_ema': G.state_dict()}, 'weights.pt')",
    )


def _check_embedding(modules: Mapping[str, Module], mapping: Mapping[object, object]) -> None:
    """Raises UnreadableError for a class embedding of another width than w, or that is missing."""
    owner = modules.get("mapping")
    if owner is not None and "mapping.embed" not in modules and _number(owner.state.get("c_dim")) > 0:
        raise UnreadableError(
            f"a conditional generator of {text_of(owner.state['c_dim'])} classes without its class embedding; give the "
            f"original .pkl, which works",
            "",
        )
    width, w_dim = mapping.get("embed_features"), owner.state.get("w_dim") if owner is not None else None
    if isinstance(width, int) and isinstance(w_dim, int) and width != w_dim:
        raise embedding_width_error(width, w_dim)


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0


def _check_attributes(modules: Mapping[str, Module]) -> None:
    """Activations must be those of StyleGAN2: leaky in mapping and convolutions, none in affine layers."""
    for name, module in modules.items():
        expected = "linear" if name.endswith((".affine", ".embed", ".skip")) else "lrelu"
        found = module.state.get("activation", expected)
        if not isinstance(found, str) or found != expected:
            raise UnreadableError(
                f"unknown architecture option: {name} has activation {describe_value(found)}, not {expected!r}",
                "Give a network with StyleGAN2's own activations",
            )


def conv_clamp_of(modules: Mapping[str, Module], default: float | None) -> float | None:
    """The clamp that all layers share (shortcuts never have one); `default` where none says. Raises UnreadableError."""
    values = [
        module.state["conv_clamp"]
        for name, module in modules.items()
        if "conv_clamp" in module.state and not name.endswith((".skip", ".affine", ".style"))
    ]
    found = {describe_value(value): value for value in values}
    if len(found) > 1:
        raise UnreadableError(
            f"unknown architecture option: conv_clamp differs by layer ({', '.join(found)[:80]})",
            "Give a network with one clamp",
        )
    value = next(iter(found.values()), default)
    if value is None:
        return None
    if not isinstance(value, int | float) or not value > 0:
        raise UnreadableError(
            f"unknown architecture option: conv_clamp {describe_value(value)}",
            "Give a network with a positive clamp or none",
        )
    return float(value)


def rescaling_of(target: str, name: str, modules: Mapping[str, Module]) -> Conversion:
    """What brings a mapping layer's tensor of this name to our learning rate multiplier; other tensors stay.

    The layer, or the module around it, remembers its own.
    """
    if not target.startswith("mapping.fc"):
        return unchanged
    parts = name.split(".")
    around = [modules[path] for path in (".".join(parts[:-1]), ".".join(parts[:-2])) if path in modules]
    found = [module.state[key] for module in around for key in _MULTIPLIERS if key in module.state]
    ratio = rate_ratio(found[0] if found else None)
    return unchanged if ratio == 1.0 else partial(torch.mul, other=ratio)
