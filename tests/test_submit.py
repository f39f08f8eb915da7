"""deploy/kuberay/submit.py against an API server that is slow, away, forgetful, and says no."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from labelmill.schemas.nightly import load_nightly_config

ROOT = Path(__file__).resolve().parent.parent
KUBERAY = ROOT / "deploy" / "kuberay"
COLLECTION = "/apis/ray.io/v1/namespaces/labelmill/rayjobs"


class ApiServer:
    """As much of one as knows RayJobs. Each goes through `course`, a state a look."""

    def __init__(self) -> None:
        self.rayjobs: dict[str, dict[str, Any]] = {}
        self.course: list[dict[str, Any]] = []
        self.answers: list[int] = []
        """What the next requests are answered instead, after they were carried out. 0: nothing at all."""
        self.seen: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(server.get(self.path))

            def do_POST(self) -> None:
                assert self.path == COLLECTION
                self._answer(server.create(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

            def _answer(self, answer: tuple[int, dict[str, Any]]) -> None:
                server.seen.append(f"{self.command} {urlsplit(self.path).path.removeprefix(COLLECTION)}")
                status, content = answer
                if self.headers["Authorization"] != "Bearer a-token":
                    status, content = 401, {"message": "Unauthorized"}
                status = server.answers.pop(0) if server.answers else status
                if status == 0:
                    self.connection.close()
                    return
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(path)
        name = parts.path.removeprefix(COLLECTION).lstrip("/")
        if not name:
            label, _, value = parse_qs(parts.query)["labelSelector"][0].partition("=")
            chosen = [job for job in self.rayjobs.values() if job["metadata"]["labels"].get(label) == value]
            return 200, {"items": chosen}
        job = self.rayjobs[name]
        if self.course:
            job["status"] = self.course.pop(0)
        return 200, job

    def create(self, manifest: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = manifest["metadata"]["name"]
        if name in self.rayjobs:
            return 409, {"message": "already exists"}
        self.rayjobs[name] = manifest
        return 201, manifest


@pytest.fixture
def api() -> Iterator[ApiServer]:
    api = ApiServer()
    thread = threading.Thread(target=api.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield api
    api.http.shutdown()
    thread.join()
    api.http.server_close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("a-token")
    return tmp_path


def submit(api: ApiServer, account: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "NAMESPACE": "labelmill",
        "JOB": "labelmill-nightly-29398380",
        "JOB_UID": "7d1c4c4a-0d4e-4a46-9f4a-0d8a3f0e3a11",
        "KUBERNETES_API": f"http://127.0.0.1:{api.http.server_address[1]}",
        "ACCOUNT": str(account),
        "POLL_SECONDS": "0.02",
        "PATIENCE_SECONDS": "5",
        "LOCK_SECONDS": "0.02",
        **environment,
    }
    command = [sys.executable, str(KUBERAY / "submit.py"), str(KUBERAY / "rayjob.yaml")]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=60)


RUNNING = {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}
DONE = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}


def failed(message: str | None = None, reason: str = "AppFailed") -> dict[str, Any]:
    return {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": reason, "message": message}


def test_a_night_is_created_and_waited_for(api: ApiServer, account: Path) -> None:
    api.course = [{}, {"jobDeploymentStatus": "Initializing"}, RUNNING, DONE]
    done = submit(api, account)
    assert done.returncode == 0, done.stderr
    (created,) = api.rayjobs.values()
    expected = yaml.safe_load((KUBERAY / "rayjob.yaml").read_text())
    assert created["spec"] == expected["spec"]
    assert created["metadata"]["name"] == "labelmill-nightly-29398380-0"
    assert created["metadata"]["labels"] == {
        "app.kubernetes.io/name": "labelmill",
        "labelmill/job": "labelmill-nightly-29398380",
    }
    assert "generateName" not in created["metadata"]
    # Kubernetes deletes it with its Job, of which the CronJob keeps a few.
    assert created["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": "labelmill-nightly-29398380",
            "uid": "7d1c4c4a-0d4e-4a46-9f4a-0d8a3f0e3a11",
        }
    ]


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6, 75])
def test_the_commands_own_status_comes_back(code: int, api: ApiServer, account: Path) -> None:
    """In Ray's own words."""
    message = f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):\n"
    api.course = [RUNNING, failed(message + "exit code 0")]
    done = submit(api, account)
    assert done.returncode == code and message.strip() in done.stdout


@pytest.mark.parametrize("code", [-9, 137, 143])
def test_a_night_that_was_killed_goes_on(code: int, api: ApiServer, account: Path) -> None:
    """By the kernel, short of memory, or with its node. -9 where the shell has made room for the command."""
    api.course = [RUNNING, failed(f"Job entrypoint command failed with exit code {code}, last available logs")]
    assert submit(api, account).returncode == 75


def test_the_next_try_waits_for_the_lock_of_the_one_before(api: ApiServer, account: Path) -> None:
    """A driver that was killed let nothing go, and its lock would end the next one with 6, which nothing repeats."""
    api.course = [failed("Job entrypoint command failed with exit code 137, ...")]
    assert submit(api, account, LOCK_SECONDS="3600").returncode == 75  # the first one waits for nobody
    api.course = [DONE]
    start = time.monotonic()
    done = submit(api, account, LOCK_SECONDS="2")
    assert done.returncode == 0 and "waiting 2 s for the lock" in done.stdout
    assert time.monotonic() - start >= 2
    assert len(api.rayjobs) == 2


def test_it_waits_for_as_long_as_a_lock_lives() -> None:
    default = re.search(r'"LOCK_SECONDS", "(\d+)"', (KUBERAY / "submit.py").read_text())
    assert default is not None and int(default[1]) > load_nightly_config(KUBERAY / "nightly.yaml").lock.ttl_s


def test_those_are_rays_own_words() -> None:
    import ray.dashboard.modules.job.job_supervisor as module

    words = Path(module.__file__).read_text(encoding="utf-8")
    assert 'failed with exit code {return_code}, "' in words


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (failed(None, "DeadlineExceeded"), 75),
        (failed("cluster never became ready", "PreRunningDeadlineExceeded"), 75),
        (failed("no answer", "SubmissionFailed"), 75),
        (failed("", "AppFailed"), 1),
        (failed("no such field", "ValidationFailed"), 1),
    ],
)
def test_what_did_not_come_so_far(status: dict[str, Any], code: int, api: ApiServer, account: Path) -> None:
    api.course = [status]
    assert submit(api, account).returncode == code


def test_a_pod_that_is_started_again_waits_for_the_same_night(api: ApiServer, account: Path) -> None:
    api.course = [failed("Job entrypoint command failed with exit code 75, ...")]
    assert submit(api, account).returncode == 75
    api.course = [failed("Job entrypoint command failed with exit code 75, ...")]
    assert submit(api, account).returncode == 75  # the next pod of the same Job begins a second RayJob
    assert sorted(api.rayjobs) == ["labelmill-nightly-29398380-0", "labelmill-nightly-29398380-1"]
    api.rayjobs["labelmill-nightly-29398380-1"]["status"] = RUNNING  # its pod was lost before that had ended
    api.course = [RUNNING, DONE]
    assert submit(api, account, LOCK_SECONDS="3600").returncode == 0
    assert len(api.rayjobs) == 2


def test_another_nights_job_is_none_of_ours(api: ApiServer, account: Path) -> None:
    api.rayjobs["other"] = {"metadata": {"name": "other", "labels": {"labelmill/job": "other"}}, "status": RUNNING}
    api.course = [DONE]
    assert submit(api, account).returncode == 0
    assert sorted(api.rayjobs) == ["labelmill-nightly-29398380-0", "other"]


def test_a_control_plane_that_stumbles(api: ApiServer, account: Path) -> None:
    """Busy, gone, and an answer to the creation that was lost: one RayJob in the end."""
    api.course = [RUNNING, DONE]
    api.answers = [503, 0, 200, 0]
    done = submit(api, account)
    assert done.returncode == 0, done.stdout
    assert [request for request in api.seen if request.startswith("POST")] == ["POST ", "POST "]
    assert len(api.rayjobs) == 1


def test_a_control_plane_that_stays_away(api: ApiServer, account: Path) -> None:
    api.answers = [503] * 1000
    done = submit(api, account, PATIENCE_SECONDS="0.1")
    assert done.returncode == 75 and "answered 503 for 0.1 s" in done.stdout


def test_a_refusal_ends_it_at_once(api: ApiServer, account: Path) -> None:
    (account / "token").write_text("wrong")
    done = submit(api, account)
    assert done.returncode == 2 and "401" in done.stdout and "wrong" not in done.stdout + done.stderr
