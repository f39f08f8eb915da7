"""Creates a RayJob, waits until it has ended, and ends with the status that its command ended with.

python submit.py rayjob.yaml, in a pod whose account may create, get and list RayJobs. NAMESPACE names the namespace,
JOB and JOB_UID the Kubernetes Job that the RayJob belongs to: when this pod is started again for the same Job, it waits
for the RayJob that is there instead of creating another one; and Kubernetes deletes the RayJob with the Job. Standard
library and PyYAML only.
"""

import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

RESUMABLE = 75
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "15"))
# A control plane may be away for minutes while it is updated.
PATIENCE_SECONDS = float(os.environ.get("PATIENCE_SECONDS", "1800"))
# A night that was killed leaves its lock behind, which expires after lock.ttl_s (600). Until then the next one would
# end with 6, for good.
LOCK_SECONDS = float(os.environ.get("LOCK_SECONDS", "660"))
ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")
LABEL = "labelmill/job"


def main(path: str) -> int:
    namespace, job = os.environ["NAMESPACE"], os.environ["JOB"]
    url = f"{API}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    found = _insist("GET", f"{url}?labelSelector={LABEL}%3D{job}")["items"]
    running = [each for each in found if not _has_ended(each)]
    if found and not running:
        print(f"an earlier try has ended; waiting {LOCK_SECONDS:g} s for the lock that it may have left", flush=True)
        time.sleep(LOCK_SECONDS)
    rayjob = running[0] if running else _create(url, path, job, len(found))
    name = rayjob["metadata"]["name"]
    print(f"waiting for rayjob/{name}", flush=True)
    while not _has_ended(rayjob):
        time.sleep(POLL_SECONDS)
        rayjob = _insist("GET", f"{url}/{name}")
    return _status_of(rayjob["status"])


def _create(url: str, path: str, job: str, number: int) -> dict[str, Any]:
    manifest = yaml.safe_load(Path(path).read_text())
    metadata = manifest["metadata"]
    metadata.pop("generateName", None)
    # Known beforehand: when the answer is lost, the same request again makes no second one.
    metadata["name"] = f"{job}-{number}"
    metadata.setdefault("labels", {})[LABEL] = job
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": os.environ["JOB_UID"]}
    metadata["ownerReferences"] = [owner]
    return _insist("POST", url, manifest)


def _has_ended(rayjob: dict[str, Any]) -> bool:
    return rayjob.get("status", {}).get("jobDeploymentStatus") in ("Complete", "Failed")


def _status_of(status: dict[str, Any]) -> int:
    """0, or what the command ended with; when it did not come so far, or was ended, that it goes on."""
    if status.get("jobStatus") == "SUCCEEDED":
        return 0
    message = status.get("message") or ""
    print(f"{status.get('reason', 'failed')}: {message}", flush=True)
    # Negative, or above 128 as shells have it, when a signal ended it: it was killed.
    code = re.search(r"exit code (-?\d+)", message)
    if code is not None:
        return int(code[1]) if 0 <= int(code[1]) <= 128 else RESUMABLE
    return 1 if status.get("reason") in ("AppFailed", "ValidationFailed") else RESUMABLE


def _insist(method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Ask the API server, again while it does not answer. Ends the process with 2 when it refuses."""
    start = time.monotonic()
    while True:
        try:
            return _ask(method, url, body)
        except urllib.error.HTTPError as error:
            if error.code == 409 and body is not None:  # it was created, and the answer lost
                return _insist("GET", f"{url}/{body['metadata']['name']}")
            if error.code < 500 and error.code not in (408, 429):
                print(f"{method} {url}: {error.code} {error.read(500).decode(errors='replace')}", flush=True)
                sys.exit(2)
            problem = f"answered {error.code}"
        except OSError as error:
            problem = f"did not answer ({error})"
        if time.monotonic() - start > PATIENCE_SECONDS:
            print(f"{url} {problem} for {PATIENCE_SECONDS:g} s", flush=True)
            sys.exit(RESUMABLE)
        time.sleep(min(POLL_SECONDS, 5))


def _ask(method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    # Read each time: Kubernetes renews it.
    token = (ACCOUNT / "token").read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    authority = ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority)) if url.startswith("https:") else None
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
