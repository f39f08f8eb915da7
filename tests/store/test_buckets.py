"""Datasets in a bucket: every command, in calm and in a storm, and readers that know nothing of labelmill."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.drivers import wait_until
from helpers.observer import Observer
from helpers.s3_server import SECRET_KEY, Fault, S3Server
from helpers.small_dataset import config_of, paint, publish, records_of, samples_of, tar_of, write_dataset
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.dataset.manifest import read_index, read_manifest
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.checkpoints import source as checkpoint_source
from labelmill.pipeline.shards.publisher import read_record
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import CheckpointError, OutputError, VerificationError

RunFileWriter = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
STORM = {
    Fault("answer", status=503): 0.05,
    Fault("answer", status=503, stored=True): 0.05,
    Fault("cut"): 0.05,
    Fault("cut", stored=True): 0.05,
    Fault("half"): 0.05,
}


def labelmill(*arguments: object) -> str:
    """What a command prints; errors that a person would read are raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False).stdout


def contents(store: Store) -> dict[str, bytes]:
    return {file.path: store.read(file.path) for file in store.list()}


def test_every_command_on_a_bucket(write_run_file: RunFileWriter, tiny_checkpoint: Path, s3: S3Server) -> None:
    models = Store.open(s3.create_bucket())
    models.create("nets/tiny.safetensors", tiny_checkpoint.read_bytes())
    output = f"{s3.create_bucket()}/sets/tiny"
    run_file = write_run_file(output=f"{output}/", generator={"checkpoint": f"{models.url}/nets/tiny.safetensors"})
    with Observer(output, s3.direct_endpoint) as observer:
        assert "fine. 32 px" in labelmill("validate", run_file)
        assert "existing: 0 shards; to make: 4 shards" in labelmill("plan", run_file)
        assert "labeler sha256" in labelmill("fit", run_file)
        assert "24 samples of 24 candidates in 4 shards" in labelmill("generate", run_file)
        assert f"{output}: 24 samples in 4 shards, all verified" in labelmill("verify", output)
        assert labelmill("report", output).strip().endswith(f"{output}/report/index.html")
        wait_until(lambda: observer.num_opened >= 20)  # what all this has left, be it in one look
    assert observer.problems == []

    store = Store.open(output)
    paths = [f"shards/tiny-{number:06d}.tar" for number in range(4)]
    assert [file.path for file in store.list("shards") if file.path.endswith(".tar")] == paths
    assert b"<html" in store.read("report/index.html")
    assert read_manifest(store).checkpoint.reference == f"{models.url}/nets/tiny.safetensors"
    assert all(SECRET_KEY.encode() not in content for content in contents(store).values())

    # What was lost is found, rebuilt where it follows from the tars, made again where it does not.
    before = {path: store.read(path) for path in (*paths, "index.json", "records/000001.json", "manifest.json")}
    for lost in ("records/000001.json", "shards/tiny-000002.parquet", "index.json"):
        store.delete(lost)
    with pytest.raises(VerificationError, match="3 problems"):
        labelmill("verify", output)
    assert labelmill("verify", output, "--repair").count("repaired: ") == 3
    store.delete(paths[3])
    with pytest.raises(VerificationError, match=r"tiny-000003\.tar: is missing"):
        labelmill("verify", output)
    assert "existing: 3 shards; to make: 1 shards" in labelmill("plan", run_file)
    labelmill("generate", run_file)
    assert "all verified" in labelmill("verify", output)
    after = {path: store.read(path) for path in before}
    timings = json.loads(after.pop("records/000001.json")), json.loads(before.pop("records/000001.json"))
    assert after == before and timings[0]["sha256"] == timings[1]["sha256"]


def test_a_bucket_gets_the_bytes_that_a_folder_gets(
    write_run_file: RunFileWriter, tmp_path: Path, s3: S3Server
) -> None:
    """A storm of lost, refused and cut requests included."""
    output = f"{s3.create_bucket()}/out"
    labelmill("generate", write_run_file())
    s3.inject_randomly(STORM, seed=1)
    with Observer(output, s3.direct_endpoint) as observer:
        labelmill("generate", write_run_file(output=output))
        assert "all verified" in labelmill("verify", output)
    statuses = [request.status for request in s3.requests]
    assert statuses.count(503) >= 3 and statuses.count(0) >= 3
    assert observer.problems == []
    folder, bucket = contents(Store.open(str(tmp_path / "out"))), contents(Store.open(output))
    assert folder.keys() == bucket.keys()
    differing = [path for path in folder if folder[path] != bucket[path]]
    assert all(re.match(r"records/|progress\.json", path) for path in differing), differing


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_the_observer_sees_what_is_half_written(kind: str, tmp_path: Path, s3: S3Server, tar: bytes) -> None:
    """Without this, tests that watch outputs would prove nothing."""
    url = str(tmp_path / "out") if kind == "folder" else s3.create_bucket()
    store = Store.open(url)
    store.create("shards/whole.tar", tar)
    with Observer(Path(url) if kind == "folder" else url, s3.direct_endpoint) as observer:
        for path, content in {"shards/half.tar": tar[: len(tar) // 2], "a.json": b'{"half": '}.items():
            store.create(path, content)
        store.replace("b.json", b"{}")
        deadline = time.monotonic() + 10
        while len({problem.split(":")[0] for problem in observer.problems}) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        store.replace("b.json", b"{")  # seen although it was opened before
        while not any("b.json" in problem for problem in observer.problems) and time.monotonic() < deadline:
            time.sleep(0.01)
    seen = {problem.split(":")[0].rpartition("/")[2] for problem in observer.problems}
    assert seen == {"half.tar", "a.json", "b.json"}


def test_another_configuration_is_refused_a_bucket_in_use(write_run_file: RunFileWriter, s3: S3Server) -> None:
    output = f"{s3.create_bucket()}/out"
    labelmill("fit", write_run_file(output=output))
    with pytest.raises(OutputError, match=r"made by another configuration.*\n.*truncation_psi: 0\.5 in the run file"):
        labelmill("generate", write_run_file(output=output, generator={"truncation_psi": 0.5}))
    strange = Store.open(s3.create_bucket())
    strange.create("thesis.tex", b"mine")
    with pytest.raises(OutputError, match=r"holds files that are not labelmill's, such as thesis\.tex"):
        labelmill("generate", write_run_file(output=strange.url))


def test_a_bucket_that_overwrites_is_refused_before_the_work(write_run_file: RunFileWriter, s3: S3Server) -> None:
    output = f"{s3.create_bucket()}/out"
    s3.stripped_headers = {"if-none-match"}
    with pytest.raises(OutputError, match="overwrites a file that exists"):
        labelmill("generate", write_run_file(output=output))
    assert Store.open(output).list() == []


def test_errors_of_the_command_line_are_short_and_keep_secrets(
    write_run_file: RunFileWriter, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2-token")
    s3.inject(Fault("answer", status=403, code="InvalidToken"), times=100)
    command = [sys.executable, "-m", "labelmill.pipeline.cli", "verify", f"{s3.create_bucket()}/out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 4
    assert "the service answered 403 InvalidToken: the credentials are not valid here" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def tar(tmp_path: Path) -> bytes:
    with ThreadPoolExecutor(1) as threads:
        return tar_of(samples_of(shard_tasks(config_of(tmp_path))[0]), threads)


@pytest.mark.parametrize("lost", [Fault("answer", stored=True), Fault("cut", stored=True)], ids=["503", "cut"])
def test_a_shard_whose_answers_are_lost_is_published_once(
    lost: Fault, tar: bytes, tmp_path: Path, s3: S3Server
) -> None:
    """Tar, parquet and record each reach the server, whose answer does not reach us."""
    store, task = Store.open(f"{s3.create_bucket()}/out"), shard_tasks(config_of(tmp_path))[0]
    for ending in ("tar", "parquet", "json"):
        s3.inject(lost, method="PUT", path=rf"{ending}$")
    record = publish(store, task, tar, host="ours")
    assert s3.count("PUT", status=412) == 3
    assert (record.host, record.sha256) == ("ours", hashlib.sha256(tar).hexdigest())
    assert read_record(store, 0) == record and records_of(store, config_of(tmp_path), "f" * 64) == [record]
    assert store.read(f"shards/{task.name}.tar") == tar and len(store.list()) == 3


@pytest.mark.parametrize("fault", [Fault("answer", stored=True), Fault("cut", stored=True), Fault("cut")])
def test_a_shard_that_another_has_published_stands(fault: Fault, tar: bytes, tmp_path: Path, s3: S3Server) -> None:
    store, task = Store.open(f"{s3.create_bucket()}/out"), shard_tasks(config_of(tmp_path))[0]
    first = publish(store, task, tar, host="theirs")
    with ThreadPoolExecutor(1) as threads:  # as from a GPU of another model: other bytes, of the same run
        other = tar_of(samples_of(task, dimmed=2), threads)
    assert other != tar
    s3.inject(fault, times=2, method="PUT")
    record = publish(store, task, other, host="ours")
    assert record == first and store.read(f"shards/{task.name}.tar") == tar


def test_drivers_in_a_storm_agree_on_every_shard(tmp_path: Path, s3: S3Server) -> None:
    output = f"{s3.create_bucket()}/out"
    tasks = shard_tasks(config_of(tmp_path, samples=24))
    with ThreadPoolExecutor(4) as threads:
        tars = {(task.index, kind): tar_of(samples_of(task, dimmed=kind), threads) for task in tasks for kind in (1, 2)}
        s3.inject_randomly(STORM, seed=2)

        def drive(kind: int) -> list[str]:
            store = Store.open(output)
            return [publish(store, task, tars[task.index, kind], host=str(kind)).sha256 for task in tasks]

        digests = list(threads.map(drive, [1, 2, 1, 2]))
    s3.clear()
    store = Store.open(output)
    stored = [hashlib.sha256(store.read(f"shards/{task.name}.tar")).hexdigest() for task in tasks]
    assert all(driver == stored for driver in digests)
    assert [record.sha256 for record in records_of(store, config_of(tmp_path, samples=24), "f" * 64)] == stored
    assert len(store.list()) == 3 * len(tasks)


@pytest.mark.parametrize("fault", [Fault("cut"), Fault("half"), Fault("answer")])
def test_checkpoints_come_from_buckets(fault: Fault, tiny_checkpoint: Path, s3: S3Server) -> None:
    models = Store.open(s3.create_bucket())
    models.create("a b/tiny.safetensors", tiny_checkpoint.read_bytes())
    s3.inject(fault, method="GET")
    loaded = open_checkpoint(f"{models.url}/a b/tiny.safetensors")
    assert loaded.sha256 == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert loaded.info.name == f"{models.url}/a b/tiny.safetensors"


def test_checkpoints_in_buckets_that_cannot_be_read(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    models = Store.open(s3.create_bucket())
    models.create("big.pkl", bytes(1000))
    for url, sentence in {
        f"{models.url}/missing.pkl": "missing.pkl: no such file; check the URL",
        f"{models.url}/nets/": "nets/: names a folder; give the URL of the checkpoint file itself",
        models.url: "names a folder",
        "s3://missing/a.pkl": "s3://missing/a.pkl: cannot be read: there is no bucket missing",
        "s3://key:hunter2@models/a.pkl": "user, password, query and fragment have no place",
        "s3://models/a.pkl?X-Amz-Signature=hunter2": "user, password, query and fragment have no place",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(sentence)) as refused:
            open_checkpoint(url)
        assert "hunter2" not in str(refused.value)
    monkeypatch.setattr(checkpoint_source, "MAX_BYTES", 999)
    with pytest.raises(CheckpointError, match=r"big\.pkl: has 1,000 bytes; no StyleGAN2 checkpoint passes 999"):
        open_checkpoint(f"{models.url}/big.pkl")


def test_a_dataset_may_move_between_folder_and_bucket(tmp_path: Path, s3: S3Server) -> None:
    """Card, croissant and index name files relative to themselves."""
    store, _ = write_dataset(f"{s3.create_bucket()}/out")
    local, _ = write_dataset(tmp_path / "local")
    assert {path: content for path, content in contents(local).items() if not path.startswith("records/")} == {
        path: content for path, content in contents(store).items() if not path.startswith("records/")
    }
    described = json.loads(store.read("croissant.json"))
    urls = [node["contentUrl"] for node in described["distribution"] if node["@type"] == "cr:FileObject"]
    assert urls == [shard.url for shard in read_index(store).shardlist] and all(store.exists(url) for url in urls)
    copy = Store.open(f"{s3.create_bucket()}")
    for path, content in contents(store).items():
        copy.create(path, content)
    assert verify(copy).problems == verify(store).problems == ()


# Run as a program: loader processes import it again.
_TRAINING = """
{first}
if __name__ == "__main__":
    loader = wds.WebLoader(pairs, batch_size=None, num_workers=2, multiprocessing_context="forkserver")
    for image, mask in loader:
        print(int(np.asarray(image).sum()), int(np.asarray(mask).sum()))
"""


def test_the_card_tells_how_to_stream_from_a_bucket(tmp_path: Path, s3: S3Server) -> None:
    """Its code, run in another process, loader processes included."""
    store, _ = write_dataset(f"{s3.create_bucket()}/out")
    card = store.read("README.md").decode()
    first, bucket = (
        block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "gopen" in block or "cv2" in block
    )
    shards_line = next(line for line in first.splitlines() if line.startswith("shards ="))
    program = _TRAINING.format(first=first.replace(shards_line, bucket).replace("s3://BUCKET/PREFIX", store.url))
    program = program.replace("image, mask = next(iter(pairs))\n", "")
    (tmp_path / "training.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "training.py"],
        cwd=tmp_path,
        env={**os.environ, "AWS_ALLOW_HTTP": "true"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    urls = next(urls for urls in read_index(store).splits.values() if urls)
    tasks = [task for task in shard_tasks(config_of(tmp_path)) if any(task.name in url for url in urls)]
    pictures = [paint(int(sample.key)) for task in tasks for sample in samples_of(task)]
    expected = sorted(f"{int(image_HWC.sum())} {int(mask_HW.sum())}" for image_HWC, mask_HW in pictures)
    assert sorted(done.stdout.splitlines()) == expected


def test_what_a_bucket_holds_unchanged_is_not_fetched_again(tmp_path: Path, s3: S3Server) -> None:
    """A bucket tells when a file was written: a tar that is newer than its record is read, others are not."""
    store, _ = write_dataset(f"{s3.create_bucket()}/out")
    config, tars = config_of(store.url), r"\.(tar|parquet)$"
    before = s3.count("GET", tars)
    assert [record.index for record in records_of(store, config)] == [0, 1, 2]
    assert s3.count("GET", tars) == before
    path = "shards/painted-000001.tar"
    content = store.read(path)
    time.sleep(1.1)  # a bucket's clock ticks in seconds
    store.replace(path, bytes(len(content)))
    with pytest.raises(OutputError, match=r"painted-000001\.tar: is not what"):
        records_of(store, config)
    store.replace(path, content)
    assert len(records_of(store, config)) == 3
