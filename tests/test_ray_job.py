"""The commands for Ray in the README and in deploy/README.md do what they say, word for word, on a real head."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from helpers.drivers import free_ports, wait_until
from helpers.ray_nodes import environment, own_ray
from helpers.ray_runs import RAY, num_tars, shards_of, state_of
from helpers.s3_server import S3Server
from ray.autoscaler._private.util import prepare_config, validate_config

from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.yaml_file import load_config

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
OUTPUT = "s3://your-bucket/portraits"
BIN = Path(sys.executable).parent


def _commands(readme: Path) -> list[str]:
    """The blocks of a page that talk to a running head."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", readme.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [block for block in blocks if re.search(r"^ray job", block, flags=re.MULTILINE)]


@pytest.fixture(scope="module")
def head(s3_server: S3Server) -> Iterator[dict[str, str]]:
    """A head that wants a token, with two cores and the S3 server's address; gives a client's environment."""
    dashboard, agent, client, metrics = free_ports(4)
    ports = {"port": 0, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
    ports |= {"ray-client-server-port": client, "metrics-export-port": metrics}
    # Ray's 3 s are short where tests share two cores.
    patience = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    with own_ray() as own, environment(**own, **patience, **s3_server.environment):
        s3_server.create_bucket("your-bucket")
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        log = Path(os.environ["RAY_TMPDIR"]) / "head.log"
        with log.open("w") as said:
            process = subprocess.Popen(command, env={**os.environ, "PATH": path}, stdout=said, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: (_answers(dashboard) and _answers(agent)) or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield {**os.environ, "PATH": path, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def folder(write_run_file: Callable[..., Path], tmp_path: Path) -> Path:
    """A working directory with a run file, beside what should stay behind."""
    write_run_file(output=OUTPUT, execution=RAY)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for name in (".venv/lib/torch.so", "out/demo/shards/demo-000000.tar", ".git/objects/pack"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(os.urandom(1 << 20))
    return tmp_path


def _run(block: str, folder: Path, client: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=folder, env=client, capture_output=True, text=True, timeout=240
    )


def _ran(block: str, folder: Path, client: dict[str, str]) -> str:
    done = _run(block, folder, client)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_documented_commands(
    head: dict[str, str], folder: Path, write_run_file: Callable[..., Path], expected: dict[str, bytes]
) -> None:
    (first,) = _commands(ROOT / "README.md")
    submit, look, stop, resubmit, jobs = _commands(DEPLOY / "README.md")

    # What a block needs of the shell's settings it says itself.
    bare = {name: value for name, value in head.items() if name != "RAY_AUTH_MODE"}
    said = _ran(first, folder, bare)
    assert "succeeded" in said
    assert "24 samples of 24 candidates in 4 shards" in said
    assert state_of(OUTPUT).state == "finished"
    package = next(Path(head["RAY_TMPDIR"]).glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert sorted(path.name for path in package.iterdir()) == [".gitignore", "run.yaml"]

    write_run_file(output=OUTPUT, execution=RAY, dataset={"samples": 600_000})
    _ran(submit, folder, bare)
    wait_until(lambda: num_tars(OUTPUT) >= 8)
    said = _ran(look, folder, head)
    assert "preparing: the generator" in said
    assert "/600000 samples" in said
    assert "running, written" in said
    _ran(stop, folder, head)
    assert state_of(OUTPUT).state == "interrupted"
    before = shards_of(OUTPUT)

    # Beyond what workers may have published while they were stopped.
    samples = 6 * (6 + max(int(path[12:18]) for path in before))
    write_run_file(output=OUTPUT, execution=RAY, dataset={"samples": samples})
    assert f"{samples} samples of {samples} candidates" in _ran(resubmit, folder, head)
    assert verify(Store.open(OUTPUT), repair=False).problems == ()
    shards = shards_of(OUTPUT)
    assert len(shards) == 2 * samples // 6 > len(before)
    common = shards.keys() & expected.keys()
    assert {path: shards[path] for path in common} == {path: expected[path] for path in common}

    said = _ran(jobs, folder, head)
    assert said.count("driver_exit_code=0") == 2
    assert "status=<JobStatus.STOPPED: 'STOPPED'>" in said


def test_true_exit_status(head: dict[str, str], folder: Path, write_run_file: Callable[..., Path]) -> None:
    write_run_file(output="./out", execution=RAY)
    done = _run("ray job submit --submission-id bad --working-dir . -- labelmill generate run.yaml", folder, head)
    assert done.returncode == 1
    assert "output: ./out lies in the job's copy of the working directory, which Ray deletes" in done.stdout
    said = _ran("ray job list", folder, head)
    assert re.search(r"submission_id='bad'.*?driver_exit_code=2\b", said)


@pytest.mark.parametrize(
    "token", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "f" * 64}], ids=["no token", "another token"]
)
def test_refused_without_the_token(head: dict[str, str], folder: Path, token: dict[str, str]) -> None:
    block = "ray job submit --submission-id intruder --working-dir . -- touch /tmp/intruder"
    done = _run(block, folder, {**head, **token})
    assert done.returncode != 0
    assert "Authentication" in done.stderr
    assert "intruder" not in _ran("ray job list", folder, head)


def test_generate_as_a_script(write_run_file: Callable[..., Path], tmp_path: Path) -> None:
    run_file = write_run_file(dataset={"samples": 6})
    command = [sys.executable, str(DEPLOY / "generate.py"), str(run_file), "--set", "dataset.samples=12"]
    # As `ray submit` runs it: a script in the home folder, the package installed.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "12 samples of 12 candidates in 2 shards" in done.stdout
    bad = subprocess.run([*command, "--set", "dataset.sample=1"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 2


def test_cluster_file() -> None:
    cluster = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    validate_config(prepare_config(cluster))  # with Ray's defaults for AWS, and what the schema cannot say
    assert "-e RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    text = json.dumps(cluster)
    assert ray.__version__ in cluster["docker"]["head_image"]
    assert "0.0.0.0" not in text
    run = load_config(DEPLOY / "runs" / "ray.yaml", RunConfig).execution
    spot = types["spot"]["resources"]
    assert run.workers == types["spot"]["max_workers"]
    assert (run.gpus_per_worker, run.cpus_per_worker <= spot["CPU"]) == (spot["GPU"], True)


def test_the_page_is_true() -> None:
    text = (DEPLOY / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (DEPLOY / link).exists()] == []
    keys = set(re.findall(r"`(\w+): [\w.]+`", text)) | set(re.findall(r"`(\w+_(?:timeout_s|labels|threads))`", text))
    assert {"workers", "gpus_per_worker", "cpus_per_worker", "node_labels"} <= keys
    assert keys - {"threads"} <= set(RunConfig.model_fields["execution"].annotation.model_fields) | {
        "samples_per_shard"
    }
