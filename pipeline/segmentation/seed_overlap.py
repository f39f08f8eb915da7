"""Samples that two splits share: a checkpoint and a seed are a sample's identity, whichever run made it."""

from collections.abc import Sequence

from labelmill.pipeline.dataset.plan import held_out_first_seed
from labelmill.pipeline.segmentation.reading import Split
from labelmill.pipeline.shards.publisher import read_kept_seeds
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import ConfigError


def check_apart(learned: Split, held_out: Split) -> None:
    """Raises ConfigError where a split to score on holds samples of the one to learn from: by their checkpoint and
    seeds, as one dataset goes by many paths, and one sample by many runs, which may differ in truncation or format.
    """
    if learned.checkpoint_sha256 != held_out.checkpoint_sha256:
        return
    shared = _kept_seeds(learned, held_out.seed_blocks) & _kept_seeds(held_out, learned.seed_blocks)
    if shared:
        raise ConfigError(
            f"held_out: {len(shared)} of its {held_out.num_samples} samples are of the same checkpoint and seeds as "
            f"samples of data (seeds {min(shared)} to {max(shared)}), so they show the same; a score there says "
            f"nothing of other images. Take another split of the dataset (data.split: train, held_out.split: val), or "
            f"one made with dataset.first_seed: {held_out_first_seed(learned.dataset)}. To score there anyway, "
            f"set allow_shared_seeds: true"
        )


def _kept_seeds(split: Split, others: Sequence[range]) -> set[int]:
    """The seeds of the samples in those shards whose blocks of seeds meet others. Few files are read, if any."""
    store = Store.open(split.url)
    low, high = min(block.start for block in others), max(block.stop for block in others)
    seeds: set[int] = set()
    for shard, block in zip(split.shards, split.seed_blocks, strict=True):
        if block.start >= high or block.stop <= low:
            continue
        if any(block.start < other.stop and other.start < block.stop for other in others):
            seeds |= read_kept_seeds(store, shard.url)
    return seeds
