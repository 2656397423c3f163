"""The files of cluster/: by Ray's own schema and loader, by what KubeRay's operator requires, and against the pins."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

from cluster.local import LocalCluster
from ray_learngene.cli import main
from ray_learngene.cli.commands import COMMANDS
from ray_learngene.cluster import submit
from ray_learngene.errors import UserError
from tests.cluster.kuberay import rejected
from tests.cluster.policy import refused
from tests.s3_recorder import Request

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY = re.search(r"^ray\[.*\]==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
IMAGE = f"REGISTRY/learngene:{RAY}"


def test_the_image_has_the_pinned_ray_and_is_built_from_files_that_exist() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert words[:2] == [["ARG", f"RAY_IMAGE=rayproject/ray:{RAY}-py311"], ["FROM", "${RAY_IMAGE}"]]
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [source for line in words if line[0] == "COPY" for source in line[1:-1] if not source.startswith("--")]
    assert {"requirements.txt", "ray_learngene", "jobs"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and f"!{source}" in ignored
    assert any("--requirement requirements.txt" in " ".join(line) for line in words if line[0] == "RUN")


def test_a_folder_that_is_no_local_cluster_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="is not the folder of a local cluster"):
        LocalCluster(tmp_path).down()
    with pytest.raises(UserError, match="is not the folder of a local cluster"):
        LocalCluster(tmp_path)._create(1)
    assert (tmp_path / "thesis.tex").read_text() == "years"
    LocalCluster(tmp_path / "nothing").down()


@pytest.fixture(scope="module")
def aws() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "aws.yaml").read_text())


def test_ray_up_takes_the_file(aws: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(aws)  # what `ray up` does before it talks to AWS: defaults, node types, Docker
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == {"head", "gpu-worker"}
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config({**prepared, "idle_minutes": 3})


def test_on_aws_the_head_trains_nothing_and_the_workers_are_spot(aws: dict[str, Any]) -> None:
    head, worker = (aws["available_node_types"][name] for name in ("head", "gpu-worker"))
    assert aws["head_node_type"] == "head" and head["resources"]["CPU"] == 0 and head["resources"][submit.DRIVER] > 0
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and worker["min_workers"] == 0
    assert head["node_config"]["IamInstanceProfile"] == {"Name": "learngene-head"}
    assert worker["node_config"]["IamInstanceProfile"] == {"Name": "learngene-store"}
    assert aws["docker"]["image"] == IMAGE
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert aws["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert aws["idle_timeout_minutes"] > 0


def test_the_heads_role_may_do_what_rays_autoscaler_does(aws: dict[str, Any]) -> None:
    statements = {each["Sid"]: each for each in json.loads((CLUSTER / "head-policy.json").read_text())["Statement"]}
    source = (Path(ray.__file__).parent / "autoscaler/_private/aws/node_provider.py").read_text()
    for call, action, sid in (
        ("ec2_fail_fast.create_instances(", "ec2:RunInstances", "StartWorkers"),
        ("TagSpecifications", "ec2:CreateTags", "TagNewWorkers"),
        ("create_tags(", "ec2:CreateTags", "TagAndEndWorkers"),
        ("ec2.instances.filter(", "ec2:DescribeInstances", "StartWorkers"),
        ("ec2.describe_instance_types(", "ec2:DescribeInstanceTypes", "StartWorkers"),
        (".describe_images(", "ec2:DescribeImages", "StartWorkers"),
        ("client.terminate_instances", "ec2:TerminateInstances", "TagAndEndWorkers"),  # stopped ones are not kept
    ):
        assert call in source and action in statements[sid]["Action"], action
    own = statements["TagAndEndWorkers"]["Condition"]["StringEquals"]
    assert own == {f"aws:ResourceTag/{TAG_RAY_CLUSTER_NAME}": aws["cluster_name"]}
    # a role that may tag any instance of the account may end it
    assert statements["TagNewWorkers"]["Condition"]["StringEquals"] == {"ec2:CreateAction": "RunInstances"}
    assert [
        sid for sid, each in statements.items() if "ec2:CreateTags" in each["Action"] and "Condition" not in each
    ] == []
    worker = aws["available_node_types"]["gpu-worker"]["node_config"]["IamInstanceProfile"]["Name"]
    assert statements["GiveWorkersTheirRole"]["Resource"].endswith(f":role/{worker}")


def test_ray_start_knows_every_flag_of_the_file(aws: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {flag for parameter in start.params for flag in parameter.opts}
    commands = [*aws["head_start_ray_commands"], *aws["worker_start_ray_commands"]]
    flags = {flag for command in commands for flag in re.findall(r"(--[\w-]+)", command)}
    assert flags and flags <= known


def kubernetes(name: str) -> dict[str, Any]:
    """Return the Ray resource of a file."""
    documents = [each for each in yaml.safe_load_all((CLUSTER / name).read_text()) if each["apiVersion"] == "ray.io/v1"]
    assert len(documents) == 1
    return documents[0]


def clusters() -> Iterator[dict[str, Any]]:
    cluster, job = kubernetes("kuberay-cluster.yaml"), kubernetes("kuberay-job.yaml")
    assert (cluster["kind"], job["kind"]) == ("RayCluster", "RayJob")
    yield from (cluster["spec"], job["spec"]["rayClusterSpec"])


@pytest.mark.parametrize("spec", clusters(), ids=["cluster", "job"])
def test_kuberay_clusters(spec: dict[str, Any]) -> None:
    assert spec["rayVersion"] == RAY and spec["authOptions"] == {"mode": "token"} and spec["enableInTreeAutoscaling"]
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    # the operator writes this value into a shell command as it is: quoted, with the quotes inside escaped
    assert json.loads(json.loads(head["rayStartParams"]["resources"].strip("'"))) == {submit.DRIVER: 8}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"] and workers["groupName"]
    assert isinstance(workers["rayStartParams"], dict)
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == IMAGE
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"secretRef": {"name": "learngene-store", "optional": True}} in container["envFrom"]
    ports = {port["containerPort"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {6379, 8265}
    pod = workers["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} <= {
        each["name"] for each in pod["volumes"]
    }
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_kuberay_job_is_a_valid_command_that_is_tried_again() -> None:
    spec = kubernetes("kuberay-job.yaml")["spec"]
    assert spec["submissionMode"] == "K8sJobMode" and spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    assert json.loads(spec["entrypointResources"]) == {submit.DRIVER: 1}
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"] == submit.ENVIRONMENT
    words = spec["entrypoint"].replace("/home/ray/learngene/", f"{ROOT}/").split()
    assert words[0] == "learngene"
    main._parse(words[1:])


def test_the_kuberay_jobs_images_are_where_the_policy_lets_it_read() -> None:
    words = kubernetes("kuberay-job.yaml")["spec"]["entrypoint"].split()
    data, store = (words[words.index(flag) + 1].removeprefix("s3://") for flag in ("--data", "--store"))
    bucket, prefix = store.split("/", 1)
    asked = [
        Request("s3:GetObject", f"{data}/train-00000.parquet"),
        Request("s3:ListBucket", bucket, f"{data.removeprefix(f'{bucket}/')}/"),
    ]
    assert refused("store-policy.json", bucket, prefix, asked) == []


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_kuberays_operator_takes_the_files(name: str) -> None:
    document = kubernetes(name)
    assert rejected(document) == []
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    cluster["workerGroupSpecs"][0]["maxReplicas"] = "many"
    del cluster["workerGroupSpecs"][0]["template"]
    assert len(rejected(document)) == 3


def pods() -> Iterator[Any]:
    """Every pod of the files with the name of the securityContext of containers that the operator adds to it."""
    for name in ("kuberay-cluster.yaml", "kuberay-job.yaml"):
        spec = kubernetes(name)["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        yield pytest.param(cluster["headGroupSpec"]["template"]["spec"], id=f"{name}-head")
        yield pytest.param(cluster["workerGroupSpecs"][0]["template"]["spec"], id=f"{name}-worker")
        if name == "kuberay-job.yaml":
            yield pytest.param(spec["submitterPodTemplate"]["spec"], id=f"{name}-submitter")


def restricted_container(context: dict[str, Any]) -> bool:
    """Return whether a container's securityContext meets Pod Security's restricted profile, with what its pod says."""
    return (
        context.get("allowPrivilegeEscalation") is False
        and context.get("capabilities") == {"drop": ["ALL"]}
        and not context.get("privileged")
        and context.get("runAsUser") != 0
    )


@pytest.mark.parametrize("pod", pods())
def test_every_pod_meets_pod_security_restricted(pod: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] != 0
    assert context["seccompProfile"]["type"] in ("RuntimeDefault", "Localhost")
    assert not {"sysctls", "seLinuxOptions", "appArmorProfile", "windowsOptions"} & context.keys()
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        assert restricted_container(container["securityContext"])
        assert not any("hostPort" in port for port in container.get("ports", ()))
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in pod.get("volumes", ()):
        assert volume.keys() - {"name"} <= allowed


@pytest.mark.parametrize("name", ["kuberay-cluster.yaml", "kuberay-job.yaml"])
def test_a_kuberay_file_brings_its_accounts_and_only_the_autoscaler_has_rights(name: str) -> None:
    from ray.autoscaler._private.kuberay import node_provider

    documents = list(yaml.safe_load_all((CLUSTER / name).read_text()))
    accounts = {each["metadata"]["name"]: each for each in documents if each["kind"] == "ServiceAccount"}
    assert accounts.keys() == {"learngene", "learngene-worker"}
    spec = kubernetes(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    autoscaler, head = cluster["autoscalerOptions"], cluster["headGroupSpec"]["template"]["spec"]
    assert restricted_container(autoscaler["securityContext"]), "of the container that is added"
    others = [cluster["workerGroupSpecs"][0]["template"]["spec"]]
    others += [spec["submitterPodTemplate"]["spec"]] if "submitterPodTemplate" in spec else []
    assert [pod["serviceAccountName"] for pod in (head, *others)] == ["learngene", *["learngene-worker"] * len(others)]
    for each in (*accounts.values(), head, *others):
        assert each["automountServiceAccountToken"] is False
    (mount,) = autoscaler["volumeMounts"]
    (volume,) = head["volumes"]
    assert mount["name"] == volume["name"] and mount["name"] not in str(head["containers"]), "drivers run there"
    sources = volume["projected"]["sources"]
    files = {sources[0]["serviceAccountToken"]["path"], sources[1]["configMap"]["items"][0]["path"]}
    needed = {node_provider.IN_CLUSTER_TOKEN_PATH, node_provider.IN_CLUSTER_CA_CERT_PATH}
    assert {f"{mount['mountPath']}/{file}" for file in files} == needed


def test_plain_ray_job_submit_has_the_same_environment_as_learngene_submit() -> None:
    plain = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())
    assert plain["env_vars"] == submit.ENVIRONMENT
    assert plain["working_dir"] == "." and "store" in plain["excludes"]


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.*")), ids=lambda path: path.name)
def test_every_file_and_command_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"\b(?:cluster|jobs|docs|tests)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(
        r"(?<![\w/])(?:store-policy|pull-policy|head-policy|kuberay-cluster|kuberay-job|aws)\.(?:json|yaml)", text
    ):
        assert (CLUSTER / name).exists(), name
    for command in re.findall(r"learngene ((?:submit )?[a-z]+)", text):
        assert all(word in COMMANDS for word in command.split()), command
