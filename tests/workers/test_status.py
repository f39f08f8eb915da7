"""What `labelmill status` says of a dataset that was complete."""

from pathlib import Path

import pytest
from helpers.small_dataset import write_dataset

from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.workers.status import status, status_lines


def test_a_shard_that_is_gone_or_cut_since(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path)
    whole = status(store)
    assert whole.complete and whole.damaged == ()
    assert status_lines(whole)[0] == f"{whole.shards} shards, complete"
    first, second, _ = (file.path for file in store.list("shards") if file.path.endswith(".tar"))
    store.delete(first)
    store.replace(second, store.read(second)[:-512])
    found = status(store)
    assert not found.complete and found.damaged == (first, second)
    assert status_lines(found)[0] == f"{whole.shards - 1} shards, not complete"
    assert (
        f"these files are now missing or of another size: {first}, {second}; `labelmill verify`"
        in status_lines(found)[1]
    )
    store.delete("index.json")
    assert status(store).damaged == ("index.json",)


@pytest.mark.parametrize("file", ["latest.json", "snapshots/2026-12-01-0a1b/run.json"])
def test_a_nightly_root_is_told_as_one(tmp_path: Path, file: str) -> None:
    root = Store.open(str(tmp_path))
    with pytest.raises(OutputError, match="no run has started there"):
        status(root)
    root.create(file, b"{}")
    with pytest.raises(OutputError, match=rf"is a nightly root.*`labelmill nightly status {tmp_path}`"):
        status(root)
