"""Files of rosinality's stylegan2-pytorch and its many descendants: a state dict, or a dictionary of some.

Known variants: `g_ema` with or without `latent_avg`; training files with `g`, `d`, optimisers and `args`; a bare state
dict; Labels4Free's training files, whose `g` is the generator and whose `bg_extractor` is an alpha network.
"""

import re
from collections.abc import Callable, Mapping
from itertools import islice

from torch import Tensor

from pipeline.generator.checkpoints.assemble import ReadNetworks, build_discriminator, build_generator
from pipeline.generator.checkpoints.inert import MAX_NAME, MAX_PARTS, UnreadableError, describe_value
from pipeline.generator.checkpoints.named_tensors import NamedTensor, check_filter, unchanged
from pipeline.generator.checkpoints.tensors import StoredTensor
from pipeline.generator.discriminator import Discriminator

FORMAT = "rosinality checkpoint"

LICENCE_NOTE = (
    "not stated in the file; weights converted from NVIDIA's keep their Nvidia Source Code License-NC (no commercial "
    "use), weights of your own training are yours"
)

_GENERATOR_KEYS = ("g_ema", "params_ema", "g", "generator", "state_dict")
_MARK = "input.input"
_MAX_FILTER_ELEMENTS = 64


def _first(values: Tensor) -> Tensor:
    return values[0]


def _first_plane(values: Tensor) -> Tensor:
    return values[0, 0]


def _flat(values: Tensor) -> Tensor:
    return values.reshape(-1)


def _number(values: Tensor) -> Tensor:
    return values.reshape(())


_LAYER_PARTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "conv.weight": ("weight", _first),
    "conv.modulation.weight": ("affine.weight", unchanged),
    "conv.modulation.bias": ("affine.bias", unchanged),
    "noise.weight": ("noise_strength", _number),
    "activate.bias": ("bias", _flat),
    "bias": ("bias", _flat),
}
_FILTER = re.compile(r"(convs\.\d{1,3}\.conv\.blur|to_rgbs\.\d{1,3}\.upsample|.*\.\d{1,3})\.kernel")


def is_rosinality(root: object) -> bool:
    """Whether an unpickled value is a dictionary with text keys, as all of these files are."""
    return isinstance(root, dict) and len(root) > 0 and all(isinstance(key, str) for key in root)


def read_rosinality(root: object, num_file_bytes: int, *, discriminator: bool) -> ReadNetworks:
    """The averaged generator of a file. Raises UnreadableError, which says what else the file is."""
    assert isinstance(root, dict)
    key, state = _find_generator(root)
    renamed = {}
    for name, stored in state.items():
        target = _target(name)
        if target is None:
            check_filter(_small(name, stored))
        else:
            renamed[target[0]] = NamedTensor.of(stored, target[1])
    provenance = {"licence": LICENCE_NOTE, "weights": key}
    average = root.get("latent_avg")
    w_dim = next((t.shape[1] for n, t in renamed.items() if n.endswith("affine.weight") and len(t.shape) == 2), 0)
    if isinstance(average, StoredTensor) and average.num_elements == w_dim:
        renamed["mapping.w_avg"] = NamedTensor.of(average, _flat)
    generator, filled_in = build_generator(renamed, conv_clamp=None, num_file_bytes=num_file_bytes)
    if "bg_extractor" in root or "bg_extractor_ema" in root:
        provenance["alpha network"] = "the file's Labels4Free bg_extractor, not used"
    return ReadNetworks(
        FORMAT,
        generator,
        _read_discriminator(root, num_file_bytes) if discriminator else None,
        _state_dict(root.get("d")) is not None,
        {**provenance, **filled_in},
    )


def _state_dict(value: object) -> dict[str, StoredTensor] | None:
    """A dictionary of tensors with text keys, less the prefix that data-parallel training adds; else None."""
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_PARTS:
        return None
    state = {}
    for name, stored in value.items():
        if not isinstance(name, str) or not isinstance(stored, StoredTensor):
            return None
        state[name[:MAX_NAME].removeprefix("module.")] = stored
    return state


def _find_generator(root: Mapping[object, object]) -> tuple[str, dict[str, StoredTensor]]:
    """Where the generator is stored, and its tensors."""
    for key in _GENERATOR_KEYS:
        state = _state_dict(root.get(key))
        if state is not None and _MARK in state:
            return key, state
    bare = _state_dict({key: value for key, value in root.items() if key != "latent_avg"})
    if bare is not None and _MARK in bare:
        return "the file itself", bare
    raise UnreadableError(_what_else(root))


def _what_else(root: Mapping[object, object]) -> str:
    """A sentence on a file without a generator of this kind."""
    names = [str(key)[:MAX_NAME] for key in islice(root, MAX_PARTS)]
    within = (str(name)[:MAX_NAME] for value in root.values() if isinstance(value, dict) for name in value)
    inner = list(islice(within, MAX_PARTS))
    if "bg_extractor" in names or "bg_extractor_ema" in names:
        return (
            "a Labels4Free alpha network (bg_extractor) without its generator: it only works on top of the StyleGAN2 "
            "it was trained with; give that generator's file"
        )
    if any(".progression." in name or name.startswith("progression.") for name in names + inner):
        return "a StyleGAN1 checkpoint (rosinality's style-based-gan-pytorch); StyleGAN2 works"
    if any(name.startswith(("synthesis.input.", "synthesis.L")) for name in names + inner):
        return "a StyleGAN3 state dict; StyleGAN2 works"
    if any(name.endswith("final_conv.0.weight") for name in names + inner):
        return "holds a discriminator but no generator; a file with g_ema (or g) works"
    listed = ", ".join(describe_value(name) for name in names[:6])
    return f"holds no StyleGAN2 generator; its entries are {listed}{' ...' if len(names) > 6 else ''}"


def _target(name: str) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """NVIDIA's name and the conversion for a tensor of the generator; None for a resampling filter."""
    if name == _MARK:
        return "synthesis.b4.const", _first
    if _FILTER.fullmatch(name) is not None:
        return None
    match = re.fullmatch(r"style\.([1-9]\d?)\.(weight|bias)", name)
    if match is not None:
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}", unchanged
    match = re.fullmatch(r"noises\.noise_(\d{1,3})", name)
    if match is not None:
        return f"{_layer(int(match[1]))}.noise_const", _first_plane
    match = re.fullmatch(r"(conv1|convs\.\d{1,3}|to_rgb1|to_rgbs\.\d{1,3})\.(.+)", name)
    if match is not None and match[2] in _LAYER_PARTS:
        part, convert = _LAYER_PARTS[match[2]]
        return f"{_module(match[1])}.{part}", convert
    raise UnreadableError(f"its generator has {name[:80]!r}, unknown to StyleGAN2: a fork of rosinality's code")


def _module(name: str) -> str:
    """NVIDIA's module for conv1, convs.N, to_rgb1, to_rgbs.N."""
    family, _, index = name.partition(".")
    if family in ("conv1", "to_rgb1"):
        return "synthesis.b4.conv1" if family == "conv1" else "synthesis.b4.torgb"
    if family == "convs":
        return _layer(int(index) + 1)
    return f"synthesis.b{8 << int(index)}.torgb"


def _layer(row: int) -> str:
    """NVIDIA's convolution for a row of w, which is also the number of its noise buffer."""
    return f"synthesis.b{4 << (row + 1) // 2}.conv{1 if row % 2 == 0 else 0}"


def _small(name: str, stored: StoredTensor) -> Tensor:
    if stored.num_elements > _MAX_FILTER_ELEMENTS:
        raise UnreadableError(f"damaged: {name[:80]} has shape {stored.shape}")
    return stored.to_float32()


def _read_discriminator(root: Mapping[object, object], num_file_bytes: int) -> Discriminator | None:
    state = _state_dict(root.get("d"))
    if state is None:
        return None
    blocks = [int(m[1]) for m in (re.fullmatch(r"convs\.(\d{1,2})\.conv1\.0\.weight", name) for name in state) if m]
    resolution = 4 << len(blocks)
    renamed = {}
    for name, stored in state.items():
        if _FILTER.fullmatch(name) is not None:
            check_filter(_small(name, stored))
        else:
            convert = _flat if name.endswith(".bias") else unchanged
            renamed[_discriminator_target(name, resolution)] = NamedTensor.of(stored, convert)
    return build_discriminator(renamed, conv_clamp=None, group_size=4, num_file_bytes=num_file_bytes)


def _discriminator_target(name: str, resolution: int) -> str:
    """NVIDIA's name for a tensor of the discriminator."""
    fixed = {
        "convs.0.0.weight": f"b{resolution}.fromrgb.weight",
        "convs.0.1.bias": f"b{resolution}.fromrgb.bias",
        "final_conv.0.weight": "b4.conv.weight",
        "final_conv.1.bias": "b4.conv.bias",
        "final_linear.0.weight": "b4.fc.weight",
        "final_linear.0.bias": "b4.fc.bias",
        "final_linear.1.weight": "b4.out.weight",
        "final_linear.1.bias": "b4.out.bias",
    }
    if name in fixed:
        return fixed[name]
    parts = {
        "conv1.0.weight": "conv0.weight",
        "conv1.1.bias": "conv0.bias",
        "conv2.1.weight": "conv1.weight",
        "conv2.2.bias": "conv1.bias",
        "skip.1.weight": "skip.weight",
    }
    match = re.fullmatch(r"convs\.([1-9]\d?)\.(.+)", name)
    if match is None or match[2] not in parts:
        raise UnreadableError(f"its discriminator has {name[:80]!r}, unknown to StyleGAN2")
    return f"b{resolution >> (int(match[1]) - 1)}.{parts[match[2]]}"
