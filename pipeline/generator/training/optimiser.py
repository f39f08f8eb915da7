"""How a step moves the networks: Adam without momentum, and the average that is published."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class SecondMomentAdam:
    """Adam with beta1 = 0 (Kingma & Ba 2015): no first moment, so half of Adam's state."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        rate: float,
        beta2: float,
        epsilon: float = 1e-8,
        may_overflow: bool = False,
    ) -> None:
        self.parameters, self.rate, self.beta2, self.epsilon = dict(parameters), rate, beta2, epsilon
        self.may_overflow = may_overflow
        self.num_steps = 0
        self.moments = {name: torch.zeros_like(tensor) for name, tensor in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate_scale: float = 1.0) -> None:
        """Apply and clear the gradients; parameters without one stay. With `may_overflow` (float16), NaN counts
        as 0 and infinity as 1e5."""
        names = [name for name, tensor in self.parameters.items() if tensor.grad is not None]
        if not names:  # all frozen: the bias correction of the first step that moves them is still to come
            return
        self.num_steps += 1
        gradients = [_gradient(self.parameters[name]) for name in names]
        if self.may_overflow:
            gradients = [torch.nan_to_num_(gradient, posinf=1e5, neginf=-1e5) for gradient in gradients]
        moments = [self.moments[name] for name in names]
        torch._foreach_mul_(moments, self.beta2)
        torch._foreach_addcmul_(moments, gradients, gradients, 1 - self.beta2)
        scales = torch._foreach_div(moments, 1 - self.beta2**self.num_steps)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, self.epsilon)
        torch._foreach_addcdiv_([self.parameters[name] for name in names], gradients, scales, -self.rate * rate_scale)
        self.clear()

    def requires_grad_(self, needed: bool) -> None:
        """Freeze the parameters, or no longer."""
        for tensor in self.parameters.values():
            tensor.requires_grad_(needed)

    def clear(self) -> None:
        for tensor in self.parameters.values():
            tensor.grad = None


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Move each parameter of `average` towards `current`: p <- decay p + (1 - decay) q; copy the buffers."""
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(average.parameters(), current.parameters(), strict=True)
    ours, theirs = (list(side) for side in zip(*pairs, strict=True))
    torch._foreach_lerp_(ours, theirs, 1 - decay)
    for own, other in zip(average.buffers(), current.buffers(), strict=True):
        own.copy_(other)
