"""KubeRay's manifests against our schema of its documented fields, and what a cluster must not be."""

import json

import pytest
import yaml
from cluster_files import CLUSTERS, MANIFESTS, changed, module, path_of

check = module("check")
HEAD = "spec headGroupSpec"
POD = f"{HEAD} template spec"
BOX = f"{POD} containers 0"


def documents(name):
    return list(yaml.safe_load_all(path_of(name).read_text()))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_only_fields_that_are_known(name):
    for document in documents(name):
        assert check.invalid(document) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("apiVersion", "ray.io/v1alpha1", "ray.io/v1"),
        ("kind", "RayClusters", "RayClusters"),
        ("spec workerGroupSpec", [], "workerGroupSpec"),
        ("spec workerGroupSpecs 0 maxReplica", 1, "maxReplica"),
        ("spec workerGroupSpecs 0 groupName", "My Group", "My Group"),
        ("spec authOptions", None, "'authOptions' is a required property"),
        ("spec authOptions mode", "disabled", "spec.authOptions.mode: 'token' was expected"),
        ("spec authOptions secretname", "x", "secretname"),
        ("spec rayVersion", "latest", "spec.rayVersion"),
        (f"{HEAD} serviceType", "LoadBalancer", "serviceType: 'ClusterIP' was expected"),
        (f"{HEAD} serviceType", "NodePort", "serviceType: 'ClusterIP' was expected"),
        (f"{HEAD} enableIngress", True, "enableIngress"),
        (f"{HEAD} rayStartParams num-cpus", "4", "num-cpus: '0' was expected"),
        (f"{HEAD} rayStartParams num-cpus", 0, "num-cpus"),
        (f"{HEAD} rayStartParams num_cpus", "0", "num_cpus"),
        (f"{POD} securityContext", None, "'securityContext' is a required property"),
        (f"{POD} securityContext runAsNonRoot", False, "runAsNonRoot: True was expected"),
        (f"{POD} securityContext runAsUser", 0, "runAsUser"),
        (f"{POD} hostNetwork", True, "hostNetwork"),
        (f"{POD} restartPolicy", "Always", "restartPolicy: 'Never' was expected"),
        (f"{POD} volumes 0", {"name": "x", "hostPath": {"path": "/"}}, "hostPath"),
        (f"{POD} volumes 1 emptyDir", {"medium": "Memory"}, "'sizeLimit' is a required property"),
        (f"{BOX} image", "atlas-ray:latest", "image"),
        (f"{BOX} image", "atlas-ray", "image"),
        (f"{BOX} resources limits", None, "'limits' is a required property"),
        (f"{BOX} resources limits memory", None, "'memory' is a required property"),
        (f"{BOX} resources limits cpu", 4, "limits.cpu"),
        (f"{BOX} securityContext privileged", True, "privileged"),
        (f"{BOX} securityContext allowPrivilegeEscalation", True, "False was expected"),
        (f"{BOX} env 0", {"name": "OPENAI_API_KEY", "value": "sk-1"}, "'valueFrom' is a required property"),
        (f"{BOX} env 0", {"name": "HF_TOKEN", "value": "hf-1"}, "'valueFrom' is a required property"),
        (f"{BOX} env 0", {"name": "RAY_AUTH_MODE", "value": "disabled"}, "env.0"),
        (f"{BOX} env 0", {"name": "A", "valueFrom": {"secretKeyRef": {"name": "a"}}}, "'key' is a required property"),
        (f"{BOX} volumeMounts 0 mountPaths", "/x", "mountPaths"),
    ],
)
def test_a_mistake_in_a_manifest_is_found(path, value, told):
    (cluster,) = documents("raycluster")
    assert any(told in line for line in check.invalid(changed(cluster, path, value))), check.invalid(
        changed(cluster, path, value)
    )


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec entrypoint", None, "'entrypoint' is a required property"),
        ("spec shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes: True was expected"),
        ("spec activeDeadlineSeconds", None, "'activeDeadlineSeconds' is a required property"),
        ("spec activeDeadlineSeconds", 0, "activeDeadlineSeconds"),
        ("spec backoffLimit", -1, "backoffLimit"),
        ("spec submissionMode", "k8sJobMode", "submissionMode"),
        ("spec rayClusterSpec authOptions mode", "disabled", "'token' was expected"),
        ("spec submitterPodTemplate spec containers 0 resources", None, "'resources' is a required property"),
    ],
)
def test_a_mistake_in_a_job_is_found(path, value, told):
    (job,) = documents("rayjob")
    assert any(told in line for line in check.invalid(changed(job, path, value)))


@pytest.mark.parametrize(
    ("number", "path", "value", "told"),
    [
        (0, "spec accessModes", ["ReadWriteOnce"], "ReadWriteMany"),
        (1, "spec ingress 0 from", [], "from"),
        (1, "spec ingress 0 from 0", {"ipBlock": {"cidr": "0.0.0.0/0"}}, "ipBlock"),
        (1, "spec policyTypes", ["Egress"], "policyTypes"),
    ],
)
def test_a_mistake_around_a_cluster_is_found(number, path, value, told):
    lines = check.invalid(changed(documents("base")[number], path, value))
    assert any(told in line for line in lines), lines


def test_job_and_cluster_are_of_the_same_nodes():
    (cluster,), (job,) = documents("raycluster"), documents("rayjob")
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]


def test_the_names_that_one_manifest_gives_are_those_that_another_asks_for():
    claim, policy = documents("base")
    (cluster,) = documents("raycluster")
    spec = cluster["spec"]
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    templates.append(documents("rayjob")[0]["spec"]["submitterPodTemplate"])
    for template in templates:
        assert template["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"]
        pod = template["spec"]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounts = {
            mount["name"]: mount["mountPath"] for box in pod["containers"] for mount in box.get("volumeMounts", [])
        }
        assert mounts.keys() == volumes.keys()
        if volumes:
            assert mounts == {"runs": "/mnt/atlas-ray", "shm": "/dev/shm"}
            assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    submit = (CLUSTERS / "submit.sh").read_text()
    assert f"service/{cluster['metadata']['name']}-head-svc" in submit
    assert f"generic {spec['authOptions']['secretName']} --from-file=" in submit
    keys = {value["name"] for value in _refs(cluster)}
    assert keys == {"atlas-ray-keys"}


def _refs(document):
    """Every reference to a secret."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from [value] if key == "secretKeyRef" else _refs(value)
    elif isinstance(document, list):
        for value in document:
            yield from _refs(value)


def test_only_environments_are_on_nodes_that_may_go():
    (cluster,) = documents("raycluster")
    groups = cluster["spec"]["workerGroupSpecs"]
    spot = {g["groupName"] for g in groups if "spot" in json.dumps(g["template"]["spec"].get("tolerations", []))}
    assert spot == {"environments"}
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["resources"] == {group["groupName"]: "1"}
        box = group["template"]["spec"]["containers"][0]["resources"]
        assert box["requests"] == box["limits"], (
            "a pod that is given less than Ray believes to have is killed under load"
        )
