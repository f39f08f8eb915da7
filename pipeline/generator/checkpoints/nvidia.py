"""StyleGAN2 pickles of NVIDIA's PyTorch repositories (stylegan2-ada-pytorch, stylegan3), read without their code.

Each module in them is stored as source text, which NVIDIA's loader executes, beside a dictionary of its parameters,
buffers, submodules and settings. Only the dictionary is used here. Names and layouts are those of
`pipeline.generator.networks` already.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from pipeline.generator.checkpoints.assemble import ReadNetworks, build_discriminator, build_generator
from pipeline.generator.checkpoints.inert import MAX_NAME, MAX_PARTS, Record, UnreadableError, describe_value
from pipeline.generator.checkpoints.named_tensors import NamedTensor, rate_ratio, unchanged
from pipeline.generator.checkpoints.tensors import StoredTensor
from pipeline.generator.discriminator import Discriminator

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
ADA_FORMAT = "stylegan2-ada-pytorch pickle"
SG3_REPOSITORY_FORMAT = "stylegan3-repository StyleGAN2 pickle"

LICENCE_NOTE = (
    "not stated in the file; weights published by NVIDIA are under the Nvidia Source Code License-NC (research and "
    "evaluation only, no commercial use), weights of your own training are yours"
)

_MAX_DEPTH = 16

# Settings that this reader understands: either they show in the tensors, or they are looked at below, or they touch
# training and precision only.
_MAPPING_OPTIONS = frozenset(
    {"num_layers", "embed_features", "layer_features", "activation", "lr_multiplier", "w_avg_beta"}
)
_SYNTHESIS_OPTIONS = frozenset(
    {
        "channel_base", "channel_max", "num_fp16_res", "conv_clamp", "architecture", "resample_filter",
        "fp16_channels_last", "fused_modconv_default", "use_noise", "activation",
    }
)  # fmt: skip
_GENERATOR_OPTIONS = frozenset(
    {"z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"}
)


@dataclass(frozen=True)
class Module:
    """A stored module: its class's name and its attributes."""

    class_name: str
    state: dict[object, object]

    @classmethod
    def of(cls, value: object) -> "Module | None":
        """None for anything that is no module."""
        if not isinstance(value, Record) or value.name != PERSISTENT or len(value.args) != 1:
            return None
        meta = value.args[0]
        if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise UnreadableError("damaged: a stored module without state")
        return cls(str(meta.get("class_name"))[:MAX_NAME], meta["state"])

    def children(self) -> Iterator[tuple[str, "Module"]]:
        for name, value in _dictionary(self.state.get("_modules")).items():
            module = Module.of(value)
            if module is None and value is not None:
                raise UnreadableError(f"damaged: its submodule {describe_value(name)} is no module")
            if module is not None:
                yield str(name)[:MAX_NAME], module

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        for group in ("_parameters", "_buffers"):
            for name, value in _dictionary(self.state.get(group)).items():
                if isinstance(value, StoredTensor):
                    yield str(name)[:MAX_NAME], value
                elif value is not None:
                    raise UnreadableError(f"damaged: its tensor {describe_value(name)} is {describe_value(value)}")

    @property
    def options(self) -> dict[object, object]:
        """The keyword arguments that the module was made with."""
        return _dictionary(self.state.get("_init_kwargs"))


def _dictionary(value: object) -> dict[object, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UnreadableError(f"damaged: {describe_value(value)} instead of a dictionary")
    return value


def is_nvidia(root: object) -> bool:
    """Whether an unpickled value is a checkpoint of these repositories, or a single module of theirs."""
    values = root.values() if isinstance(root, dict) else [root]
    return any(isinstance(value, Record) and value.name == PERSISTENT for value in values)


def read_nvidia(root: object, num_file_bytes: int, *, discriminator: bool) -> ReadNetworks:
    """The averaged generator of a checkpoint. Raises UnreadableError."""
    networks = root if isinstance(root, dict) else {"G_ema": root}
    stored = {name: Module.of(networks.get(name)) for name in ("G_ema", "G", "D")}
    name = "G_ema" if stored["G_ema"] is not None else "G"
    module = stored[name]
    if module is None or module.class_name == "Discriminator":
        raise UnreadableError(
            "holds a discriminator but no generator (neither G_ema nor G); use the network pickle that training saved"
        )
    modules = dict(_walk(module))
    is_ada = _check_generator(module, modules)
    generator, filled_in = build_generator(
        _network_tensors(modules),
        conv_clamp=_conv_clamp(modules, default=None if is_ada else 256.0),
        num_file_bytes=num_file_bytes,
    )
    provenance = {"licence": LICENCE_NOTE, "weights": name, **filled_in}
    return ReadNetworks(
        ADA_FORMAT if is_ada else SG3_REPOSITORY_FORMAT,
        generator,
        _read_discriminator(stored["D"], num_file_bytes, is_ada=is_ada) if discriminator else None,
        stored["D"] is not None,
        provenance,
    )


def _read_discriminator(module: Module | None, num_file_bytes: int, *, is_ada: bool) -> Discriminator | None:
    if module is None:
        return None
    modules = dict(_walk(module))
    group_size = modules["b4.mbstd"].state.get("group_size", 4) if "b4.mbstd" in modules else 4
    return build_discriminator(
        _network_tensors(modules),
        conv_clamp=_conv_clamp(modules, default=None if is_ada else 256.0),
        group_size=group_size if isinstance(group_size, int) and group_size > 0 else 4,
        num_file_bytes=num_file_bytes,
    )


def _walk(root: Module) -> Iterator[tuple[str, Module]]:
    """Each module below and including the root, by its dotted name. Shared ones count each time."""
    pending, num_modules = [("", root, 0)], 1
    while pending:
        prefix, module, depth = pending.pop()
        yield prefix, module
        for name, child in module.children():
            num_modules += 1
            if num_modules > MAX_PARTS or depth > _MAX_DEPTH:
                raise UnreadableError("damaged: its modules contain each other")
            pending.append((f"{prefix}.{name}" if prefix else name, child, depth + 1))


def _check_generator(generator: Module, modules: dict[str, Module]) -> bool:
    """Whether the generator is one of stylegan2-ada-pytorch; else it is the other repository's.

    Raises UnreadableError for StyleGAN3, and for options with which its images would come out wrong.
    """
    if "synthesis.input" in modules or any(name.startswith("synthesis.L") for name in modules):
        raise UnreadableError("a StyleGAN3 generator (its synthesis begins with an input layer); StyleGAN2 works")
    if "synthesis" not in modules or "mapping" not in modules:
        parts = ", ".join(sorted(name for name in modules if name and "." not in name)[:8])
        raise UnreadableError(f"not a StyleGAN2 generator: {generator.class_name} is made of {parts or 'nothing'}")
    options = dict(generator.options)
    is_nested = "synthesis_kwargs" in options
    flat = {name: value for name, value in options.items() if name not in _GENERATOR_OPTIONS}
    synthesis = {**flat, **_dictionary(options.get("synthesis_kwargs"))}
    mapping = _dictionary(options.get("mapping_kwargs"))
    for group, known in ((synthesis, _SYNTHESIS_OPTIONS), (mapping, _MAPPING_OPTIONS)):
        for name, value in group.items():
            if name not in known:
                raise UnreadableError(
                    f"unknown architecture option {describe_value(name)} = {describe_value(value)}: a fork of "
                    f"NVIDIA's code, whose images this StyleGAN2 would not reproduce"
                )
    _check_attributes(modules)
    has_new_attributes = "num_fp16_res" in modules["synthesis"].state
    return is_nested or not (flat or has_new_attributes)


def _check_attributes(modules: dict[str, Module]) -> None:
    """Activations must be those of StyleGAN2: leaky in mapping and convolutions, none in affine layers."""
    for name, module in modules.items():
        expected = "linear" if name.endswith((".affine", ".embed", ".skip")) else "lrelu"
        found = module.state.get("activation", expected)
        if found != expected:
            raise UnreadableError(
                f"unknown architecture option: {name} has activation {describe_value(found)}, not {expected!r}"
            )


def _conv_clamp(modules: dict[str, Module], default: float | None) -> float | None:
    """The clamp that all layers share (shortcuts never have one); `default` where none says."""
    values = [
        module.state["conv_clamp"]
        for name, module in modules.items()
        if "conv_clamp" in module.state and not name.endswith(".skip")
    ]
    found = {describe_value(value): value for value in values}
    if len(found) > 1:
        raise UnreadableError(f"unknown architecture option: conv_clamp differs by layer ({', '.join(found)[:80]})")
    value = next(iter(found.values()), default)
    if value is None:
        return None
    if not isinstance(value, int | float) or not value > 0:
        raise UnreadableError(f"unknown architecture option: conv_clamp {describe_value(value)}")
    return float(value)


def _network_tensors(modules: dict[str, Module]) -> dict[str, NamedTensor]:
    """All tensors by dotted name; mapping layers for the learning rate multiplier that ours have."""
    tensors: dict[str, NamedTensor] = {}
    for prefix, module in modules.items():
        ratio = rate_ratio(module.state.get("bias_gain") if prefix.startswith("mapping.fc") else None)
        adjust = unchanged if ratio == 1.0 else partial(torch.mul, other=ratio)
        for name, stored in module.tensors():
            if len(tensors) > MAX_PARTS:
                raise UnreadableError(f"damaged: more than {MAX_PARTS:,} tensors in a network")
            tensors[f"{prefix}.{name}" if prefix else name] = NamedTensor.of(stored, adjust=adjust)
    return tensors
