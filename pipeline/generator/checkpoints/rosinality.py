"""The discriminator of rosinality's stylegan2-pytorch under NVIDIA's names."""

import re
from collections.abc import Mapping

from torch import Tensor

from labelmill.pipeline.generator.checkpoints.inert import OTHER_NETWORK, UnreadableError
from labelmill.pipeline.generator.checkpoints.named_tensors import NamedTensor, check_filter, stored_filter, unchanged
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor

DISCRIMINATOR_MARK = "final_conv.0.weight"

_FIXED = {
    "final_conv.0.weight": "b4.conv.weight",
    "final_conv.1.bias": "b4.conv.bias",
    "final_linear.0.weight": "b4.fc.weight",
    "final_linear.0.bias": "b4.fc.bias",
    "final_linear.1.weight": "b4.out.weight",
    "final_linear.1.bias": "b4.out.bias",
}
_PARTS = {
    "conv1.0.weight": "conv0.weight",
    "conv1.1.bias": "conv0.bias",
    "conv2.1.weight": "conv1.weight",
    "conv2.2.bias": "conv1.bias",
    "skip.1.weight": "skip.weight",
}
_FILTER = re.compile(r"convs\.\d{1,2}\.(conv2|skip)\.0\.kernel")


def discriminator_tensors(state: Mapping[str, StoredTensor]) -> dict[str, NamedTensor]:
    """Tensors of a discriminator under NVIDIA's names. Raises UnreadableError for those that no StyleGAN2 has."""
    blocks = [name for name in state if re.fullmatch(r"convs\.\d{1,2}\.conv1\.0\.weight", name)]
    resolution, renamed = 4 << min(len(blocks), 32), {}
    for name, stored in state.items():
        if _FILTER.fullmatch(name) is not None:
            check_filter(stored_filter(stored))
        else:
            arrange = _flat if name.endswith(".bias") else unchanged
            renamed[_target(name, resolution)] = NamedTensor.of(stored, arrange)
    return renamed


def _flat(values: Tensor) -> Tensor:
    return values.reshape(-1)


def _target(name: str, resolution: int) -> str:
    """NVIDIA's name for a tensor of the discriminator."""
    fixed = {
        **_FIXED,
        "convs.0.0.weight": f"b{resolution}.fromrgb.weight",
        "convs.0.1.bias": f"b{resolution}.fromrgb.bias",
    }
    if name in fixed:
        return fixed[name]
    match = re.fullmatch(r"convs\.([1-9]\d?)\.(.+)", name)
    if match is None or match[2] not in _PARTS:
        raise UnreadableError(f"its discriminator has {name[:80]!r}, unknown to StyleGAN2", OTHER_NETWORK)
    return f"b{resolution >> (int(match[1]) - 1)}.{_PARTS[match[2]]}"
