"""Writes generators in the formats that other people's code writes, for the tests of the readers.

The layouts are stated here a second time, in the other direction and by other means (real pickling of real torch
parameters), so that a mistake in a reader does not cancel out.
"""

import io
import pickle
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution

Network = TypeVar("Network", bound=nn.Module)

DATA = Path(__file__).resolve().parents[2] / "data" / "checkpoints"
CONFORMANCE_FILES = ("ada-64-uncond.pkl", "ada-32-cond.pkl", "tf-legacy-32.pkl", "rosinality-64.pt")
CANARY = "embedded-checkpoint-source-was-executed"
SMALL = GeneratorSpec(
    resolution=16,
    z_dim=12,
    w_dim=12,
    c_dim=0,
    mapping_layers=2,
    channels=channels_by_resolution(16, channel_base=64, channel_max=8),
)


def random_generator(seed: int = 0, **changes: object) -> Generator:
    """A small generator whose every tensor, biases and noise strengths too, is random."""
    torch.manual_seed(seed)
    return _randomised(Generator(replace(SMALL, **changes)))


def random_discriminator(seed: int = 1, c_dim: int = 0, conv_clamp: float | None = None) -> Discriminator:
    torch.manual_seed(seed)
    return _randomised(Discriminator(SMALL.channels, c_dim=c_dim, conv_clamp=conv_clamp))


def _randomised(network: Network) -> Network:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
        for name, buffer in network.named_buffers():
            if name.endswith("w_avg"):
                buffer.add_(torch.randn(buffer.shape) * 0.3)
    return network.eval().requires_grad_(False)


def images(generator: Generator, count: int = 2, noise: str = "const") -> Tensor:
    """Images of some seeds at psi 0.7, which every tensor of the generator has a part in."""
    spec = generator.spec
    z_BZ = torch.from_numpy(np.random.RandomState(7).randn(count, spec.z_dim)).float()
    classes_BZ = torch.eye(spec.c_dim)[torch.arange(count) % spec.c_dim] if spec.c_dim else None
    ws_BLD = generator.truncate(generator.map(z_BZ, classes_BZ), 0.7)
    return generator.synthesize(ws_BLD, noise).images_BCHW


def relative_difference(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """The largest difference, in parts of the expected array's largest magnitude."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# ---- NVIDIA's PyTorch repositories ----


class _Persistent:
    """What NVIDIA's decorated modules pickle as."""

    def __init__(self, class_name: str, state: Mapping[str, object]) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": f"import pathlib, tempfile\npathlib.Path(tempfile.gettempdir(), '{CANARY}').touch()",
            "class_name": class_name,
            "state": dict(state),
        }

    def __reduce__(self) -> tuple[object, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextmanager
def _foreign_names() -> Iterator[None]:
    """Names that the pickles refer to and that exist only where NVIDIA's code is installed."""

    def module(name: str, **members: object) -> None:
        made = types.ModuleType(name)
        for key, value in members.items():
            setattr(made, key, value)
        sys.modules[name] = made

    def reconstruct(meta: object) -> object:
        raise AssertionError("never called")

    reconstruct.__module__ = "torch_utils.persistence"
    reconstruct.__qualname__ = reconstruct.__name__ = "_reconstruct_persistent_obj"
    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})
    network = type("Network", (), {"__module__": "dnnlib.tflib.network", "__qualname__": "Network"})
    names = ["torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util", "dnnlib.tflib", "dnnlib.tflib.network"]
    assert not any(name in sys.modules for name in names)
    for name in names:
        module(name)
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    sys.modules["dnnlib.util"].EasyDict = easy
    sys.modules["dnnlib.tflib.network"].Network = network
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def nvidia_module(
    module: nn.Module,
    class_name: str = "Module",
    attributes: Mapping[str, Mapping[str, object]] | None = None,
    prefix: str = "",
) -> _Persistent:
    """One of our modules as NVIDIA's. `attributes` are further ones, by dotted name of the module."""
    state: dict[str, object] = {
        "training": False,
        "_parameters": {name: p for name, p in module._parameters.items() if p is not None},
        "_buffers": dict(module._buffers),
        "_non_persistent_buffers_set": set(),
        "_modules": OrderedDict(
            (name, nvidia_module(child, "Module", attributes, f"{prefix}{name}."))
            for name, child in module.named_children()
        ),
        **(attributes or {}).get(prefix.rstrip("."), {}),
    }
    return _Persistent(class_name, state)


def dump(value: object, protocol: int = 4) -> bytes:
    """Pickle with the foreign names in place."""
    with _foreign_names():
        return pickle.dumps(value, protocol=protocol)


def torch_file_of_nvidia(value: object) -> bytes:
    """What torch.save writes with the foreign names in place."""
    with _foreign_names():
        return torch_file(value)


def nvidia_pickle(
    generator: Generator,
    *,
    kwargs: Mapping[str, object] | None = None,
    attributes: Mapping[str, Mapping[str, object]] | None = None,
    discriminator: Discriminator | None = None,
    protocol: int = 4,
    **entries: object,
) -> bytes:
    """A network pickle: `kwargs` are the generator's keyword arguments, `attributes` of modules as above."""
    merged = {"": {"_init_kwargs": dict(kwargs or {})}, **(attributes or {})}
    content = {
        "G": None,
        "D": None if discriminator is None else nvidia_module(discriminator, "Discriminator"),
        "G_ema": nvidia_module(generator, "Generator", merged),
        "training_set_kwargs": {"path": "data.zip"},
        "augment_pipe": None,
        **entries,
    }
    return dump(content, protocol)


# ---- NVIDIA's TensorFlow repositories ----


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _tensorflow_layer(module: nn.Module, name: str, *, turned: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    kernel = np.transpose(_numpy(module.weight), (2, 3, 1, 0))
    yield f"{name}/weight", kernel[::-1, ::-1].copy() if turned else kernel
    if getattr(module, "bias", None) is not None:
        yield f"{name}/bias", _numpy(module.bias)
    if hasattr(module, "affine"):
        yield f"{name}/mod_weight", _numpy(module.affine.weight).T
        yield f"{name}/mod_bias", _numpy(module.affine.bias) - 1
    if hasattr(module, "noise_strength"):
        # A TensorFlow session returns a numpy number, not an array, for a variable without dimensions.
        yield f"{name}/noise_strength", np.float32(module.noise_strength.item())


def _tensorflow_synthesis(generator: Generator) -> Iterator[tuple[str, np.ndarray]]:
    for power, (size, _) in enumerate(generator.spec.channels, start=2):
        block = generator.synthesis.get_submodule(f"b{size}")
        folder = f"{size}x{size}"
        if size == 4:
            yield "4x4/Const/const", _numpy(block.const)[np.newaxis]
            yield from _tensorflow_layer(block.conv1, "4x4/Conv")
            yield "noise0", _numpy(block.conv1.noise_const)[None, None]
        else:
            yield from _tensorflow_layer(block.conv0, f"{folder}/Conv0_up", turned=True)
            yield from _tensorflow_layer(block.conv1, f"{folder}/Conv1")
            yield f"noise{2 * power - 5}", _numpy(block.conv0.noise_const)[None, None]
            yield f"noise{2 * power - 4}", _numpy(block.conv1.noise_const)[None, None]
        if hasattr(block, "skip"):
            yield from _tensorflow_layer(block.skip, f"{folder}/Skip", turned=True)
        if hasattr(block, "torgb"):
            yield from _tensorflow_layer(block.torgb, f"{folder}/ToRGB")


def _tensorflow_mapping(generator: Generator) -> Iterator[tuple[str, np.ndarray]]:
    mapping = generator.mapping
    if mapping.c_dim:
        yield "LabelEmbed/weight", _numpy(mapping.embed.weight).T
        yield "LabelEmbed/bias", _numpy(mapping.embed.bias)
    for index in range(mapping.num_layers):
        layer = mapping.get_submodule(f"fc{index}")
        yield f"Dense{index}/weight", _numpy(layer.weight).T
        yield f"Dense{index}/bias", _numpy(layer.bias)


def _tensorflow_discriminator(network: Discriminator) -> Iterator[tuple[str, np.ndarray]]:
    for size in network.block_resolutions:
        block = network.get_submodule(f"b{size}")
        if size == network.resolution:
            yield from _tensorflow_layer(block.fromrgb, f"{size}x{size}/FromRGB")
        yield from _tensorflow_layer(block.conv0, f"{size}x{size}/Conv0")
        yield from _tensorflow_layer(block.conv1, f"{size}x{size}/Conv1_down")
        yield from _tensorflow_layer(block.skip, f"{size}x{size}/Skip")
    yield from _tensorflow_layer(network.b4.conv, "4x4/Conv")
    for ours, theirs in (("fc", "4x4/Dense0"), ("out", "Output")):
        layer = network.b4.get_submodule(ours)
        yield f"{theirs}/weight", _numpy(layer.weight).T
        yield f"{theirs}/bias", _numpy(layer.bias)


def tensorflow_pickle(
    generator: Generator | None,
    *,
    settings: Mapping[str, object] | None = None,
    discriminator: Discriminator | None = None,
    version: int = 5,
    extra_variables: Mapping[str, np.ndarray] | None = None,
    protocol: int = 4,
) -> bytes:
    """A tuple (G, D, Gs), or (D,) without a generator."""
    with _foreign_names():
        easy = sys.modules["dnnlib.util"].EasyDict
        network_class = sys.modules["dnnlib.tflib.network"].Network

        def network(name: str, variables: Iterator[tuple[str, np.ndarray]], **components: object) -> object:
            made = network_class()
            made.__dict__.update(
                version=version,
                name=name,
                static_kwargs=easy(settings or {}),
                components=easy(components),
                build_module_src="raise RuntimeError('executed')",
                build_func_name="G_main",
                variables=list(variables),
            )
            return made

        networks = []
        if discriminator is not None:
            networks.append(network("D", _tensorflow_discriminator(discriminator)))
        if generator is not None:
            average = [("lod", np.float32(0)), ("dlatent_avg", _numpy(generator.mapping.w_avg))]
            networks.append(
                network(
                    "Gs",
                    iter([*average, *(extra_variables or {}).items()]),
                    synthesis=network("G_synthesis", _tensorflow_synthesis(generator)),
                    mapping=network("G_mapping", _tensorflow_mapping(generator)),
                )
            )
        return pickle.dumps(tuple(networks), protocol=protocol)


# ---- rosinality's repository ----


def _rosinality_layer(module: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.conv.weight", module.weight.unsqueeze(0).contiguous()
    yield f"{name}.conv.modulation.weight", module.affine.weight
    yield f"{name}.conv.modulation.bias", module.affine.bias
    if hasattr(module, "noise_strength"):
        yield f"{name}.noise.weight", module.noise_strength.reshape(1)
        yield f"{name}.activate.bias", module.bias
    else:
        yield f"{name}.bias", module.bias.reshape(1, -1, 1, 1)


def rosinality_state(generator: Generator, *, with_noise: bool = True) -> "OrderedDict[str, Tensor]":
    """A state dict of the generator."""
    taps = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
    state: dict[str, Tensor] = {}
    for index in range(generator.spec.mapping_layers):
        layer = generator.mapping.get_submodule(f"fc{index}")
        state[f"style.{index + 1}.weight"] = layer.weight
        state[f"style.{index + 1}.bias"] = layer.bias
    noises = []
    for position, (size, _) in enumerate(generator.spec.channels):
        block = generator.synthesis.get_submodule(f"b{size}")
        if size == 4:
            state["input.input"] = block.const.unsqueeze(0)
            state |= dict(_rosinality_layer(block.conv1, "conv1"))
            state |= dict(_rosinality_layer(block.torgb, "to_rgb1"))
        else:
            index = position - 1
            state |= dict(_rosinality_layer(block.conv0, f"convs.{2 * index}"))
            state |= dict(_rosinality_layer(block.conv1, f"convs.{2 * index + 1}"))
            state |= dict(_rosinality_layer(block.torgb, f"to_rgbs.{index}"))
            state[f"convs.{2 * index}.conv.blur.kernel"] = taps * 4
            state[f"to_rgbs.{index}.upsample.kernel"] = taps * 4
            noises.append(block.conv0.noise_const)
        noises.append(block.conv1.noise_const)
    if with_noise:
        state |= {f"noises.noise_{i}": noise[None, None] for i, noise in enumerate(noises)}
    return OrderedDict((name, tensor.detach().clone()) for name, tensor in state.items())


def rosinality_discriminator(network: Discriminator) -> dict[str, Tensor]:
    """A state dict of the discriminator."""
    taps = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
    top = network.get_submodule(f"b{network.resolution}").fromrgb
    state: dict[str, Tensor] = {"convs.0.0.weight": top.weight, "convs.0.1.bias": top.bias}
    for index, size in enumerate(network.block_resolutions, start=1):
        block = network.get_submodule(f"b{size}")
        state |= {
            f"convs.{index}.conv1.0.weight": block.conv0.weight,
            f"convs.{index}.conv1.1.bias": block.conv0.bias,
            f"convs.{index}.conv2.0.kernel": taps,
            f"convs.{index}.conv2.1.weight": block.conv1.weight,
            f"convs.{index}.conv2.2.bias": block.conv1.bias,
            f"convs.{index}.skip.0.kernel": taps,
            f"convs.{index}.skip.1.weight": block.skip.weight,
        }
    last = network.b4
    state |= {
        "final_conv.0.weight": last.conv.weight,
        "final_conv.1.bias": last.conv.bias,
        "final_linear.0.weight": last.fc.weight,
        "final_linear.0.bias": last.fc.bias,
        "final_linear.1.weight": last.out.weight,
        "final_linear.1.bias": last.out.bias,
    }
    return {name: tensor.detach().clone() for name, tensor in state.items()}


# ---- Other libraries ----


def basicsr_state(generator: Generator) -> "OrderedDict[str, Tensor]":
    """A state dict of BasicSR's StyleGAN2Generator, which stores no filters."""
    state: dict[str, Tensor] = {}
    for name, tensor in rosinality_state(generator).items():
        if name.endswith(".kernel"):
            continue
        name = "constant_input.weight" if name == "input.input" else name
        name = re.sub(r"^style\.", "style_mlp.", name)
        name = re.sub(r"^(to_rgb\w*(?:\.\d+)?)\.conv\.", r"\1.modulated_conv.", name)
        name = re.sub(r"^(convs\.\d+|conv1)\.conv\.", r"style_\1.modulated_conv.", name)
        name = re.sub(r"^(convs\.\d+|conv1)\.noise\.", r"style_\1.", name)
        name = re.sub(r"^(convs\.\d+|conv1)\.", r"style_\1.", name)
        state[name.replace("noises.noise_", "noises.noise")] = tensor
    return OrderedDict(state)


def mmgeneration_state(generator: Generator) -> "OrderedDict[str, Tensor]":
    """A state dict of MMGeneration's StyleGANv2Generator with an average."""
    state: dict[str, Tensor] = {"w_avg": generator.mapping.w_avg}
    for name, tensor in rosinality_state(generator).items():
        name = "constant_input.input" if name == "input.input" else name
        name = re.sub(r"^style\.(\d+)\.weight", r"style_mapping.\1.linear.weight_orig", name)
        name = re.sub(r"^style\.", "style_mapping.", name).replace("noises.noise_", "injected_noise_")
        name = name.replace("conv.modulation.weight", "conv.style_modulation.linear.weight_orig")
        name = name.replace("conv.modulation.bias", "conv.style_modulation.bias")
        state[re.sub(r"conv\.weight$", "conv.weight_orig", name).replace(".noise.weight", ".noise_injector.weight")] = (
            tensor
        )
    return OrderedDict(state)


def _numbered_state(generator: Generator) -> Iterator[tuple[str, Tensor]]:
    """What GenForce and Hammer have in common, values as NVIDIA's."""
    for index in range(generator.spec.mapping_layers):
        layer = generator.mapping.get_submodule(f"fc{index}")
        yield f"mapping.dense{index}.weight", layer.weight
        yield f"mapping.dense{index}.bias", layer.bias
    row = 0
    for number, (size, _) in enumerate(generator.spec.channels):
        block = generator.synthesis.get_submodule(f"b{size}")
        if size == 4:
            yield "synthesis.early_layer.const", block.const[None]
        layers = {"layer": [block.conv0, block.conv1] if size > 4 else [block.conv1]}
        layers["output"] = [block.torgb] if hasattr(block, "torgb") else []
        for layer in layers["layer"]:
            yield from _numbered_layer(layer, f"synthesis.layer{row}")
            row += 1
        for layer in layers["output"]:
            yield from _numbered_layer(layer, f"synthesis.output{number}")


def _numbered_layer(layer: nn.Module, name: str) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", layer.weight
    yield f"{name}.bias", layer.bias
    yield f"{name}.style.weight", layer.affine.weight
    yield f"{name}.style.bias", layer.affine.bias
    if hasattr(layer, "noise_strength"):
        yield f"{name}.noise_strength", layer.noise_strength
        yield f"{name}.noise", layer.noise_const[None, None]


def genforce_state(generator: Generator) -> "OrderedDict[str, Tensor]":
    """A state dict of GenForce's StyleGAN2Generator, whose upsampling kernels and modulations are TensorFlow's."""
    taps = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 16
    state = {"truncation.w_avg": generator.mapping.w_avg, "synthesis.upsample.kernel": taps[None, None]}
    for name, tensor in _numbered_state(generator):
        match = re.fullmatch(r"synthesis\.layer(\d+)\.weight", name)
        if match is not None and int(match[1]) % 2 == 1:
            tensor = tensor.flip(2, 3)
            state[f"synthesis.layer{match[1]}.filter.kernel"] = taps[None, None]
        state[name] = tensor - 1 if name.endswith("style.bias") else tensor
    return OrderedDict((name, tensor.detach().clone()) for name, tensor in state.items())


def hammer_state(generator: Generator) -> "OrderedDict[str, Tensor]":
    """A state dict of Hammer's StyleGAN2Generator."""
    taps = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
    state = {"w_avg": generator.mapping.w_avg, "synthesis.layer1.filter": taps, **dict(_numbered_state(generator))}
    for number, (size, _) in enumerate(generator.spec.channels):
        block = generator.synthesis.get_submodule(f"b{size}")
        if hasattr(block, "skip"):
            state[f"synthesis.residual{number}.weight"] = block.skip.weight
            state[f"synthesis.residual{number}.filter"] = taps
    if generator.spec.c_dim:
        state |= {f"mapping.embedding.{name}": tensor for name, tensor in generator.mapping.embed.named_parameters()}
    return OrderedDict((name, tensor.detach().clone()) for name, tensor in state.items())


def module_of(state: Mapping[str, Tensor]) -> nn.Module:
    """A module whose state dict this is."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, tensor)
    if "constant_input.weight" in state:  # BasicSR filters in a module of its own
        root.get_submodule("style_convs.0.modulated_conv").add_module("smooth", nn.Module())
    return root


def torch_file(value: object, *, stream: bool = False) -> bytes:
    """What torch.save writes; `stream`: as before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not stream)
    return buffer.getvalue()
