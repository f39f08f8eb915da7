"""The average of w that a file keeps beside a generator, or above it, under one of many names."""

from collections.abc import Callable

from torch import Tensor

from labelmill.pipeline.generator.checkpoints.contents import Contents
from labelmill.pipeline.generator.checkpoints.inert import Unusable, text_of
from labelmill.pipeline.generator.checkpoints.named_tensors import NamedTensor
from labelmill.pipeline.generator.checkpoints.tensors import StoredTensor

_NAMES = ("latent_avg", "w_avg", "dlatent_avg", "mean_latent", "latent_mean", "avg_latent", "truncation_latent")
_MAX_ROWS = 64
_AGREEMENT = 1e-6


def find_average(contents: Contents, prefix: str) -> str | None:
    """The path of the average that lies nearest to the generator behind a prefix."""
    places = prefix.rstrip(".").split(".") if prefix else []
    for depth in range(len(places), -1, -1):
        for name in _NAMES:
            path = ".".join([*places[:depth], name])
            if path in contents.entries:
                return path
    return None


def common_row(stored: StoredTensor | Unusable, w_dim: int) -> NamedTensor | str:
    """The average [w_dim], where one row [.., w_dim] stands for each row of w too; else why there is none."""
    if isinstance(stored, Unusable):
        return text_of(stored.reason)
    if w_dim < 1 or not w_dim <= stored.num_elements <= _MAX_ROWS * w_dim or stored.num_elements % w_dim:
        return f"has shape {stored.shape}, w has {w_dim} numbers"
    rows_LD = stored.to_float32().reshape(-1, w_dim)
    if float((rows_LD - rows_LD[0]).abs().max()) > _AGREEMENT * float(rows_LD.abs().max()):
        return f"has {len(rows_LD)} rows that differ, one average for all rows is needed"
    return NamedTensor.of(stored, _first_row(w_dim))


def _first_row(w_dim: int) -> Callable[[Tensor], Tensor]:
    return lambda values: values.reshape(-1, w_dim)[0]
