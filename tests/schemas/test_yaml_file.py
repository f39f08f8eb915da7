"""Run files: strict, every mistake at once, YAML 1.2 values."""

import hashlib
import os
import pickle
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelmill.pipeline.generator.checkpoints.source import located_reference, read_bytes
from labelmill.pipeline.labelers.methods import METHODS
from labelmill.pipeline.prompt_models import PromptModelError
from labelmill.schemas.cluster_mapping import ClusterMapping
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import CheckpointError, ConfigError
from labelmill.schemas.fingerprint import identity
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.nightly import load_nightly_config
from labelmill.schemas.section import SEED_LIMIT
from labelmill.schemas.segmentation import PhotoFolder, SegmentationTrainingConfig
from labelmill.schemas.training import ShardsData, TrainGeneratorConfig
from labelmill.schemas.yaml_file import load_config, parse_yaml

GOOD = """
name: portraits
output: ./out
generator: {checkpoint: "bundled:x"}
dataset: {samples: 10}
"""


def _load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, RunConfig, overrides)


def test_defaults_come_from_the_schema_alone(tmp_path: Path) -> None:
    config = _load(tmp_path, GOOD)
    assert config.dataset.num_shards == 1
    assert config.labeler.method == "style_mixing"
    assert config.model_dump() == RunConfig.model_validate_json(config.model_dump_json()).model_dump()


def test_every_mistake_is_reported_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    text = """
name: portraits
output: 7
generator: {checkpoint: x, trucation_psi: 0.7, noise: no}
dataset: {samples: ten, samples_per_shard: 0, splits: {train: 0.5}}
labler: {}
"""
    with pytest.raises(ConfigError) as error:
        _load(tmp_path, text)
    message = str(error.value)
    assert "7 mistakes" in message
    assert "generator.trucation_psi: unknown key; did you mean truncation_psi?" in message
    assert "labler: unknown key; did you mean labeler?" in message
    assert "generator.noise: input should be 'const', 'none' or 'per_seed', found 'no'" in message
    assert "dataset.samples_per_shard: input should be greater than or equal to 1, found 0" in message
    assert "dataset.samples: input should be a valid integer, found 'ten'" in message
    assert "output: input should be a valid string, found 7" in message
    assert "dataset.splits: shares must be 0 or more and sum to 1" in message


@pytest.mark.parametrize("key", ["output", "generator.checkpoint"])
@pytest.mark.parametrize("text", ['""', '"a\\0b"', '"a\\nb"'])
def test_paths_are_printable(tmp_path: Path, key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key):
        _load(tmp_path, GOOD, f"{key}={text}")


def test_seeds_stay_below_two_to_the_32(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="passes 2\\^32") as error:
        _load(tmp_path, GOOD, f"dataset.first_seed={SEED_LIMIT - 100}")
    largest = int(str(error.value).rsplit(" ", 1)[1].split(",")[0])
    assert _load(tmp_path, GOOD, f"dataset.first_seed={largest}").dataset.first_seed == largest
    with pytest.raises(ConfigError):
        _load(tmp_path, GOOD, f"dataset.first_seed={largest + 1}")


def test_overrides(tmp_path: Path) -> None:
    config = _load(tmp_path, GOOD, "dataset.samples=3", "generator.truncation_psi=1e-1", "quality.enabled=false")
    assert (config.dataset.samples, config.generator.truncation_psi, config.quality.enabled) == (
        3,
        0.1,
        False,
    )
    for bad in ("dataset.samples", "=3", "name.x=3", ".a=1", "a..b=1"):
        with pytest.raises(ConfigError, match="--set"):
            _load(tmp_path, GOOD, bad)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("true", True),
        ("010", "010"),
        ("12:30", "12:30"),
        ("1e-3", 0.001),
        ("-7", -7),
        (".5", 0.5),
        ("2.", 2.0),
        ("~", None),
        ("null", None),
        (".", "."),
        ("2026-11-21", "2026-11-21"),
        ("e5", "e5"),
    ],
)
def test_plain_values_mean_what_they_say(text: str, value: object) -> None:
    parsed = parse_yaml(text, "test")
    assert parsed == value
    assert type(parsed) is type(value)


def test_nothing_in_a_run_file_is_executed() -> None:
    with pytest.raises(ConfigError, match="not YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", "run.yaml")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'a' is given twice"):
        parse_yaml("a: 1\na: 2", "run.yaml")


NINES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 9)}]\n" for before, after in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (NINES, r"aliases that stand for more than 4,194,304 characters, or 50 levels, in all \(line 7, column 4\)"),
        ("a: &a '" + 10_000 * "x" + "'\nb: [" + 1000 * "*a, " + "]", "aliases that stand for more than"),
        ("a0: &a0 x\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200)), "aliases that stand for more"),
        ("&a [*a]", r"an alias within what it stands for \(line 1, column 1\)"),
        ("a: &a {b: *a}", "an alias within what it stands for"),
        (600 * "[" + 600 * "]", r"more than 50 levels of nesting, or 100,000 values \(line 1, column 51\)"),
        (600 * "{a: ", "more than 50 levels"),
        (600 * "- " + "x", "more than 50 levels"),
        ("[" + 150_000 * "1," + "]", "more than 50 levels of nesting, or 100,000 values"),
        ("!!binary aGk=", "could not determine a constructor for the tag"),
        ("!!set {a}", "could not determine a constructor for the tag"),
        ("!!bool x", "a value that does not fit its tag"),
        ("!!int ''", "a value that does not fit its tag"),
        (5000 * "9", "a number that is too long"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("a\0b", "the character #x0 is not allowed"),
    ],
)
def test_yaml_that_would_take_for_ever_or_is_no_plain_value(text: str, sentence: str, tmp_path: Path) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match=f"^--set labeler: not YAML: .*{sentence}") as refused:
        _load(tmp_path, GOOD, f"labeler={text}")
    assert time.process_time() - start < 10
    assert len(str(refused.value).splitlines()) == 1


def test_aliases_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: *a, x: 5}\nd: {<<: [*a, *b], w: *b}"
    found = parse_yaml(text, "run.yaml")
    assert found["c"] == {"x": 5, "y": 2}
    assert found["d"] == {"x": 1, "y": 2, "z": 4, "w": {"y": 3, "z": 4}}
    with pytest.raises(ConfigError, match="<< takes a mapping or a list of mappings"):
        parse_yaml("a: {<<: 3}", "run.yaml")
    with pytest.raises(ConfigError, match="'<<' is given twice"):
        parse_yaml("a: &a {}\nb: {<<: *a, <<: *a}", "run.yaml")


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_pipes_and_devices_are_not_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path = Path("/dev/zero") if kind == "a device" else path
    with pytest.raises(ConfigError, match=rf"^{path}: cannot be read: it is {kind}, not a regular file$"):
        load_config(path, RunConfig)
    with pytest.raises(ConfigError, match=rf"{path}: cannot be read: it is {kind}"):
        _load(tmp_path, GOOD, "labeler={method: feature_clusters, mapping: " + str(path) + "}")
    with pytest.raises(CheckpointError, match=rf"^{path}: cannot read the checkpoint: it is {kind}"):
        read_bytes(str(path))


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=r"it has 1,099,511,627,776 bytes, and at most 1,048,576 are read"):
        load_config(path, RunConfig)
    with pytest.raises(CheckpointError, match=r"it has 1,099,511,627,776 bytes, and at most 8,589,934,592 are read"):
        read_bytes(str(path))


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"\xff\xfe", b"a: [1", b"1: {2: 3}\n", b"? [a]\n: 1\n"])
def test_files_that_are_no_run_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path, RunConfig)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml", RunConfig)


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parse_yaml(text, "test")
    except ConfigError as error:
        assert str(error).startswith("test: not YAML")


@pytest.mark.parametrize("name", ["train-a", "", "1st", "a.b", "naïve", "a b"])
def test_splits_have_names_that_loaders_take(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.splits: .* cannot name a split, as loaders"):
        _load(tmp_path, GOOD, f"dataset.splits={{train: 0.5, '{name}': 0.5}}")


def test_home_folders_in_training_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.yaml").write_text(
        "data: {dataset: ~/data}\noutput: ~/out\nheld_out: {kind: photos, photos: ~/photos, masks: ~/masks}\n"
    )
    (tmp_path / "generator.yaml").write_text(
        "data: {kind: shards, urls: [~/shards/*.tar]}\noutput: ~/out\ncache: ~/cache\n"
    )
    config = load_config("~/train.yaml", SegmentationTrainingConfig)
    assert config.output == tmp_path / "out"
    assert isinstance(config.held_out, PhotoFolder) and config.held_out.photos == tmp_path / "photos"
    generator = load_config("~/generator.yaml", TrainGeneratorConfig)
    assert isinstance(generator.data, ShardsData)
    assert generator.data.urls == (f"{tmp_path}/shards/*.tar",)
    assert (generator.output, generator.cache) == (tmp_path / "out", tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"output: ~nobody-there/out: no home folder is known for ~nobody-there"):
        load_config("~/train.yaml", SegmentationTrainingConfig, ["output=~nobody-there/out"])


def test_every_field_is_documented() -> None:
    def undocumented(schema: dict[str, object], where: str) -> list[str]:
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        return [f"{where}.{name}" for name, field in properties.items() if not field.get("description")]

    schema = RunConfig.model_json_schema()
    missing = [gap for name, part in schema["$defs"].items() for gap in undocumented(part, name)]
    assert missing == []


def test_paths_begin_at_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        GOOD.replace("bundled:x", "net.pkl") + "labeler: {method: feature_clusters, mapping: classes/clusters.yaml}\n"
    )
    identities = []
    for place in ("here", "there"):
        folder = tmp_path / place
        (folder / "classes").mkdir(parents=True)
        (folder / "net.pkl").write_text(place)
        (folder / "classes" / "clusters.yaml").write_text("classes: [a, b]\nclusters: {0: a, 1: b}\n")
        (folder / "run.yaml").write_text(text)
        monkeypatch.chdir(folder if place == "here" else tmp_path)
        config = load_config("run.yaml" if place == "here" else "there/run.yaml", RunConfig)
        assert isinstance(config.labeler, FeatureClustersConfig) and isinstance(config.labeler.mapping, ClusterMapping)
        located = located_reference(config.generator.checkpoint, config.generator.folder)
        assert read_bytes(located) == place.encode()
        identities.append(identity(config, "00", {}))
    assert identities[0] == identities[1]
    # What is written out, is in a home folder, bundled or somewhere else stays where it is.
    for reference in ("/a/net.pkl", "bundled:x", "https://example.org/net.pkl"):
        assert located_reference(reference, tmp_path) == reference
    monkeypatch.setenv("HOME", "/home/me")
    assert located_reference("~/net.pkl", tmp_path) == "/home/me/net.pkl"
    (tmp_path / "here" / "classes" / "clusters.yaml").unlink()
    with pytest.raises(ConfigError, match=rf"{tmp_path}/here/classes/clusters\.yaml: cannot be read"):
        load_config(tmp_path / "here" / "run.yaml", RunConfig)


def test_a_prompt_models_weights_begin_at_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "open-clip:arch.json@w.safetensors"
    labeler = f"labeler: {{method: feature_clusters, prompt_model: '{model}', names: {{a: [x], b: [y]}}}}"
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "arch.json").write_bytes(b"{}")
    config = _load(tmp_path, f"{GOOD}{labeler}\n")
    monkeypatch.chdir("/")
    found = METHODS[config.labeler.method].inputs(config.labeler)
    assert found == {
        "prompt_model_weights": hashlib.sha256(b"weights").hexdigest(),
        "prompt_model_architecture": hashlib.sha256(b"{}").hexdigest(),
    }
    assert identity(config, "00", found)["labeler"]["prompt_model"] == model
    sent = pickle.loads(pickle.dumps(config))  # as to a worker
    assert METHODS["feature_clusters"].inputs(sent.labeler) == found
    (tmp_path / "w.safetensors").unlink()
    with pytest.raises(PromptModelError, match=rf"{tmp_path}/w\.safetensors: no such weights file"):
        METHODS["feature_clusters"].inputs(config.labeler)


def test_paths_of_a_run_that_a_nightly_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run.yaml").write_text(GOOD.replace("bundled:x", "net.pkl"))
    (tmp_path / "nightly.yaml").write_text("run: runs/run.yaml\nroot: a\n")
    assert load_nightly_config(tmp_path / "nightly.yaml").run.generator.folder == tmp_path / "runs"
    inline = "run: {name: a, generator: {checkpoint: net.pkl}, dataset: {samples: 1}}\nroot: a\n"
    (tmp_path / "nightly.yaml").write_text(inline)
    assert load_nightly_config(tmp_path / "nightly.yaml").run.generator.folder == tmp_path
