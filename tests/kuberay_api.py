"""KubeRay's API as JSON schemas: the part our manifests use, written down here, and the operator's own CRDs.

`subset(kind)` is ours and always there: every field that infra/kuberay uses, its type, and nothing else, so a
misspelt key or a wrong type is refused offline. `load_crd(folder, kind)` reads the complete CRDs (KubeRay's
release files, or `kubectl get crd rayjobs.ray.io -o yaml`), which are too large to keep here; where a folder
is given, the tests hold the manifests and `subset` against them.
"""

from __future__ import annotations

import copy
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
STRING_MAP: Schema = {"type": "object", "additionalProperties": STRING}
QUANTITY: Schema = {
    "anyOf": [INTEGER, {"type": "string", "pattern": r"^[+-]?[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?|[eE][0-9]+)?$"}]
}
PORT: Schema = {"anyOf": [INTEGER, STRING]}


def enum(*values: str) -> Schema:
    """A string that is one of `values`."""
    return {"type": "string", "enum": list(values)}


def array(items: Schema) -> Schema:
    """A list of `items`."""
    return {"type": "array", "items": items}


def closed(fields: Schema, *required: str) -> Schema:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def metadata() -> Schema:
    """The parts of ObjectMeta that a person writes; the CRDs leave it open at the top level."""
    return closed(
        {"name": STRING, "namespace": STRING, "labels": STRING_MAP, "annotations": STRING_MAP}, "name"
    )


def container() -> Schema:
    """A container, in the fields that the manifests use."""
    secret = closed({"name": STRING, "key": STRING, "optional": BOOLEAN}, "key")
    variable = closed(
        {"name": STRING, "value": STRING, "valueFrom": closed({"secretKeyRef": secret})}, "name"
    )
    probe = closed(
        {
            "httpGet": closed({"path": STRING, "port": PORT, "scheme": STRING}, "port"),
            "initialDelaySeconds": INTEGER,
            "periodSeconds": INTEGER,
            "timeoutSeconds": INTEGER,
            "failureThreshold": INTEGER,
            "successThreshold": INTEGER,
        }
    )
    return closed(
        {
            "name": STRING,
            "image": STRING,
            "imagePullPolicy": STRING,
            "env": array(variable),
            "ports": array(
                closed({"name": STRING, "containerPort": INTEGER, "protocol": STRING}, "containerPort")
            ),
            "resources": resources(),
            "securityContext": closed(
                {
                    "allowPrivilegeEscalation": BOOLEAN,
                    "readOnlyRootFilesystem": BOOLEAN,
                    "capabilities": closed({"drop": array(STRING), "add": array(STRING)}),
                }
            ),
            "livenessProbe": probe,
            "readinessProbe": probe,
        },
        "name",
    )


def resources() -> Schema:
    """Requests and limits of a container."""
    amounts: Schema = {"type": "object", "additionalProperties": QUANTITY}
    return closed({"requests": amounts, "limits": amounts})


def pod_template() -> Schema:
    """A pod template, in the fields that the manifests use."""
    toleration = closed({"key": STRING, "operator": STRING, "value": STRING, "effect": STRING})
    spec = closed(
        {
            "containers": array(container()),
            "nodeSelector": STRING_MAP,
            "securityContext": closed({"runAsNonRoot": BOOLEAN, "runAsUser": INTEGER, "fsGroup": INTEGER}),
            "serviceAccountName": STRING,
            "terminationGracePeriodSeconds": INTEGER,
            "tolerations": array(toleration),
        },
        "containers",
    )
    return closed({"spec": spec})


def cluster() -> Schema:
    """RayClusterSpec, in the fields that the manifests use."""
    group = {"rayStartParams": STRING_MAP, "template": pod_template()}
    counts = {"replicas": INTEGER, "minReplicas": INTEGER, "maxReplicas": INTEGER}
    worker = closed({"groupName": STRING, **counts, **group}, "groupName", "template")
    return closed(
        {
            "rayVersion": STRING,
            "authOptions": closed({"mode": enum("disabled", "token"), "secretName": STRING}),
            "enableInTreeAutoscaling": BOOLEAN,
            "autoscalerOptions": closed(
                {"version": enum("v1", "v2"), "idleTimeoutSeconds": INTEGER, "resources": resources()}
            ),
            "headGroupSpec": closed(group, "template"),
            "workerGroupSpecs": array(worker),
        },
        "headGroupSpec",
    )


def subset(kind: str) -> Schema:
    """Our strict schema of a RayJob or a RayService (KubeRay 1.7, ray.io/v1)."""
    rule = closed(
        {
            "policy": enum("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"),
            "condition": closed(
                {
                    "jobStatus": enum("SUCCEEDED", "FAILED"),
                    "jobDeploymentStatus": enum("Failed"),
                    "ttlSeconds": {"type": "integer", "minimum": 0},
                }
            ),
        },
        "policy",
        "condition",
    )
    specs = {
        "RayJob": closed(
            {
                "entrypoint": STRING,
                "runtimeEnvYAML": STRING,
                "submissionMode": STRING,
                "backoffLimit": INTEGER,
                "activeDeadlineSeconds": INTEGER,
                "preRunningDeadlineSeconds": {"type": "integer", "minimum": 1},
                "shutdownAfterJobFinishes": BOOLEAN,
                "ttlSecondsAfterFinished": INTEGER,
                "deletionStrategy": closed({"deletionRules": array(rule)}),
                "rayClusterSpec": cluster(),
            }
        ),
        "RayService": closed(
            {
                "serveConfigV2": STRING,
                "upgradeStrategy": closed({"type": STRING}),
                "rayClusterDeletionDelaySeconds": {"type": "integer", "minimum": 0},
                "excludeHeadPodFromServeSvc": BOOLEAN,
                "rayClusterConfig": cluster(),
            },
            "rayClusterConfig",
        ),
    }
    return closed({"apiVersion": STRING, "kind": STRING, "metadata": metadata(), "spec": specs[kind]}, "spec")


def load_crd(folder: Path, kind: str) -> Schema:
    """The complete strict schema of `kind` from a folder of CRD files (.yaml, .yml or gzip of either).

    Raises:
        FileNotFoundError: no file in the folder defines the kind at version v1.
    """
    for path in sorted(folder.iterdir()):
        if kind.lower() not in path.name.lower() or not path.name.endswith((".yaml", ".yml", ".gz")):
            continue
        raw = path.read_bytes()
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        crd = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if crd["spec"]["names"]["kind"] != kind:
            continue
        for version in crd["spec"]["versions"]:
            if version["name"] == "v1":
                return strict(version["schema"]["openAPIV3Schema"])
    raise FileNotFoundError(
        f"{folder}: no CRD file of {kind} v1; expected one like ray.io_{kind.lower()}s.yaml"
    )


def strict(schema: Schema) -> Schema:
    """A CRD's schema as the API server's strict field validation reads it: unknown keys are errors."""
    whole = copy.deepcopy(schema)
    whole["properties"]["metadata"] = metadata()
    _close(whole)
    return whole


def _close(schema: Any) -> None:
    """Refuse unknown keys in every object that does not say otherwise, in place."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    elif isinstance(schema, dict):
        is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        if schema.get("type") == "object" and not is_open:
            schema["additionalProperties"] = False
        for key, value in schema.items():
            # the names in here are fields, not keywords
            _close(list(value.values()) if key == "properties" else value)


def problems(document: Any, schema: Schema) -> list[str]:
    """What is wrong with the document, each as `path: reason`; empty when nothing is."""
    errors = Draft202012Validator(schema).iter_errors(document)
    return sorted(f"{error.json_path.removeprefix('$.')}: {error.message}" for error in errors)


def disagreements(ours: Schema, theirs: Schema, path: str = "") -> Iterator[str]:
    """Where `ours` says something that the complete schema `theirs` does not."""
    if "type" in ours and ours["type"] != theirs.get("type", ours["type"]):
        yield f"{path}: type {ours['type']} is {theirs.get('type')} in the CRD"
    if set(ours.get("enum", ())) != set(theirs.get("enum", ())):
        yield f"{path}: values {ours.get('enum')} are {theirs.get('enum')} in the CRD"
    if set(theirs.get("required", ())) - set(ours.get("required", ())) - {"minReplicas", "maxReplicas"}:
        yield f"{path}: the CRD requires {theirs['required']}"
    for name, field in ours.get("properties", {}).items():
        known = theirs.get("properties", {})
        if name not in known:
            yield f"{path}.{name}: not in the CRD"
        else:
            yield from disagreements(field, known[name], f"{path}.{name}")
    if "items" in ours:
        yield from disagreements(ours["items"], theirs["items"], f"{path}[]")
