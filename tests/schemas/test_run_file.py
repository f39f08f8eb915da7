"""Run files: strict, every mistake at once, YAML 1.2 values."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.config import SEED_LIMIT, RunConfig
from schemas.errors import ConfigError
from schemas.run_file import load_config, parse_yaml

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
    assert config == RunConfig.model_validate_json(config.model_dump_json())


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


def test_every_field_is_documented() -> None:
    def undocumented(schema: dict[str, object], where: str) -> list[str]:
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        return [f"{where}.{name}" for name, field in properties.items() if not field.get("description")]

    schema = RunConfig.model_json_schema()
    missing = [gap for name, part in schema["$defs"].items() for gap in undocumented(part, name)]
    assert missing == []
