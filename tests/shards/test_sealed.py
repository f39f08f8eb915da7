"""Sealed files tell every change."""

import pytest
from helpers.records import make_record
from hypothesis import given
from hypothesis import strategies as st

from labelmill.pipeline.shards.sealed import seal, unseal
from labelmill.schemas.shard import ShardRecord

RECORD = make_record(3, 5, {"fragmented": 1})
SEALED = seal(RECORD)


def test_what_was_sealed_is_read_back() -> None:
    found = unseal(SEALED, ShardRecord)
    assert found is not None and found.is_sealed and found.content == RECORD
    assert seal(RECORD) == SEALED


@given(position=st.integers(0, len(SEALED) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_told(position: int, bit: int) -> None:
    damaged = bytearray(SEALED)
    damaged[position] ^= 1 << bit
    assert unseal(bytes(damaged), ShardRecord) is None


@given(cut=st.integers(0, len(SEALED) - 1))
def test_a_cut_is_told(cut: int) -> None:
    assert unseal(SEALED[:cut], ShardRecord) is None


@pytest.mark.parametrize("more", [b" ", b"\n", b"\0", SEALED])
def test_what_follows_is_told(more: bytes) -> None:
    assert unseal(SEALED + more, ShardRecord) is None


def test_files_of_earlier_versions_are_read_and_known() -> None:
    old = RECORD.model_dump_json(indent=2, exclude={"kind", "parquet_sha256"}).encode() + b"\n"
    found = unseal(old, ShardRecord)
    assert found is not None and not found.is_sealed and found.content == RECORD
