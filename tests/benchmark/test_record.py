"""Records of measured rows: which ones count."""

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from labelmill.pipeline.benchmark.masks.sweep import MaskSweep
from labelmill.pipeline.benchmark.record import bundled_weights_sha256, read_row, row_key, write_row
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.prompt_models import open_prompt_model
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig


class Row(BaseModel):
    name: str
    key: str


def test_a_row_counts_while_its_fields_are_as_expected(tmp_path: Path) -> None:
    store, row = Store.open(str(tmp_path)), Row(name="a", key="k")
    assert read_row(store, "rows/a.json", Row, key="k") is None
    write_row(store, "rows/a.json", row)
    assert read_row(store, "rows/a.json", Row, name="a", key="k") == row
    assert read_row(store, "rows/a.json", Row, name="a", key="another") is None
    assert read_row(store, "rows/a.json", Row, name="b", key="k") is None
    store.replace("rows/a.json", store.read("rows/a.json")[:10])
    assert read_row(store, "rows/a.json", Row, key="k") is None


@pytest.fixture
def sampler(tiny_checkpoint: Path) -> Sampler:
    generator = open_checkpoint(str(tiny_checkpoint)).generator
    return Sampler(generator, GeneratorConfig(checkpoint="tiny"), NumericsConfig(threads=1), "cpu")


def test_a_key_goes_with_the_generator_its_settings_and_the_values(sampler: Sampler) -> None:
    key = row_key((MaskSweep,), sampler, extent="all")
    assert row_key((MaskSweep,), sampler, extent="all") == key
    config = sampler.config.model_copy(update={"noise": "none"})
    others = [
        row_key((MaskSweep,), sampler, extent="some"),
        row_key((row_key,), sampler, extent="all"),
        row_key((MaskSweep,), Sampler(sampler.generator, config, sampler.numerics, "cpu"), extent="all"),
    ]
    with torch.no_grad():
        next(sampler.generator.parameters()).add_(1)
    others.append(row_key((MaskSweep,), sampler, extent="all"))
    assert len({key, *others}) == 5


def test_bundled_weights_are_those_beside_their_opener() -> None:
    assert len(bundled_weights_sha256(open_prompt_model)) == 1
    with pytest.raises(AssertionError, match="bundled holds no weights"):
        bundled_weights_sha256(Store)
