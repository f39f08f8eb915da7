"""The fields of KubeRay's RayJob, as its API reference of v1.7 has them, as a JSON Schema. Pod templates are left open:
Kubernetes' own schemas know them."""

from typing import Any

_POD_TEMPLATE: dict[str, Any] = {"type": "object", "required": ["spec"]}
_TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
_BOOLEAN, _TEXT = {"type": "boolean"}, {"type": "string"}
_COUNT, _POSITIVE = {"type": "integer", "minimum": 0}, {"type": "integer", "minimum": 1}


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


_AUTH_OPTIONS = _closed({"mode": {"enum": ["disabled", "token"]}, "secretName": _TEXT, "enableK8sTokenAuth": _BOOLEAN})
_AUTOSCALER_OPTIONS = _closed(
    {
        "resources": {"type": "object"},
        "image": _TEXT,
        "imagePullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        "securityContext": {"type": "object"},
        "idleTimeoutSeconds": _COUNT,
        "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
        "version": {"enum": ["v1", "v2"]},
        "env": {"type": "array"},
        "envFrom": {"type": "array"},
        "volumeMounts": {"type": "array"},
        "command": {"type": "array", "items": _TEXT},
        "args": {"type": "array", "items": _TEXT},
    }
)
_HEAD_GROUP = _closed(
    {
        "template": _POD_TEMPLATE,
        "headService": {"type": "object"},
        "enableIngress": _BOOLEAN,
        "ingressOptions": {"type": "object"},
        "resources": _TEXTS,
        "labels": _TEXTS,
        "rayStartParams": _TEXTS,
        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    },
    "template",
)
_WORKER_GROUP = _closed(
    {
        "groupName": _TEXT,
        "replicas": _COUNT,
        "minReplicas": _COUNT,
        "maxReplicas": _COUNT,
        "numOfHosts": _POSITIVE,
        "idleTimeoutSeconds": _COUNT,
        "priority": {"type": "integer"},
        "suspend": _BOOLEAN,
        "resources": _TEXTS,
        "labels": _TEXTS,
        "rayStartParams": _TEXTS,
        "template": _POD_TEMPLATE,
        "scaleStrategy": _closed({"workersToDelete": {"type": "array", "items": _TEXT}}),
    },
    "groupName",
    "template",
)
_RAY_CLUSTER = _closed(
    {
        "upgradeStrategy": _closed({"type": {"enum": ["Recreate", "None"]}}),
        "authOptions": _AUTH_OPTIONS,
        "suspend": _BOOLEAN,
        "managedBy": {"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
        "autoscalerOptions": _AUTOSCALER_OPTIONS,
        "headServiceAnnotations": _TEXTS,
        "enableInTreeAutoscaling": _BOOLEAN,
        "gcsFaultToleranceOptions": {"type": "object"},
        "historyServerOptions": {"type": "object"},
        "networkPolicy": {"type": "object"},
        "tlsOptions": _closed({"enabled": _BOOLEAN}),
        "headGroupSpec": _HEAD_GROUP,
        "rayVersion": _TEXT,
        "workerGroupSpecs": {"type": "array", "items": _WORKER_GROUP},
    },
    "headGroupSpec",
)
_RAY_JOB_SPEC = _closed(
    {
        "activeDeadlineSeconds": _POSITIVE,
        "backoffLimit": _COUNT,
        "rayClusterSpec": _RAY_CLUSTER,
        "submitterPodTemplate": _POD_TEMPLATE,
        "metadata": _TEXTS,
        "clusterSelector": _TEXTS,
        "submitterConfig": _closed({"backoffLimit": _COUNT}),
        "managedBy": {"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
        "deletionStrategy": {"type": "object"},
        "entrypoint": _TEXT,
        "runtimeEnvYAML": _TEXT,
        "jobId": _TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "entrypointResources": _TEXT,
        "entrypointNumCpus": {"type": "number"},
        "entrypointNumGpus": {"type": "number"},
        "ttlSecondsAfterFinished": _COUNT,
        "preRunningDeadlineSeconds": _POSITIVE,
        "shutdownAfterJobFinishes": _BOOLEAN,
        "suspend": _BOOLEAN,
    }
)
RAY_JOB = _closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": {"type": "object"},
        "spec": _RAY_JOB_SPEC,
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)
