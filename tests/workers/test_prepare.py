"""The labeler of a run is the one that its output was claimed for, wherever and however often it is fitted."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelmill.pipeline.dataset.claim import FINGERPRINT_PATH, read_claim
from labelmill.pipeline.dataset.manifest import read_manifest, read_run_file
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.labelers.style_mixing.method import METHOD
from labelmill.pipeline.process.machine_kind import machine_kind
from labelmill.pipeline.shards.sealed import seal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.fingerprint import fingerprint, identity
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.estimate import estimate
from labelmill.workers.generate import generate
from labelmill.workers.prepare import PreparedRun, open_prepared_worker, prepare

LABELER = "labeler/style_mixing.safetensors"


@pytest.fixture(scope="module")
def prepared(write_run_file_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = load_config(write_run_file_in(tmp_path_factory.mktemp("prepared")), RunConfig)
    _prepare(config)
    return config


@pytest.fixture
def config(prepared: RunConfig, tmp_path: Path) -> RunConfig:
    output = shutil.copytree(prepared.output, tmp_path / "out")
    return prepared.model_copy(update={"output": str(output)})


def _prepare(config: RunConfig) -> PreparedRun:
    return prepare(config, *open_sampler(config)).run


def test_a_labeler_that_was_deleted_is_fitted_anew_if_it_comes_out_the_same(config: RunConfig) -> None:
    store = Store.open(config.output)
    before, run = store.read(LABELER), _prepare(config)
    store.delete(LABELER)
    assert _prepare(config) == run and store.read(LABELER) == before
    claim = read_claim(store)
    assert claim is not None and claim.claimed_on == machine_kind(open_sampler(config)[0].device)


def test_a_labeler_that_comes_out_otherwise_is_not_published(config: RunConfig) -> None:
    """As on another processor, or with another library: the output was claimed for the labeler that those gave."""
    store = Store.open(config.output)
    claim = read_claim(store)
    assert claim is not None
    sampler, checkpoint = open_sampler(config)
    ours = identity(config.computing(sampler.numerics), checkpoint.sha256, {})
    theirs = {"labeler_sha256": "0" * 64, "fingerprint": fingerprint(ours, "0" * 64)}
    store.replace(FINGERPRINT_PATH, seal(claim.model_copy(update=theirs)))
    store.delete(LABELER)
    with pytest.raises(
        OutputError, match=r"labeler/style_mixing\.safetensors: is not the labeler that fingerprint\.json"
    ):
        _prepare(config)
    assert not store.exists(LABELER)


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_a_labeler_that_is_none_is_refused_by_name_before_it_is_claimed(config: RunConfig, content: bytes) -> None:
    store = Store.open(config.output)
    store.delete(FINGERPRINT_PATH)
    store.replace(LABELER, content)
    with pytest.raises(OutputError, match=r"labeler/style_mixing\.safetensors: fitted labeler: damaged"):
        _prepare(config)
    assert not store.exists(FINGERPRINT_PATH)
    store.delete(LABELER)
    _prepare(config)


def test_who_loses_the_race_to_fit_takes_the_winners_labeler(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another driver, whose fit differs in a bit, publishes and claims while this one fits."""
    store = Store.open(config.output)
    winner, claim = store.read(LABELER), store.read(FINGERPRINT_PATH)
    store.delete(LABELER)
    store.delete(FINGERPRINT_PATH)

    fit = METHOD.fit

    def fit_and_lose(*arguments: Any) -> bytes:
        fitted = fit(*arguments)
        store.create(LABELER, winner)
        store.create(FINGERPRINT_PATH, claim)
        return fitted + b"\0"

    monkeypatch.setattr(METHOD, "fit", fit_and_lose)
    run = _prepare(config)
    assert run.labeler_sha256 == hashlib.sha256(winner).hexdigest() and store.read(LABELER) == winner


def test_what_auto_precision_means_is_decided_once_and_written_down(config: RunConfig) -> None:
    store = Store.open(config.output)
    assert config.numerics.precision == "auto"
    run = _prepare(config)
    assert run.numerics.precision == read_run_file(store).identity["numerics"]["precision"] == "float32"
    assert "numerics.precision: float32 on this machine's device, cpu" in estimate(config)
    generate(config)
    assert read_manifest(store).config["numerics"]["precision"] == "float32"
    # A worker computes as the run was prepared, whatever `auto` would mean on its own device.
    half = run.numerics.model_copy(update={"precision": "float16"})
    with pytest.raises(ConfigError, match=r"numerics\.precision: float16 needs a GPU"):
        open_prepared_worker(config, replace(run, numerics=half))
    # Half of a dataset from a GPU and half from a CPU would not be one dataset.
    sampler, checkpoint = open_sampler(config)
    sampler.numerics = half
    with pytest.raises(OutputError, match=r"numerics\.precision: float16 in the run file, float32 in the output"):
        prepare(config, sampler, checkpoint)
