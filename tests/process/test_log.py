"""What runs say: lines for people, objects for machines, and never a mixture."""

import json
import threading
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

import pytest
from helpers.drivers import Driver
from helpers.s3_server import Fault, S3Server

from labelmill.pipeline.process.log import LOG_VARIABLE, log, log_context
from labelmill.pipeline.store import bucket, bucket_address
from labelmill.schemas.config import RunConfig
from labelmill.schemas.progress import RunState
from labelmill.schemas.shard import ShardRecord
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate


def test_people_read_the_text_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(LOG_VARIABLE, raising=False)
    with log_context("portraits"):
        log("shard a-000001 failed", level="warning", shard="a-000001", worker=3)
    assert capsys.readouterr().err == "shard a-000001 failed\n"


def test_machines_read_an_object_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(LOG_VARIABLE, "json")
    with log_context("avatars 2026-11-21"), log_context("avatars"):
        log("two\nlines", level="warning", shard="a-000001", worker=0)
        thread = threading.Thread(target=copy_context().run, args=(log, "beside"))
        thread.start()
        thread.join()
    log("later")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    times = [line.pop("time") for line in lines]
    assert lines == [
        {"level": "warning", "message": "two\nlines", "run": "avatars 2026-11-21", "shard": "a-000001", "worker": 0},
        {"level": "info", "message": "beside", "run": "avatars 2026-11-21"},
        {"level": "info", "message": "later"},
    ]
    assert times == sorted(times) and all(time.endswith("+00:00") for time in times)


def test_a_run_tells_machines_of_every_shard(write_run_file: Callable[..., Path]) -> None:
    run_file = write_run_file(quality={"enabled": True, "confidence_min": 1.0}, dataset={"samples": 12})
    with Driver("generate", run_file, env={LOG_VARIABLE: "json"}) as driver:
        assert driver.wait() == 3
    lines = [json.loads(line) for line in driver.lines]
    failed = [line for line in lines if line.get("shard")]
    assert [(line["run"], line["level"], line["shard"]) for line in failed] == [
        ("tiny", "warning", "tiny-000000"), ("tiny", "warning", "tiny-000001")
    ]  # fmt: skip
    assert lines[-1]["level"] == "error" and lines[-1]["message"].startswith("labelmill: 2 shards failed")

    with Driver("generate", run_file, "--set", "quality.enabled=false", "--set", f"output={run_file.parent / 'b'}",
                env={LOG_VARIABLE: "json"}) as driver:  # fmt: skip
        assert driver.wait() == 0
    said = [line for line in driver.lines if line.startswith("{")]
    records = [ShardRecord.model_validate(line["ShardRecord"]) for line in map(json.loads, said) if "shard" in line]
    assert [record.name for record in records] == ["tiny-000000", "tiny-000001"]
    states = [line["RunState"] for line in map(json.loads, said) if "RunState" in line]
    assert all(RunState.model_validate(state).total == 12 for state in states)


def test_waiting_for_a_bucket_is_of_the_run(
    write_run_file: Callable[..., Path],
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Shards are published by another thread than the one that makes them.
    monkeypatch.setenv(LOG_VARIABLE, "json")
    monkeypatch.setattr(bucket_address, "_MAX_RETRIES", 0)
    monkeypatch.setattr(bucket, "QUIET_SECONDS", 0.1)
    s3.inject(Fault("answer"), times=5, method="PUT", path=r"\.tar")
    generate(load_config(write_run_file(output=f"{s3.create_bucket()}/out", dataset={"samples": 6}), RunConfig))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["run"] for line in lines if line["message"].count("trying again")] == ["tiny"]


def test_an_unknown_form_is_refused() -> None:
    with Driver("--help", env={LOG_VARIABLE: "xml"}) as driver:
        assert driver.wait() == 2
    assert driver.text == "labelmill: LABELMILL_LOG: 'xml' in the environment; allowed: `text` (the default) or `json`"
