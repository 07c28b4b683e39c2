"""The KubeRay manifests and the Dockerfile agree with KubeRay's API, with Ray, and with this repository.

KubeRay's complete CRDs are about 1 MB each and are not kept here. Give a folder of them (release 1.7) in
MORPHORAY_KUBERAY_CRDS to validate against these too; infra/README.md says how to get them.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from kuberay_api import disagreements, load_crd, problems, subset

ROOT = Path(__file__).resolve().parents[1]
MANIFESTS = {
    "RayJob": ROOT / "infra/kuberay/rayjob.yaml",
    "RayService": ROOT / "infra/kuberay/rayservice.yaml",
}
CRDS = os.environ.get("MORPHORAY_KUBERAY_CRDS")

# Ray Serve 2.60's own models, on import under pydantic 2.14; nothing of ours can avoid it
ray_serve_import = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field`:pydantic.warnings.PydanticDeprecatedSince20"
)

Document = dict[str, Any]


def manifest(kind: str) -> Document:
    """The one document of a manifest, its aliases resolved into copies."""
    document: Document = json.loads(json.dumps(yaml.safe_load(MANIFESTS[kind].read_text())))
    return document


def cluster_of(document: Document) -> Document:
    """The RayCluster inside a RayJob or a RayService."""
    spec = document["spec"]
    cluster: Document = spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec["rayClusterConfig"]
    return cluster


def containers_of(document: Document) -> list[Document]:
    """Every container of the cluster, the head's first."""
    cluster = cluster_of(document)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


@pytest.fixture(scope="module", params=["subset", "crd"])
def schemas(request: pytest.FixtureRequest) -> dict[str, Document]:
    """Our schema of the used fields, and the complete CRDs where a folder of them is given."""
    if request.param == "subset":
        return {kind: subset(kind) for kind in MANIFESTS}
    if CRDS is None:
        pytest.skip("MORPHORAY_KUBERAY_CRDS is not set: no complete CRDs to validate against")
    return {kind: load_crd(Path(CRDS), kind) for kind in MANIFESTS}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifest_is_valid(kind: str, schemas: dict[str, Document]) -> None:
    assert manifest(kind)["apiVersion"] == "ray.io/v1"
    assert manifest(kind)["kind"] == kind
    assert problems(manifest(kind), schemas[kind]) == []


def misspell_resources(document: Document) -> None:
    worker = containers_of(document)[-1]
    worker["resource"] = worker.pop("resources")


def misspell_secret_key(document: Document) -> None:
    reference = containers_of(document)[0]["env"][0]["valueFrom"]
    reference["secretKeyReff"] = reference.pop("secretKeyRef")


def misspell_metadata(document: Document) -> None:
    document["metadata"]["label"] = {}


def replicas_as_text(document: Document) -> None:
    cluster_of(document)["workerGroupSpecs"][0]["replicas"] = "two"


def start_parameter_as_number(document: Document) -> None:
    cluster_of(document)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def unknown_auth_mode(document: Document) -> None:
    cluster_of(document)["authOptions"]["mode"] = "tokens"


def no_container_name(document: Document) -> None:
    del containers_of(document)[0]["name"]


def memory_in_gigs(document: Document) -> None:
    containers_of(document)[-1]["resources"]["limits"]["memory"] = "48 gigs"


@pytest.mark.parametrize("kind", MANIFESTS)
@pytest.mark.parametrize(
    ("plant", "path", "word"),
    [
        (misspell_resources, "workerGroupSpecs[0].template.spec.containers[0]", "'resource' was unexpected"),
        (
            misspell_secret_key,
            "headGroupSpec.template.spec.containers[0].env[0].valueFrom",
            "'secretKeyReff' was unexpected",
        ),
        (misspell_metadata, "metadata", "'label' was unexpected"),
        (replicas_as_text, "workerGroupSpecs[0].replicas", "'two' is not of type 'integer'"),
        (start_parameter_as_number, "headGroupSpec.rayStartParams", "0 is not of type 'string'"),
        (unknown_auth_mode, "authOptions.mode", "'tokens' is not one of"),
        (no_container_name, "headGroupSpec.template.spec.containers[0]", "'name' is a required property"),
        (
            memory_in_gigs,
            "workerGroupSpecs[0].template.spec.containers[0].resources.limits.memory",
            "48 gigs",
        ),
    ],
)
def test_planted_error_is_refused_with_its_path(
    kind: str,
    plant: Callable[[Document], None],
    path: str,
    word: str,
    schemas: dict[str, Document],
) -> None:
    document = copy.deepcopy(manifest(kind))
    plant(document)
    found = problems(document, schemas[kind])
    assert len(found) == 1, found
    assert path in found[0].split(": ")[0], found
    assert word in found[0], found


@pytest.mark.skipif(
    CRDS is None, reason="MORPHORAY_KUBERAY_CRDS is not set: nothing to compare the subset with"
)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_subset_agrees_with_the_complete_crd(kind: str) -> None:
    complete = load_crd(Path(str(CRDS)), kind)
    assert list(disagreements(subset(kind), complete)) == []


@pytest.mark.parametrize("kind", MANIFESTS)
def test_rules_of_the_operator_that_no_schema_holds(kind: str) -> None:
    document, cluster = manifest(kind), cluster_of(manifest(kind))
    # RFC 1035, and room for the suffixes of the names that the operator derives
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", document["metadata"]["name"])
    assert cluster["authOptions"] == {"mode": "token"}
    locked = re.search(r"^ray(?:\[.*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None and cluster["rayVersion"] == locked[1]
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_deletion_rules_are_consistent() -> None:
    spec = manifest("RayJob")["spec"]
    assert "shutdownAfterJobFinishes" not in spec and "ttlSecondsAfterFinished" not in spec
    delays: dict[tuple[str, str], int] = {}
    for rule in spec["deletionStrategy"]["deletionRules"]:
        condition = dict(rule["condition"])
        delay = condition.pop("ttlSeconds")
        ((field, status),) = condition.items()
        assert (f"{field}={status}", rule["policy"]) not in delays, "two rules for one event and policy"
        delays[f"{field}={status}", rule["policy"]] = delay
    for status in ("jobStatus=SUCCEEDED", "jobStatus=FAILED"):
        assert delays[status, "DeleteWorkers"] <= delays[status, "DeleteCluster"]
    # a job that never started must not keep its GPU nodes
    assert ("jobDeploymentStatus=Failed", "DeleteCluster") in delays
    # DeleteWorkers is refused beside the autoscaler
    assert not cluster_of(manifest("RayJob")).get("enableInTreeAutoscaling", False)


@pytest.mark.parametrize("kind", MANIFESTS)
def test_containers_ask_for_what_they_need_and_hold_no_secret(kind: str) -> None:
    containers = containers_of(manifest(kind))
    for container in containers:
        wanted = container["resources"]
        assert {"cpu", "memory"} <= wanted["requests"].keys()
        assert wanted["requests"]["memory"] == wanted["limits"]["memory"]
        variables = {item["name"]: item for item in container["env"]}
        assert {"AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"} <= variables.keys()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert variables[name].keys() == {"name", "valueFrom"}
            assert variables[name]["valueFrom"]["secretKeyRef"]["name"] == "morphoray-s3"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert all(container["resources"]["limits"]["nvidia.com/gpu"] for container in containers[1:])
    assert len({container["image"] for container in containers}) == 1


def test_job_runs_an_existing_script_from_a_remote_zip() -> None:
    spec = manifest("RayJob")["spec"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    assert environment["env_vars"] == {"PYTHONPATH": "platform"}
    assert re.fullmatch(r"(https|s3|gs)://\S+\.zip", environment["working_dir"])
    command = shlex.split(spec["entrypoint"])
    assert command[0] == "python"
    paths = [word for word in command if word.startswith("jobs/")]
    assert len(paths) == 2
    missing = [path for path in paths if not (ROOT / path).is_file()]
    assert not missing, f"rayjob.yaml's entrypoint names files that do not exist: {missing}"


def test_working_dir_is_a_uri_that_ray_accepts() -> None:
    # importing ray takes seconds, so only where it is needed
    from ray.runtime_env import RuntimeEnv

    environment = yaml.safe_load(manifest("RayJob")["spec"]["runtimeEnvYAML"])
    assert RuntimeEnv(**environment)["working_dir"] == environment["working_dir"]


def unknown_fields(model: BaseModel, given: Any, path: str = "") -> list[str]:
    """The keys of `given` that its model has no field for; Ray's own validation ignores them."""
    found = []
    fields = type(model).model_fields
    for key, value in given.items():
        if key not in fields:
            found.append(f"{path}{key}")
            continue
        parsed = getattr(model, key)
        parts = list(zip(parsed, value, strict=True)) if isinstance(parsed, list) else [(parsed, value)]
        for part, raw in parts:
            if isinstance(part, BaseModel) and isinstance(raw, dict):
                found += unknown_fields(part, raw, f"{path}{key}.")
    return found


@ray_serve_import
def test_serve_config_is_one_that_ray_serve_takes_as_written() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    parsed = ServeDeploySchema.model_validate(config)
    assert unknown_fields(parsed, config) == []
    assert parsed.http_options.port == 8000
    for application in config["applications"]:
        application["deployments"][0]["autoscaling_confg"] = {}
    planted = unknown_fields(ServeDeploySchema.model_validate(config), config)
    assert planted == ["applications.deployments.autoscaling_confg"]


@ray_serve_import
def test_autoscaling_of_the_service_fits_its_cluster() -> None:
    from ray.serve.config import AutoscalingConfig

    config = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    cluster = cluster_of(manifest("RayService"))
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    on_gpus = [
        deployment
        for application in config["applications"]
        for deployment in application["deployments"]
        if deployment.get("ray_actor_options", {}).get("num_gpus")
    ]
    assert on_gpus, "no deployment of the service asks for a GPU"
    for deployment in on_gpus:
        wanted = deployment["autoscaling_config"]
        assert wanted.keys() <= AutoscalingConfig.model_fields.keys()
        scaling = AutoscalingConfig(**wanted)
        # one GPU each: more replicas than nodes would wait for ever
        assert scaling.max_replicas <= group["maxReplicas"]
        assert scaling.min_replicas <= group["minReplicas"]


def test_service_names_what_serve_defines() -> None:
    config = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, function = application["import_path"].split(":")
    source = ROOT / (module.replace(".", "/") + ".py")
    assert source.is_file(), f"rayservice.yaml's import_path names {source.relative_to(ROOT)}: not there"
    functions = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert function in {node.name for node in functions}
    unread = [name for name in application["args"] if not re.search(rf"\b{name}\b", source.read_text())]
    assert unread == [], f"rayservice.yaml gives arguments that {source.name} never mentions"
    # serve/ only names the application; its code is in the package
    code = (ROOT / "platform/morphoray/pipelines").glob("serving*.py")
    defined = {name for path in code for name in deployments_in(path)}
    named = {deployment["name"] for deployment in application["deployments"]}
    assert named <= defined, f"rayservice.yaml names {sorted(named - defined)}; there are {sorted(defined)}"


def deployments_in(path: Path) -> set[str]:
    """The names of the classes and functions of a file that Serve deploys, by their decorator."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            found |= {node.name for text in decorators if text.startswith("serve.deployment")}
            named = [re.search(r"^serve\.deployment\(.*\bname='([^']+)'", text) for text in decorators]
            found |= {match[1] for match in named if match}
    return found


def stages() -> dict[str, list[str]]:
    """The Dockerfile's instructions by the name of their stage, continuation lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "infra/Dockerfile").read_text())
    lines = [" ".join(line.split()) for line in text.splitlines() if line and not line.startswith("#")]
    found: dict[str, list[str]] = {"": []}
    for line in lines:
        opening = re.fullmatch(r"FROM \S+ AS (\S+)", line)
        if opening:
            found[opening[1]] = []
        found[list(found)[-1]].append(line)
    return found


def copied(stage: list[str]) -> list[str]:
    """The sources of a stage's COPY instructions."""
    words = [
        [word for word in line.split()[1:] if not word.startswith("--")] for line in stage if "COPY" in line
    ]
    return [source for line in words for source in line[:-1]]


def test_dockerfile_stages() -> None:
    job, serve = stages()["job"], stages()["serve"]
    assert copied(job) == ["requirements.lock"], "the job's working_dir brings the code, not its image"
    assert copied(serve) == ["platform/morphoray", "serve"]
    assert serve[0] == "FROM job AS serve"
    assert any("--require-hashes" in line and "requirements.lock" in line for line in job)
    users = [line.split()[1] for line in (*job, *serve) if line.startswith("USER ")]
    assert users and users[-1] == "1000:1000"
    allowed = (ROOT / "infra/Dockerfile.dockerignore").read_text().split()
    for source in (*copied(job), *copied(serve)):
        assert f"!{source}" in allowed, f"infra/Dockerfile.dockerignore hides {source}"
        assert (ROOT / source).exists(), f"infra/Dockerfile copies {source}: not there"


def test_image_runs_as_the_user_that_the_manifests_demand() -> None:
    for kind in MANIFESTS:
        cluster = cluster_of(manifest(kind))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            security = group["template"]["spec"]["securityContext"]
            assert security["runAsNonRoot"] is True and security["runAsUser"] == 1000


def test_every_locked_requirement_has_a_hash() -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "requirements.lock").read_text())
    pinned = [line for line in text.splitlines() if re.match(r"[A-Za-z0-9]", line)]
    assert len(pinned) > 50
    assert [line.split()[0] for line in pinned if "==" not in line or "--hash=sha256:" not in line] == []
