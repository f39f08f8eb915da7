"""Stored tensors under our names, and a network filled with them: every name and shape must fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labelmill.pipeline.generator.checkpoints.inert import OTHER_NETWORK, UnreadableError, describe_value
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor
from labelmill.pipeline.generator.layers import binomial_filter
from labelmill.pipeline.generator.networks import MAPPING_RATE_MULTIPLIER

FILTER_SUFFIX = "resample_filter"
_MAX_FILTER_ELEMENTS = 64

Conversion = Callable[[Tensor], Tensor]


def unchanged(values: Tensor) -> Tensor:
    """The tensor itself."""
    return values


@dataclass(frozen=True)
class NamedTensor:
    """A stored tensor on its way to one of ours: converted when its turn comes."""

    stored: StoredTensor
    shape: tuple[int, ...]
    """Once arranged."""
    arrange: Conversion
    """Indexing, permuting, reshaping."""
    adjust: Conversion
    """What changes values, not the shape."""

    @classmethod
    def of(
        cls,
        stored: StoredTensor,
        arrange: Conversion = unchanged,
        adjust: Conversion = unchanged,
    ) -> "NamedTensor":
        """The arranged shape is found without memory. Raises UnreadableError when it cannot be arranged."""
        try:
            shape = tuple(arrange(torch.empty(stored.shape, device="meta")).shape)
        except (RuntimeError, IndexError) as error:
            raise UnreadableError(f"damaged: a tensor of shape {stored.shape} where another is due") from error
        return cls(stored, shape, arrange, adjust)

    def values(self) -> Tensor:
        """The tensor, float32. Raises UnreadableError when a value is not finite."""
        return self.adjust(self.arrange(self.stored.to_float32()))


def rate_ratio(multiplier: object) -> float:
    """What brings mapping weights stored for a learning rate multiplier (None: ours) to ours; the product counts."""
    if multiplier is None:
        return 1.0
    if not isinstance(multiplier, int | float) or not 0 < multiplier <= 1e6:
        raise UnreadableError(
            f"unknown architecture option: learning rate multiplier {describe_value(multiplier)}", OTHER_NETWORK
        )
    return multiplier / MAPPING_RATE_MULTIPLIER


def fill_network(network: nn.Module, state: Mapping[str, NamedTensor | Tensor]) -> None:
    """Replace a network's tensors. Raises UnreadableError."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    filters = {name for name in expected if name.endswith(FILTER_SUFFIX)}
    for name in filters & state.keys():
        tensor = state[name]
        check_filter(tensor if isinstance(tensor, Tensor) else stored_filter(tensor.stored))
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in filters}
    check_names({name: expected[name] for name in filters} | found, expected)
    values = {name: binomial_filter() for name in filters}
    for name in found:
        tensor = state[name]
        values[name] = _laid_out(tensor if isinstance(tensor, Tensor) else _converted(name, tensor))
    network.load_state_dict(values, assign=True)


def stored_filter(stored: StoredTensor) -> Tensor:
    """The numbers of a resampling filter; none at all when it is larger than any."""
    return stored.to_float32() if stored.num_elements <= _MAX_FILTER_ELEMENTS else torch.zeros(0)


def check_filter(kernel: Tensor) -> None:
    """A resampling filter, whatever it sums to, must be [1, 3, 3, 1] in both directions. Raises UnreadableError."""
    ours, kernel = binomial_filter(), kernel.squeeze()
    if kernel.ndim == 1:
        kernel = torch.outer(kernel, kernel)
    if kernel.shape != ours.shape or not torch.allclose(kernel / kernel.sum(), ours, atol=1e-6):
        raise UnreadableError(
            "unknown architecture option: a resampling filter other than [1, 3, 3, 1], which every StyleGAN2 has",
            "Give a network that was trained with the standard filter",
        )


def check_names(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Names and shapes must be those of the network. Raises UnreadableError."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        listed = [f"{title} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
                  for title, names in (("lacks", missing), ("has in addition", surplus)) if names]  # fmt: skip
        raise UnreadableError(
            f"its tensors are not those of a StyleGAN2 network: it {' and '.join(listed)[:300]}", OTHER_NETWORK
        )
    for name, shape in expected.items():
        if tuple(found[name]) != shape or 0 in shape:
            raise UnreadableError(
                f"{name} has shape {tuple(found[name])}, the network that the other tensors make needs {shape}",
                OTHER_NETWORK,
            )


def _converted(name: str, tensor: NamedTensor) -> Tensor:
    try:
        return tensor.values()
    except UnreadableError as error:
        raise UnreadableError(f"{name} {error}", error.advice) from error


def _laid_out(values: Tensor) -> Tensor:
    """Kernels channels-last, as synthesis wants them; the rest contiguous."""
    if values.ndim == 4:
        return values.contiguous(memory_format=torch.channels_last)
    return values.contiguous()
