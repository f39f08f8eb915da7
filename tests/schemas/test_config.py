"""What a run file may not say, though each of its values alone would do."""

import pytest

from labelmill.schemas.config import ExecutionConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.yaml_file import validate


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ({"gpus_per_worker": 2}, "gpus_per_worker: 2, but a worker computes on one GPU; set 1, and more `workers`"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker: 1.5, but a worker computes on one GPU"),
        ({"gpus_per_worker": 1, "device": "cpu"}, "gpus_per_worker: 1 would reserve GPUs that `device: cpu` never"),
        ({"gpus_per_worker": 0, "device": "cuda"}, "gpus_per_worker: 0, but `device: cuda` needs one"),
    ],
)
def test_gpus_that_workers_would_not_use(execution: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(execution, "run.yaml", ExecutionConfig)
    assert words in str(raised.value)


@pytest.mark.parametrize("gpus", ["auto", 0, 0.5, 1])
def test_gpus_that_workers_use(gpus: float | str) -> None:
    assert validate({"gpus_per_worker": gpus}, "run.yaml", ExecutionConfig).gpus_per_worker == gpus
