"""What decides a shard's bytes is in the fingerprint, and nothing else."""

import pytest

from labelmill.schemas.config import RunConfig
from labelmill.schemas.fingerprint import differing_keys, fingerprint, identity
from labelmill.schemas.yaml_file import validate


def _config(**changes: object) -> RunConfig:
    values = {
        "name": "a",
        "output": "out",
        "generator": {"checkpoint": "x", **changes.pop("generator", {})},  # type: ignore[dict-item]
        "dataset": {"samples": 10, **changes.pop("dataset", {})},  # type: ignore[dict-item]
        **changes,
    }
    return validate(values, "test", RunConfig)


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "elsewhere"},
        {"execution": {"encode_threads": 7}},
        {"dataset": {"samples": 99}},
        {"generator": {"checkpoint": "the same file under another name"}},
    ],
)
def test_where_and_how_much_is_no_part_of_it(changes: dict[str, object]) -> None:
    assert identity(_config(**changes), "00", {}) == identity(_config(), "00", {})


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"generator": {"truncation_psi": 0.5}},
            "generator.truncation_psi: 0.5 in the run file, 0.7 in the output",
        ),
        ({"numerics": {"batch_size": 3}}, "numerics.batch_size: 3 in the run file, 16 in the output"),
        ({"quality": {"enabled": False}}, "quality.enabled: False in the run file, True in the output"),
        ({"dataset": {"first_seed": 5}}, "dataset.first_seed: 5 in the run file, 0 in the output"),
    ],
)
def test_what_changes_bytes_is_part_of_it_and_is_named(changes: dict[str, object], key: str) -> None:
    ours, theirs = identity(_config(**changes), "00", {}), identity(_config(), "00", {})
    assert fingerprint(ours, "11") != fingerprint(theirs, "11")
    assert differing_keys(ours, theirs) == [key]


def test_checkpoint_and_labeler_are_part_of_it_by_content() -> None:
    config = _config()
    assert fingerprint(identity(config, "00", {}), "11") != fingerprint(identity(config, "22", {}), "11")
    assert fingerprint(identity(config, "00", {}), "11") != fingerprint(identity(config, "00", {}), "22")
