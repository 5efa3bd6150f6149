"""What is deployed is what the services really use: ports, health names, settings, images."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic_settings import BaseSettings

from generator_svc.settings import GeneratorSettings
from orchestrator.settings import OrchestratorSettings
from ragserve.v1 import generator_pb2, orchestrator_pb2, retriever_pb2
from retriever_svc.settings import RetrieverSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
SETTINGS: dict[str, type[BaseSettings]] = {
    "retriever": RetrieverSettings,
    "generator": GeneratorSettings,
    "orchestrator": OrchestratorSettings,
}
HEALTH_NAMES = {
    "retriever": retriever_pb2.DESCRIPTOR.services_by_name["RetrieverService"].full_name,
    "generator": generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name,
    "orchestrator": orchestrator_pb2.DESCRIPTOR.services_by_name["RagService"].full_name,
}
# Settings of libraries, which no settings class of ours knows.
FOREIGN_ENV = {"OMP_NUM_THREADS"}


def env_names(settings: type[BaseSettings]) -> set[str]:
    """The environment variables that a settings class reads, nested ones included."""
    prefix = settings.model_config["env_prefix"]
    names = set()
    for name, field in settings.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        names |= {f"{prefix}{name}__{inner}".upper() for inner in nested} if nested else {f"{prefix}{name}".upper()}
    return names


@pytest.fixture(scope="module")
def resources() -> list[dict[str, Any]]:
    """What kustomization.yaml puts together, read from its files."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    found = [each for name in kustomization["resources"] for each in yaml.safe_load_all((BASE / name).read_text())]
    for generated in kustomization["configMapGenerator"]:
        lines = [line for name in generated["envs"] for line in (BASE / name).read_text().splitlines() if line]
        data = dict(line.split("=", 1) for line in lines)
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generated["name"]}, "data": data})
    return found


def pick(resources: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    found = [r for r in resources if r["kind"] == kind and r["metadata"]["name"].startswith(name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)} found"
    return found[0]


def container(resources: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (only,) = pick(resources, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return dict(only)


def server_settings(name: str) -> dict[str, Any]:
    """Default host and ports of a service, as its settings class has them."""
    return SETTINGS[name].model_fields["server"].get_default(call_default_factory=True).model_dump()


def test_every_resource_is_valid_against_the_strict_schema(resources: list[dict[str, Any]]) -> None:
    assert {(r["kind"]) for r in resources} == {"ConfigMap", "Service", "Deployment"}
    for resource in resources:
        kubernetes_validate.validate(resource, "1.32", strict=True)


def test_kubectl_renders_these_resources(resources: list[dict[str, Any]]) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True)
    rendered = [resource for resource in yaml.safe_load_all(done.stdout) if resource]
    assert len(rendered) == len(resources)
    for resource in resources:
        same = pick(rendered, resource["kind"], resource["metadata"]["name"])
        assert same.get("data") == resource.get("data")
        kubernetes_validate.validate(same, "1.32", strict=True)


def test_the_schema_refuses_a_misspelt_field(resources: list[dict[str, Any]]) -> None:
    broken = yaml.safe_load(yaml.safe_dump(pick(resources, "Deployment", "generator")))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.32", strict=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_ports_are_the_ones_the_service_listens_on(resources: list[dict[str, Any]], name: str) -> None:
    default = server_settings(name)
    config = pick(resources, "ConfigMap", name)["data"]
    prefix = f"RAGSERVE_{name.upper()}_SERVER__"
    ports = {port["name"]: port["containerPort"] for port in container(resources, name)["ports"]}
    assert ports == {"grpc": default["port"], "metrics": default["metrics_port"]}
    assert int(config[f"{prefix}PORT"]) == ports["grpc"]
    assert int(config[f"{prefix}METRICS_PORT"]) == ports["metrics"]
    service = pick(resources, "Service", name)["spec"]
    assert service["clusterIP"] == "None"
    assert {port["name"]: port["port"] for port in service["ports"]} == ports


@pytest.mark.parametrize("name", SETTINGS)
def test_probes_ask_for_health_names_the_service_answers_to(resources: list[dict[str, Any]], name: str) -> None:
    probes = container(resources, name)
    port = server_settings(name)["port"]
    assert probes["readinessProbe"]["grpc"] == {"port": port, "service": HEALTH_NAMES[name]}
    assert probes["startupProbe"]["grpc"] == {"port": port, "service": HEALTH_NAMES[name]}
    assert probes["livenessProbe"]["grpc"] == {"port": port, "service": "liveness"}


@pytest.mark.parametrize("name", SETTINGS)
def test_environment_is_read_by_the_service(
    resources: list[dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pick(resources, "ConfigMap", name)["data"]
    image = dict(re.findall(r"(RAGSERVE_\w+)=(\S+)", (DEPLOY / "docker" / f"{name}.Dockerfile").read_text()))
    assert image, "the image sets no default"
    known = env_names(SETTINGS[name]) | FOREIGN_ENV
    assert set(config) <= known, f"unknown: {set(config) - known}"
    assert set(image) <= known, f"unknown: {set(image) - known}"
    for key, value in {**image, **config}.items():
        monkeypatch.setenv(key, value)
    loaded = SETTINGS[name]()  # the values parse, with nothing else set
    assert loaded.model_dump()["server"]["port"] == server_settings(name)["port"]
    assert loaded.model_dump()["server"]["host"] == "0.0.0.0"


@pytest.mark.parametrize("name", SETTINGS)
def test_grace_fits_into_the_termination_period(resources: list[dict[str, Any]], name: str) -> None:
    grace = float(pick(resources, "ConfigMap", name)["data"][f"RAGSERVE_{name.upper()}_SERVER__GRACE_SECONDS"])
    pod = pick(resources, "Deployment", name)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > grace


def test_the_orchestrator_finds_the_others_by_their_service_names(resources: list[dict[str, Any]]) -> None:
    config = pick(resources, "ConfigMap", "orchestrator")["data"]
    for name in ("retriever", "generator"):
        port = pick(resources, "Service", name)["spec"]["ports"][0]["port"]
        assert config[f"RAGSERVE_ORCHESTRATOR_{name.upper()}"] == f"dns:///{name}:{port}"


@pytest.mark.parametrize("name", SETTINGS)
def test_images(name: str) -> None:
    path = DEPLOY / "docker" / f"{name}.Dockerfile"
    text = path.read_text()
    default = server_settings(name)
    assert f"EXPOSE {default['port']} {default['metrics_port']}" in text
    module = "orchestrator" if name == "orchestrator" else f"{name}_svc"
    assert f'"-m", "{module}"' in text
    assert ("torch" in text) == (name == "generator")
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for part in source.split():
            assert (DEPLOY.parent / part).exists(), f"{path.name} copies {part}, which is not there"
    subprocess.run(["hadolint", str(path)], check=True, env={"PATH": str(Path(sys.executable).parent)})


def test_the_generators_image_can_compile_kernels_on_a_gpu(resources: list[dict[str, Any]]) -> None:
    """Triton needs a C compiler in the process that uses the kernels, and a folder to keep them in."""
    image = (DEPLOY / "docker" / "generator.Dockerfile").read_text().rsplit("\nFROM ", 1)[1]
    assert re.search(r'"\$\{DEVICE\}" = gpu.*\n.* install .*\bgcc libc6-dev\b', image)
    (folder,) = re.findall(r"TRITON_CACHE_DIR=(\S+)", image)
    mounts = [mount["mountPath"] for mount in container(resources, "generator")["volumeMounts"]]
    assert any(folder.startswith(f"{mount}/") for mount in mounts)


def test_the_retrievers_gpu_packages_bring_the_libraries_that_they_load() -> None:
    extras = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(re.fullmatch(r"onnxruntime-gpu\[cuda,cudnn\]==\S+", package) for package in extras["gpu"])


def test_the_overlay_mounts_one_claim_where_the_retrievers_look_for_it() -> None:
    overlay = DEPLOY / "kubernetes" / "overlays" / "live-knowledge"
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    (generated,) = kustomization["configMapGenerator"]
    settings = dict(line.split("=", 1) for line in generated["literals"])
    assert set(settings) <= env_names(RetrieverSettings)
    claim, patch = (yaml.safe_load((overlay / name).read_text()) for name in ("claim.yaml", "retriever-patch.yaml"))
    kubernetes_validate.validate(claim, "1.32", strict=True)
    pod = patch["spec"]["template"]["spec"]
    (mount,), (volume,) = pod["containers"][0]["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert settings["RAGSERVE_RETRIEVER_KNOWLEDGE"].startswith(mount["mountPath"] + "/")


def test_kubectl_renders_the_overlay() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    overlay = DEPLOY / "kubernetes" / "overlays" / "live-knowledge"
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True)
    rendered = [resource for resource in yaml.safe_load_all(done.stdout) if resource]
    for resource in rendered:
        kubernetes_validate.validate(resource, "1.32", strict=True)
    volumes = pick(rendered, "Deployment", "retriever")["spec"]["template"]["spec"]["volumes"]
    assert {volume["name"] for volume in volumes} == {"tmp", "knowledge"}
    assert pick(rendered, "ConfigMap", "retriever")["data"]["RAGSERVE_RETRIEVER_KNOWLEDGE"] == "/knowledge/kb"
