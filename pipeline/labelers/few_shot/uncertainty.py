"""How sure a head is of each image, and the limit beyond which candidates are dropped.

Shape suffixes: M members, B batch, K classes, H height, W width.
"""

from math import ceil, log

from torch import Tensor

# Jensen-Shannon: share of the pixels that count, those where members differ most (Zhang et al., DatasetGAN, CVPR 2021,
# section 3.2; authors' code).
_TOP_SHARE = 0.1
_TINY = 1e-12


def uncertainty(probabilities_MBKHW: Tensor, measure: str) -> Tensor:
    """[B] float32, 0 (sure) or more, by one of the measures of `drop_by`."""
    return {"disagreement": disagreement, "entropy": mean_entropy, "jensen_shannon": jensen_shannon}[measure](
        probabilities_MBKHW
    )


def disagreement(probabilities_MBKHW: Tensor) -> Tensor:
    """Share of the pixels that a member labels otherwise than the mean of all does, the mean over members [B]."""
    decided_BHW = probabilities_MBKHW.mean(dim=0).argmax(dim=1)
    return (probabilities_MBKHW.argmax(dim=2) != decided_BHW).float().mean(dim=(0, 2, 3))


def mean_entropy(probabilities_MBKHW: Tensor) -> Tensor:
    """Entropy of the members' mean, as share of the most that it can be, the mean over pixels [B]."""
    num_classes = probabilities_MBKHW.shape[2]
    return _entropy(probabilities_MBKHW.mean(dim=0), dim=1).mean(dim=(1, 2)) / log(num_classes)


def jensen_shannon(probabilities_MBKHW: Tensor) -> Tensor:
    """Entropy of the mean less mean entropy, the mean of the tenth of the pixels where it is largest [B].

    From probabilities, as the paper has it; the authors' code takes entropies of logits.
    """
    divergence_BHW = _entropy(probabilities_MBKHW.mean(dim=0), dim=1) - _entropy(probabilities_MBKHW, dim=2).mean(dim=0)
    values_BP = divergence_BHW.flatten(1)
    return values_BP.topk(ceil(_TOP_SHARE * values_BP.shape[1]), dim=1).values.mean(dim=1).clamp_min(0)


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    return -(probabilities * probabilities.clamp_min(_TINY).log()).sum(dim=dim)


def limit(uncertainties_B: Tensor, drop_portion: float) -> Tensor:
    """[] float32: what that share of these uncertainties, at most, lies beyond."""
    kept = len(uncertainties_B) - round(drop_portion * len(uncertainties_B))
    return uncertainties_B.sort().values[max(kept, 1) - 1]
