"""What deploy/ holds for nights is true: manifests, units, alerts, panels and commands, as far as they can be tried
without a cluster."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from helpers.kuberay_schema import RAY_JOB
from helpers.nightly_runs import ANYTHING_PASSES
from helpers.s3_server import S3Server
from helpers.tiny_run import tiny_run
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.pipeline.nightly.gates import GATES
from labelmill.pipeline.nightly.lease import Lease
from labelmill.pipeline.nightly.prometheus import prometheus_text
from labelmill.pipeline.nightly.status import nightly_status
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.nightly import GatesConfig, LockConfig, load_nightly_config
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.nightly import run_night

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUBERAY = DEPLOY / "kuberay"
KUBERNETES = "1.32"
RAYJOB: dict[str, Any] = yaml.safe_load((KUBERAY / "rayjob.yaml").read_text())
CRONJOB_FILE: list[dict[str, Any]] = list(yaml.safe_load_all((KUBERAY / "nightly-cronjob.yaml").read_text()))
CRONJOB = CRONJOB_FILE[0]
CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]


@pytest.mark.parametrize("document", CRONJOB_FILE, ids=lambda document: document["kind"])
def test_kubernetes_takes_every_manifest(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_kuberay_takes_the_ray_job() -> None:
    jsonschema.validate(RAYJOB, RAY_JOB, cls=jsonschema.Draft202012Validator)
    for group in (HEAD, *WORKERS):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        # KubeRay takes the first container for Ray's.
        assert pod["spec"]["containers"][0]["name"].startswith("ray-")


@pytest.mark.parametrize("mistake", ["authOption", "workerGroupSpec", "headgroupSpec"])
def test_the_schema_knows_mistakes(mistake: str) -> None:
    wrong = json.loads(json.dumps(RAYJOB))
    wrong["spec"]["rayClusterSpec"][mistake] = {}
    with pytest.raises(jsonschema.ValidationError, match=mistake):
        jsonschema.validate(wrong, RAY_JOB)


def test_nobody_reaches_the_cluster_without_a_token() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    version = tuple(int(part) for part in CLUSTER["rayVersion"].split("."))
    assert version >= (2, 52)  # the first that knows tokens
    assert {document["kind"] for document in CRONJOB_FILE} & {"Service", "Ingress", "Gateway"} == set()
    text = (KUBERAY / "rayjob.yaml").read_text() + (KUBERAY / "nightly-cronjob.yaml").read_text()
    for exposed in ("hostNetwork", "hostPort", "NodePort", "LoadBalancer", "enableIngress", "privileged: true"):
        assert exposed not in text
    policy = next(document for document in CRONJOB_FILE if document["kind"] == "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(rule.get("from") for rule in policy["spec"]["ingress"])
    for group in (HEAD, *WORKERS):  # the policy is theirs
        labels = group["template"]["metadata"]["labels"]
        assert labels.items() >= policy["spec"]["podSelector"]["matchLabels"].items()


def _pods() -> dict[str, dict[str, Any]]:
    """Every pod template of the two manifests, by what it is."""
    return {
        "nightly": CRONJOB["spec"]["jobTemplate"]["spec"]["template"],
        "submitter": RAYJOB["spec"]["submitterPodTemplate"],
        "head": HEAD["template"],
        **{group["groupName"]: group["template"] for group in WORKERS},
    }


@pytest.mark.parametrize("name", _pods())
def test_containers_can_do_little(name: str) -> None:
    pod = _pods()[name]["spec"]
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": pod}, KUBERNETES, strict=True
    )
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in mounts.values()} <= volumes
        # Where Ray and the libraries write; the nightly's own pod writes nothing.
        assert name == "nightly" or {"/tmp", "/home/ray"} <= mounts.keys()
        assert all("memory" in container["resources"][kind] for kind in ("requests", "limits"))


def test_jobs_are_taken_from_kuberay_alone() -> None:
    policy = next(document for document in CRONJOB_FILE if document["kind"] == "NetworkPolicy")
    (rule,) = [rule for rule in policy["spec"]["ingress"] if {"port": 8265, "protocol": "TCP"} in rule.get("ports", ())]
    submitter, operator = rule["from"]
    assert submitter == {"podSelector": {"matchLabels": RAYJOB["spec"]["submitterPodTemplate"]["metadata"]["labels"]}}
    others = [pod["metadata"]["labels"] for name, pod in _pods().items() if name != "submitter"]
    wanted = submitter["podSelector"]["matchLabels"].items()
    assert not any(labels.items() >= wanted for labels in others)
    assert operator.keys() == {"namespaceSelector", "podSelector"}


def test_only_what_is_named_travels_to_the_nodes() -> None:
    mounts = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())["file_mounts"]
    assert mounts.pop("/home/ray/.ray/auth_token") == "~/.ray/auth_token"
    assert {f"/home/ray/labelmill/{source}": source for source in mounts.values()} == mounts
    copied = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert set(mounts.values()) == copied - {"deploy/kuberay/submit.py"}
    assert all((ROOT / source).exists() for source in mounts.values())


def test_the_head_makes_no_shard_and_workers_are_spot() -> None:
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(HEAD) and "SPOT" not in json.dumps(HEAD)
    (spot,) = WORKERS
    assert spot["template"]["spec"]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert spot["minReplicas"] == 0 and CLUSTER["enableInTreeAutoscaling"] is True


def test_the_workers_fit_what_the_run_asks_for() -> None:
    config = load_nightly_config(KUBERAY / "nightly.yaml")
    execution, (spot,) = config.run.execution, WORKERS
    resources = spot["template"]["spec"]["containers"][0]["resources"]
    assert execution.executor == "ray"
    assert execution.workers == spot["maxReplicas"]
    assert str(execution.gpus_per_worker) == f"{float(resources['limits']['nvidia.com/gpu'])}"
    assert execution.cpus_per_worker <= int(resources["requests"]["cpu"])
    assert config.webhook is not None
    variables = {each["name"]: each for each in HEAD["template"]["spec"]["containers"][0]["env"]}
    assert "secretKeyRef" in variables[config.webhook.url_variable]["valueFrom"]


def test_one_night_at_a_time_and_again_only_after_75() -> None:
    spec, job = CRONJOB["spec"], CRONJOB["spec"]["jobTemplate"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert (RAYJOB["spec"]["backoffLimit"], RAYJOB["spec"]["shutdownAfterJobFinishes"]) == (0, True)
    _, ends = job["podFailurePolicy"]["rules"]
    assert ends["onExitCodes"]["values"] == [1, 2, 3, 4, 5, 6] and ends["action"] == "FailJob"
    assert ends["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    # Each deadline leaves room for what is inside it, and the last one for the next night.
    assert RAYJOB["spec"]["activeDeadlineSeconds"] < job["activeDeadlineSeconds"] < 24 * 3600
    # KubeRay puts -raycluster-xxxxx behind a RayJob's name, and 63 characters are all there are.
    assert len("labelmill-nightly-29398380-9" + "-raycluster-xxxxx") <= 63


def test_the_submitter_may_do_what_it_does_and_finds_its_files() -> None:
    by_kind = {document["kind"]: document for document in CRONJOB_FILE if "submit" in document["metadata"]["name"]}
    assert by_kind["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    ]
    pod = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["serviceAccountName"] == by_kind["ServiceAccount"]["metadata"]["name"]
    assert container["command"] == ["python", "/opt/labelmill/submit.py", "/etc/labelmill/rayjob.yaml"]
    assert "COPY deploy/kuberay/submit.py ./submit.py" in (DEPLOY / "Dockerfile").read_text()
    # The configuration's keys are the names of the files that the walk-through puts into it.
    (walk,) = [line for line in (DEPLOY / "nightly.md").read_text().splitlines() if "create configmap" in line]
    keys = {Path(path).name for path in re.findall(r"--from-file=(\S+)", walk)}
    name = re.search(r"create configmap (\S+)", walk)
    assert keys == {"nightly.yaml", "rayjob.yaml"} and name is not None
    for volumes in (pod["volumes"], HEAD["template"]["spec"]["volumes"]):
        assert [volume["configMap"]["name"] for volume in volumes if "configMap" in volume] == [name[1]]
    assert RAYJOB["spec"]["entrypoint"] == "labelmill nightly /etc/labelmill/nightly.yaml"
    # Every variable that the submitter asks for is there.
    asked = set(re.findall(r'os\.environ\["(\w+)"\]', (KUBERAY / "submit.py").read_text()))
    assert asked == {each["name"] for each in container["env"]}


def test_every_ray_is_the_same() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned is not None and CLUSTER["rayVersion"] == pinned[1]


def _methods() -> set[str]:
    """Names of all labeling methods that a run file may ask for."""
    schema = RunConfig.model_json_schema()
    found = {values["const"] for each in schema["$defs"].values() if (values := each["properties"].get("method"))}
    assert "style_mixing" in found
    return found


RUNS = sorted((DEPLOY / "runs").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_run_file_is_one(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    run = load_nightly_config(path).run if "root" in values else load_config(path, RunConfig)
    assert run.generator.checkpoint.startswith("bundled:")  # it works as it stands
    assert path.read_text().startswith("# ")


def test_every_method_has_a_run_file() -> None:
    for method in _methods():
        run = load_config(DEPLOY / "runs" / f"{method}.yaml", RunConfig)
        assert run.labeler.method == method


UNITS = sorted((DEPLOY / "nightly").glob("*.service")) + sorted((DEPLOY / "nightly").glob("*.timer"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_every_unit(unit: Path, tmp_path: Path) -> None:
    for each in UNITS:
        text = each.read_text().replace("/opt/labelmill/.venv/bin/labelmill", "/bin/true")
        (tmp_path / each.name).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "labelmill" in line]
    assert done.returncode == 0 and said == []


def test_the_service_starts_again_when_it_may() -> None:
    service = (DEPLOY / "nightly" / "labelmill-nightly.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", service, flags=re.MULTILINE))
    assert settings["Restart"] == "on-failure" and settings["Type"] == "oneshot"
    assert set(settings["RestartPreventExitStatus"].split()) == set("123456")
    config = load_nightly_config(DEPLOY / "runs" / "nightly.yaml")
    minutes = int(settings["RestartSec"].removesuffix("min"))
    assert 60 * minutes > config.lock.ttl_s  # a killed one's lock is free by then
    assert settings["ExecStart"] == "/opt/labelmill/.venv/bin/labelmill nightly /etc/labelmill/nightly.yaml"


def _cron_jobs() -> list[tuple[str, str]]:
    """Schedule and command of each line of the crontab."""
    lines = (DEPLOY / "nightly" / "crontab").read_text().splitlines()
    jobs = [re.fullmatch(r"((?:\S+ ){4}\S+) labelmill (.+)", line) for line in lines]
    return [(job[1], job[2]) for job in jobs if job]


def test_the_crontabs_commands_run(tmp_path: Path, tiny_checkpoint: Path) -> None:
    assert [schedule for schedule, _ in _cron_jobs()] == ["0 1,3,5 * * *", "*/5 * * * *"]
    for folder in ("srv", "textfile", "etc"):
        (tmp_path / folder).mkdir()
    run = {**tiny_run(tiny_checkpoint, "x"), "dataset": {"samples": 6, "samples_per_shard": 6}}
    webhook = {"url_variable": "LABELMILL_HOOK"}
    values = {"run": run, "root": str(tmp_path / "root"), "gates": ANYTHING_PASSES, "webhook": webhook}
    (tmp_path / "etc" / "nightly.yaml").write_text(yaml.safe_dump(values))
    places = {
        "/srv/labelmill": tmp_path / "srv",
        "/etc/labelmill": tmp_path / "etc",
        "/var/lib/node_exporter/textfile": tmp_path / "textfile",
    }
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # Cron gives jobs next to no environment; the file has what systemd's units read, in words that both take.
    (tmp_path / "etc" / "environment").write_text("LABELMILL_HOOK='http://127.0.0.1:1/?a=1&b=2'\n")
    for _, command in _cron_jobs():
        for place, ours in places.items():
            command = command.replace(place, str(ours))
        done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "is live" in (tmp_path / "srv" / "nightly.log").read_text()
    assert [path.name for path in (tmp_path / "textfile").iterdir()] == ["labelmill.prom"]
    metrics = (tmp_path / "textfile" / "labelmill.prom").read_text()
    assert "labelmill_nightly_success_timestamp_seconds" in metrics


@pytest.fixture(scope="module")
def live_root(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small root of two nights, the newer one live."""
    folder = tmp_path_factory.mktemp("live")
    run = {**tiny_run(tiny_checkpoint, "x"), "dataset": {"samples": 6, "samples_per_shard": 6}}
    gates = {**ANYTHING_PASSES, "near_duplicates": 1.0}
    values = {"run": run, "root": str(folder / "root"), "seeds": "fresh", "gates": gates}
    (folder / "nightly.yaml").write_text(yaml.safe_dump(values))
    for day in (19, 20):
        run_night(load_nightly_config(folder / "nightly.yaml"), date(2026, 1, day))
    return folder / "root"


@pytest.fixture(scope="module")
def emitted(live_root: Path) -> set[str]:
    """Names of all metrics that labelmill and kube-state-metrics have: of a root at work; and of drivers on Ray, which
    deploy/README.md lists and tests/workers/test_metrics.py sees emitted by a node."""
    root = Store.open(str(live_root))
    with Lease(root, LockConfig(), time.time):
        text = prometheus_text(nightly_status(root, time.time()))
    names = set(re.findall(r"^(labelmill_\w+)\{", text, flags=re.MULTILINE))
    assert names == set(re.findall(r"^# TYPE (\S+) gauge$", text, flags=re.MULTILINE))
    names |= set(re.findall(r"^\| `(ray_labelmill_\w+)` \|", (DEPLOY / "README.md").read_text(), flags=re.MULTILINE))
    return names | {"kube_cronjob_status_last_successful_time", "kube_cronjob_spec_suspend"}


def _names_in(expression: str) -> set[str]:
    """Metrics that an expression asks for. Raises ValueError where it is no PromQL."""
    plain = str(promql_parser.parse(expression))
    return set(re.findall(r"\b((?:ray_)?labelmill_\w+|kube_\w+)(?=\{)", plain))


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule["alert"])
def test_every_alert_asks_for_what_there_is_and_is_explained(rule: dict[str, Any], emitted: set[str]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    names = _names_in(rule["expr"])
    assert names and names <= emitted
    assert rule["labels"]["severity"] in ("page", "warn", "info")
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_alerts_fire_when_they_should() -> None:
    if shutil.which("promtool") is None:
        # Not only skipped: pytest says nothing more of that than a letter, and lists warnings at the end.
        reason = "tests/helpers/alerts.yaml was not tried: that takes promtool, which comes with Prometheus"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    done = subprocess.run(
        ["promtool", "test", "rules", str(ROOT / "tests" / "alerts.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_that_ask_for_what_is_not_there_are_noticed(emitted: set[str]) -> None:
    assert not _names_in("max(labelmill_nightly_sucess_timestamp_seconds) > 3") <= emitted
    with pytest.raises(ValueError):
        _names_in("rate(ray_labelmill_samples_total[5m]")


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    return panels


def test_the_dashboard_shows_what_there_is(emitted: set[str]) -> None:
    shown: set[str] = set()
    for panel in _panels():
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$root", ".*").replace("$run", ".*")
            names = _names_in(expression)
            assert names and names <= emitted, target["expr"]
            shown |= names
    assert {name for name in emitted if "labelmill" in name} - shown == {"labelmill_nightly_generation"}
    assert "kube_cronjob_spec_suspend" not in shown  # what nobody here has seen emitted
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    assert _names_in(dashboard["annotations"]["list"][0]["expr"]) == {"labelmill_nightly_generation"}


def test_the_dashboards_panels_have_room() -> None:
    panels = _panels()
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def _run_steps() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(r"^RUN (.+)$", text, flags=re.MULTILINE)


def test_the_image_is_made_of_what_is_there() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    allowed = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = [
        source for line in re.findall(r"^COPY (.+)$", dockerfile, flags=re.MULTILINE) for source in line.split()[:-1]
    ]
    assert set(sources) == allowed
    assert all((ROOT / source).exists() for source in sources)
    assert "ENV RAY_AUTH_MODE=token" in dockerfile and re.search(r"^USER ray$", dockerfile, flags=re.MULTILINE)
    python = re.search(r"^ARG PYTHON=(\S+)$", dockerfile, flags=re.MULTILINE)
    assert python is not None and f'requires-python = ">={python[1]}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_the_images_steps_work(tmp_path: Path) -> None:
    """Every RUN but those that need root, in a fresh environment, on what COPY copies. Minutes, and the network."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    for source in allowed:
        target = tmp_path / "image" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target)
        else:
            shutil.copy(ROOT / source, target)
    steps = [step for step in _run_steps() if not step.startswith(("apt-get", "useradd"))]
    assert len(steps) == 3
    # PyTorch's own index need not be reachable here; the pinned version is the same.
    steps[0] = re.sub(r"--index-url \S+ --extra-index-url \S+ ", "", steps[0])
    variables = {**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    for step in steps:
        done = subprocess.run(
            ["sh", "-ec", step], cwd=tmp_path / "image", env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
    shutil.rmtree(tmp_path / "image")
    # The package is whole without the repository: templates and the bundled generator came along.
    run = "{name: a, generator: {checkpoint: 'bundled:avatars-32'}, dataset: {samples: 16, samples_per_shard: 16}}"
    (tmp_path / "nightly.yaml").write_text(f"run: {run}\nroot: root\n")
    command = ["labelmill", "nightly", "nightly.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and "is live" in done.stdout, done.stderr


PAGES = ("nightly.md", "runbook.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (DEPLOY / page).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        target = DEPLOY / path if path else DEPLOY / page
        assert "://" in link or target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, link


def test_the_pages_name_what_there_is(emitted: set[str]) -> None:
    text = (DEPLOY / "nightly.md").read_text()
    assert set(re.findall(r"`(labelmill_nightly_\w+)`", text)) == {
        name for name in emitted if name.startswith("labelmill_nightly")
    }
    table = text[text.index("| gate | compares") : text.index("A higher value is worse")]
    assert re.findall(r"`(\w+)`", table) == [gate.name for gate in GATES]
    limits = re.findall(r"^\| `(\w+)` \| (\.\d+) \|", text, flags=re.MULTILINE)
    assert limits and all(getattr(GatesConfig(), name) == float(limit) for name, limit in limits)


@pytest.fixture
def workplace(s3: S3Server, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which the pages' commands work: with a small nightly file, and their bucket."""
    s3.create_bucket("your-bucket")
    run = {**tiny_run(tiny_checkpoint, "x"), "dataset": {"samples": 6, "samples_per_shard": 6}}
    values = {"run": run, "root": "s3://your-bucket/nightly", "seeds": "fresh", "gates": ANYTHING_PASSES}
    (tmp_path / "deploy" / "runs").mkdir(parents=True)
    (tmp_path / "deploy" / "runs" / "nightly.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    config = load_nightly_config("deploy/runs/nightly.yaml")
    for day in (19, 20):
        run_night(config, date(2026, 1, day))
    yield tmp_path
    for file in Store.open("s3://your-bucket").list():
        Store.open("s3://your-bucket").delete(file.path)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_pages_runs(page: str, workplace: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (DEPLOY / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert lines and all(line.startswith("labelmill ") for line in lines)
    name = Store.open("s3://your-bucket/nightly").folders("snapshots")[0]
    for line in lines:
        command, _, target = line.replace("NAME", name).partition(" > ")
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0 and result.stdout, line
        if target:
            (workplace / target).write_text(result.stdout)
    if page == "nightly.md":
        (url,) = (workplace / "shards.txt").read_text().split()
        assert re.fullmatch(r"s3://your-bucket/nightly/snapshots/\d{4}-\d\d-\d\d-\w{12}/shards/tiny-000000.tar", url)
        assert Store.open("s3://your-bucket").exists(url.removeprefix("s3://your-bucket/"))
