"""What errors say of configurations that hold secrets by mistake."""

from pathlib import Path

import pytest
import yaml

from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.nightly import load_nightly_config
from labelmill.schemas.secrets import plain_address, secret_in, shown, without_secrets
from labelmill.schemas.yaml_file import load_config

RUN = {
    "name": "portraits",
    "output": "./out",
    "generator": {"checkpoint": "bundled:x"},
    "dataset": {"samples": 10},
}
HOOK = "https://hooks.example.com/services/T0/HUNTER2"


@pytest.mark.parametrize(
    ("address", "plain", "secret"),
    [
        ("https://user:hunter2@host/x.pkl", "https://host/x.pkl", "a user or a password"),
        ("https://hunter2@host:80/x.pkl", "https://host:80/x.pkl", "a user or a password"),
        ("https://user:hun/ter2@host/x.pkl", "https://host/x.pkl", "a user or a password"),
        ("https://user:hunter2@[::1]:80/x", "https://[::1]:80/x", "a user or a password"),
        ("https://host/x.pkl?token=hunter2", "https://host/x.pkl?...", "a query (?...) or a fragment (#...)"),
        ("https://host/x.pkl#hunter2", "https://host/x.pkl#...", "a query (?...) or a fragment (#...)"),
        ("https://host/x@v1.pkl", "https://host/x@v1.pkl", None),
        ("https://[::1]:80/x", "https://[::1]:80/x", None),
        ("s3://bucket/my folder/x", "s3://bucket/my folder/x", None),
        ("/path/with?mark", "/path/with?mark", None),
    ],
)
def test_addresses(address: str, plain: str, secret: str | None) -> None:
    assert plain_address(address) == plain
    assert secret_in(address) == secret
    assert plain_address(plain) == plain


def test_addresses_in_a_text() -> None:
    text = "https://a:hunter2@host/x: 404; is 'https://b/y?token=hunter2' right? See s3://c/z#hunter2, or a@b."
    assert without_secrets(text) == "https://host/x: 404; is 'https://b/y?...' right? See s3://c/z#..., or a@b."


def test_values_are_shown_short() -> None:
    assert shown(7) == "7" and shown("no") == "'no'"
    assert shown(HOOK) == shown(f"{HOOK} ") == "'https://hooks.example.com/...'"
    assert shown([HOOK]) == "['https://hooks.example.com/...']"
    assert len(shown("x" * 1000)) == 203


@pytest.mark.parametrize(
    "webhook",
    [
        {"url_variable": HOOK},
        {"url_variable": "hooks.example.com/services/T0/HUNTER2"},
        {"url_variable": ["HUNTER2"]},
        {"url_variable": "LABELMILL_HOOK", "timeout_s": HOOK},
        HOOK,
        "HUNTER2",
        ["HUNTER2"],
        {"url": HOOK},
        {HOOK: None},
    ],
)
def test_a_webhooks_address_in_the_file_does_not_show(webhook: object, tmp_path: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump({"run": RUN, "root": "./root", "webhook": webhook}))
    with pytest.raises(ConfigError, match="webhook") as refused:
        load_nightly_config(path)
    assert "HUNTER2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_what_belongs_there_instead_is_told(tmp_path: Path) -> None:
    path = tmp_path / "nightly.yaml"
    path.write_text(yaml.safe_dump({"run": RUN, "root": "./root"}))
    with pytest.raises(ConfigError, match="takes the name of an environment variable, such as LABELMILL_WEBHOOK") as no:
        load_nightly_config(path, [f"webhook.url_variable={HOOK}"])
    assert "HUNTER2" not in str(no.value)


@pytest.mark.parametrize(
    "override",
    [
        "generator.checkpoint=https://user:HUNTER2@host/x.pkl",
        "generator.checkpoint=https://host/x.pkl?token=HUNTER2",
        "dataset.samples=https://user:HUNTER2@host/x.pkl",
        "labeler={method: 'https://user:HUNTER2@host/x.pkl'}",
        "labeler=[https://user:HUNTER2@host/x.pkl]",
        "labeler={method: x, 'https://user:HUNTER2@host/x.pkl': 1}",
        "dataset.splits={'https://user:HUNTER2@host/x.pkl': 2}",
        'output="https://user:HUNTER2@host',
        "output=s3://user:HUNTER2@host: [",
        "https://user:HUNTER2@host",
        "name.x=https://user:HUNTER2@host",
    ],
)
def test_secrets_in_a_run_file_do_not_show(override: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    with pytest.raises(ConfigError) as refused:
        load_config(path, RunConfig, [override])
    assert "HUNTER2" not in str(refused.value)


def test_a_checkpoints_url_with_secrets_is_refused_when_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN))
    sentence = r"generator\.checkpoint: a user or a password in a URL is not supported.*, found 'https://host/\.\.\.'$"
    with pytest.raises(ConfigError, match=sentence):
        load_config(path, RunConfig, ["generator.checkpoint=https://user:hunter2@host/x.pkl"])
