"""Planning: exactly N samples, disjoint seeds, growth by whole shards."""

import hashlib
import time
from pathlib import Path

import pytest
from helpers.records import make_record
from hypothesis import given
from hypothesis import strategies as st

from labelmill.pipeline.dataset.existing_shards import existing_records
from labelmill.pipeline.dataset.plan import check_extension, remaining_tasks, shard_tasks
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.shards.publisher import parquet_path, record_path, tar_path
from labelmill.pipeline.shards.sealed import seal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import DatasetConfig, RunConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.sample import ImageShape
from labelmill.schemas.yaml_file import validate


def _config(samples: int, per_shard: int, candidates: int = 2, first_seed: int = 0) -> RunConfig:
    dataset = {
        "samples": samples,
        "samples_per_shard": per_shard,
        "max_candidates_per_sample": candidates,
        "first_seed": first_seed,
    }
    values = {"name": "run", "output": "out", "generator": {"checkpoint": "x"}, "dataset": dataset}
    return validate(values, "test", RunConfig)


counts = st.integers(1, 300)


@given(samples=counts, per_shard=st.integers(1, 50), candidates=st.integers(1, 5), first=st.integers(0, 10**9))
def test_tasks_deliver_exactly_and_share_no_seed(samples: int, per_shard: int, candidates: int, first: int) -> None:
    tasks = shard_tasks(_config(samples, per_shard, candidates, first))
    assert sum(task.num_samples for task in tasks) == samples
    assert [task.index for task in tasks] == list(range(len(tasks)))
    assert all(1 <= task.num_samples <= per_shard for task in tasks)
    seed = first
    for task in tasks:
        assert (task.first_seed, task.num_seeds) == (seed, per_shard * candidates)
        seed += task.num_seeds


@given(samples=counts, more=counts, per_shard=st.integers(1, 50))
def test_growth_keeps_existing_shards_or_is_refused(samples: int, more: int, per_shard: int) -> None:
    before = shard_tasks(_config(samples, per_shard))
    config = _config(more, per_shard)
    after = shard_tasks(config)
    records = [make_record(task.index, task.num_samples, {}) for task in before]
    try:
        check_extension(config.dataset, records)
    except OutputError as error:
        assert after[: len(before)] != before
        assert f"{samples} " in str(error)
        check_extension(_config(samples, per_shard).dataset, records)  # the count it names works
    else:
        assert after[: len(before)] == before
        assert remaining_tasks(after, records) == after[len(before) :]


def test_nothing_there_yet_takes_any_count() -> None:
    check_extension(DatasetConfig(samples=7, samples_per_shard=3), [])


def test_the_refusal_says_what_to_delete() -> None:
    records = [make_record(task.index, task.num_samples, {}) for task in shard_tasks(_config(120, 50))]
    with pytest.raises(OutputError, match=r"run-000002.*120 works.*shards/run-000002\.tar.*records/000002\.json"):
        check_extension(_config(200, 50).dataset, records)


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_hundred_thousand_shards_are_planned_against_within_ten_seconds(tmp_path: Path, count: int) -> None:
    for folder in ("shards", "records"):
        (tmp_path / folder).mkdir()
    empty = hashlib.sha256(b"").hexdigest()
    for index in range(count):
        made = {"sha256": empty, "parquet_sha256": empty}
        record = make_record(index, 5, {"fragmented": 1}).model_copy(update=made)
        (tmp_path / tar_path(record.name)).touch()
        (tmp_path / parquet_path(record.name)).touch()
        (tmp_path / record_path(index)).write_bytes(seal(record))
    config = _config(5 * count + 50, per_shard=5).model_copy(update={"output": str(tmp_path)})
    origin = ShardOrigin(
        fingerprint="",
        checkpoint_sha256="",
        classes=(),
        image_shape=ImageShape(height=32, width=32, channels=3),
        image_format="jpg",
    )
    start = time.process_time()
    done = existing_records(Store.open(str(tmp_path)), config, origin, repair=False)
    tasks = remaining_tasks(shard_tasks(config), done)
    seconds = time.process_time() - start
    assert [task.index for task in tasks] == list(range(count, count + 10))
    assert seconds < 10
