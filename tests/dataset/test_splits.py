"""Splits: all there as soon as they can be, in their shares, and no shard ever moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.pipeline.dataset.splits import assign_splits, check_splits, empty_splits, num_hashed_shards
from labelmill.schemas.config import DatasetConfig
from labelmill.schemas.errors import ConfigError

DEFAULT = {"train": 0.9, "val": 0.1}
# Of the first 20 shards, as versions assigned them that went by a hash of the index.
HASHED_DEFAULT = ["val" if index in (5, 8, 12, 13) else "train" for index in range(20)]


def test_the_default_splits_of_the_first_shards() -> None:
    assert assign_splits(1, DEFAULT) == ["train"]
    assert assign_splits(17, DEFAULT) == ["train", "val", *["train"] * 13, "val", "train"]
    assert assign_splits(4, {"test": 0.1, "train": 0.8, "val": 0.1}) == ["train", "test", "val", "train"]
    assert assign_splits(3, {"all": 1.0}) == ["all"] * 3


def test_datasets_of_earlier_versions_keep_their_splits() -> None:
    """Golden: the first shards by hash of their index, as written until now; then each split that lacks a shard."""
    assert assign_splits(20, DEFAULT, num_hashed=20) == HASHED_DEFAULT
    grown = assign_splits(21, DEFAULT, num_hashed=5)
    assert grown[:6] == [*HASHED_DEFAULT[:5], "val"] and grown[6:].count("val") == 1


shares_of = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(
    lambda parts: {f"split{number}": part / sum(parts) for number, part in enumerate(parts)}
)


@given(shares=shares_of, count=st.integers(1, 300), more=st.integers(0, 100), hashed=st.integers(0, 40))
def test_growth_moves_no_shard_and_keeps_shares(shares: dict[str, float], count: int, more: int, hashed: int) -> None:
    splits = assign_splits(count, shares)
    assert assign_splits(count + more, shares)[:count] == splits
    assert assign_splits(count + more, shares, min(hashed, count))[:count] == assign_splits(count, shares, hashed)
    if count >= len(shares):
        assert set(splits) == set(shares)
    if count >= 100:
        assert all(abs(splits.count(name) - share * count) <= 2 for name, share in shares.items())
    assert num_hashed_shards(splits, shares) == 0


@given(shares=shares_of, count=st.integers(1, 60), hashed=st.integers(0, 60))
def test_what_was_assigned_by_hash_is_found_again(shares: dict[str, float], count: int, hashed: int) -> None:
    splits = assign_splits(count, shares, min(hashed, count))
    assert assign_splits(count, shares, num_hashed_shards(splits, shares)) == splits


def test_a_split_without_a_share_gets_nothing() -> None:
    assert set(assign_splits(50, {"train": 1.0, "val": 0.0})) == {"train"}


def _dataset(samples: int, splits: dict[str, float]) -> DatasetConfig:
    return DatasetConfig(samples=samples, samples_per_shard=500, splits=splits)


def test_too_few_shards_are_refused_with_what_would_do() -> None:
    three = {"train": 0.8, "val": 0.1, "test": 0.1}
    with pytest.raises(ConfigError, match=r"dataset\.splits: train, val, test are 3 splits, but 900 samples") as error:
        check_splits(_dataset(900, three))
    assert "dataset.samples_per_shard to 300 or less, or dataset.samples to 1001 or more" in str(error.value)
    check_splits(_dataset(900, three).model_copy(update={"samples_per_shard": 300}))
    check_splits(_dataset(1001, three))
    check_splits(_dataset(501, DEFAULT))


def test_a_single_shard_is_no_split_yet() -> None:
    check_splits(_dataset(64, DEFAULT))
    assert empty_splits(_dataset(64, DEFAULT)) == ["val"]
    assert empty_splits(_dataset(501, DEFAULT)) == []
