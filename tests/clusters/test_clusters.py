"""Files of Ray's cluster launcher, and the image: valid, safe and large enough, without a cloud."""

import json
import re
import subprocess
import tomllib

import pytest
import yaml
from cluster_files import CLUSTERS, FLAGS, LAUNCHER, MANIFESTS, ROOT, changed, filled, module, path_of

from atlas_ray.recipe.loading import load

check, node = module("check"), module("node")
GROUPS = {"workers": "environments", "engines": "engines", "trainers": "trainers"}
SHIPPED = ("llama-8b", "oracle-vllm", "demo")


def document(name):
    (only,) = yaml.safe_load_all(path_of(name).read_text())
    return only


def placed(name):
    return load(name, {f"placement.{who}": group for who, group in GROUPS.items()})


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_takes_its_file(name):
    """By Ray's own JSON schema and its validate_config, and by our rules."""
    assert check.invalid(document(name)) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("max_worker", 3, "max_worker"),
        ("provider", None, "provider"),
        ("head_node_type", "haed", "head_node_type` must be one of"),
        ("available_node_types engines min_worker", 3, "min_worker"),
        ("available_node_types engines min_workers", 30, "smaller than the sum of `min_workers`"),
        ("docker run_option", [], "run_option"),
        ("auth ssh_usr", "ubuntu", "ssh_usr"),
        ("provider use_internal_ips", False, "public addresses"),
        ("file_mounts", {}, "the token does not reach the machines"),
        ("docker run_options 1", "--env RAY_AUTH_MODE=disabled", "jobs would not know of the token"),
        (
            "head_start_ray_commands 1",
            "ray start --head --num-cpus=0 --dashboard-host=127.0.0.1",
            "without RAY_AUTH_MODE",
        ),
        ("head_start_ray_commands 1", "RAY_AUTH_MODE=token ray start --head --num-cpus=0", "say --dashboard-host"),
        (
            "head_start_ray_commands 1",
            "RAY_AUTH_MODE=token ray start --head --num-cpus=0 --dashboard-host=0.0.0.0",
            "listens to others",
        ),
        (
            "head_start_ray_commands 1",
            "RAY_AUTH_MODE=token ray start --head --dashboard-host=127.0.0.1",
            "the head works too",
        ),
        ("worker_start_ray_commands 1", "RAY_AUTH_MODE=disabled ray start --address=$RAY_HEAD_IP:6379", "worker_start"),
    ],
)
@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_a_mistake_in_a_launcher_file_is_found(name, path, value, told):
    assert any(told in line for line in check.invalid(changed(document(name), path, value)))


@pytest.mark.parametrize("name", LAUNCHER)
def test_secrets_are_not_in_a_launcher_file(name):
    text = re.sub(r"#.*", "", path_of(name).read_text())
    assert not re.search(r"(KEY|TOKEN|PASSWORD|SECRET)\w*=(?![\"$])", text)
    starts = document(name)["head_start_ray_commands"] + document(name)["worker_start_ray_commands"]
    fetched = [command for command in starts if "cluster-node secrets" in command]
    assert len(fetched) == (0 if name == "onprem" else 2)
    for command in fetched:
        assert re.match(
            r'secrets="\$\(cluster-node secrets \w+ .*\)" && eval "\$secrets" && RAY_AUTH_MODE=token ray', command
        )


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_only_environments_are_on_machines_that_may_go(name):
    kinds = document(name)["available_node_types"]
    spot = [kind for kind, about in kinds.items() if "spot" in json.dumps(about["node_config"]).lower()]
    assert spot == ["environments"]
    assert kinds["head"]["max_workers"] == 0 and kinds["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("name", [*LAUNCHER, *MANIFESTS])
def test_a_file_says_what_is_to_be_filled_in(name, tmp_path, capsys):
    assert check.main([str(path_of(name))]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told and all("CHANGE-ME" in line and re.search(r"yaml: line \d+: ", line) for line in told)
    assert check.main([str(filled(name, tmp_path))]) == 0


@pytest.mark.parametrize("name", [*LAUNCHER, "raycluster", "rayjob"])
def test_groups_are_named_as_the_recipes_place_their_actors(name):
    there = check.nodes(document(name))
    assert {group for one in there for group in one.names} == set(GROUPS.values())
    assert all(one.names == {one.group} for one in there)
    assert {one.group for one in there if one.gpus} == {"engines", "trainers"}


@pytest.mark.parametrize("shipped", SHIPPED)
@pytest.mark.parametrize("name", [*LAUNCHER, "raycluster", "rayjob"])
def test_the_shipped_recipes_find_room(name, shipped):
    there = check.nodes(document(name))
    assert check.lacks(placed(shipped), there) == []
    assert check.lacks(load(shipped), there) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("engines resources GPU", 2, "engines ask for 8 CPUs and 4 GPUs each, 0 find a place among the engines"),
        ("engines max_workers", 0, "select, oracle: 1 engines"),
        ("trainers resources GPU", 3, "finetune, models: 4 trainers ask for 1 CPUs and 1 GPUs each, 3 find a place"),
        ("environments max_workers", 0, "collect, experts: 8 workers ask for 1 CPUs each, 0 find a place"),
        ("environments resources", {"CPU": 16}, "collect, experts: 8 workers ask for 1 CPUs each, 0 find a place"),
    ],
)
def test_a_cluster_that_is_too_small_is_found(path, value, told):
    small = changed(document("aws"), f"available_node_types {path}", value)
    assert any(told in line for line in check.lacks(placed("llama-8b"), check.nodes(small)))


def test_a_model_on_four_gpus_needs_them_in_one_machine():
    halves = [check.Node("engines", 64, 2, {"engines"}) for _ in range(4)]
    rest = [check.Node(group, 64, 8, {group}) for group in ("environments", "trainers")]
    lines = check.lacks(placed("oracle-vllm"), halves + rest)
    assert lines == ["select, oracle: 2 engines ask for 4 CPUs and 4 GPUs each, 0 find a place among the engines"]


def test_the_check_takes_overrides_and_tells_of_wrong_ones(tmp_path, capsys):
    there = str(filled("aws", tmp_path))
    assert check.main([there, "llama-8b", *FLAGS, "--workers", "64", "--out", "/x"]) == 0
    assert check.main([there, "llama-8b", *FLAGS, "--workers=65"]) == 2
    assert "65 workers ask for 1 CPUs each, 64 find a place" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        check.main([there, "llama-8b", "--wrokers", "3"])
    assert stopped.value.code == 2 and "did you mean 'workers'" in capsys.readouterr().err


def test_a_job_is_checked_for_its_own_recipe(tmp_path, capsys):
    job = filled("rayjob", tmp_path)
    job.write_text(job.read_text().replace("run llama-8b", "run llama-8b --engine.gpus 16.0"))
    assert check.main([str(job)]) == 2
    assert "1 engines ask for 8 CPUs and 16 GPUs each" in capsys.readouterr().err


def test_the_machines_at_hand_are_those_of_the_launcher_file():
    known = node.machines((CLUSTERS / "onprem-machines.txt").read_text().splitlines())
    assert list(known) == document("onprem")["provider"]["worker_ips"]
    assert document("onprem")["provider"]["head_ip"] not in known
    options = node.start_options(known, ["172.17.0.1", "10.0.0.22"])
    assert options == '--num-cpus=32 --num-gpus=8 --resources={"trainers":1}'
    with pytest.raises(SystemExit, match="none of this machine's addresses"):
        node.start_options(known, ["172.17.0.1"])


@pytest.mark.parametrize("line", ["10.0.0.1 engines 32", "10.0.0.1 engines many 8", "10.0.0.9 engines 1 1"])
def test_a_line_about_a_machine_that_cannot_be_read_is_named(line):
    with pytest.raises(SystemExit, match="line 3: must be"):
        node.machines(["# machines", "10.0.0.9 engines 1 1", line])


def test_an_address_that_no_line_is_about_is_named():
    config = changed(document("onprem"), "provider worker_ips", ["10.0.0.99"])
    with pytest.raises(check.InputError, match=r"does not say what 10\.0\.0\.99 is"):
        check.nodes(config)


# the image


def dockerfile():
    """Instructions, with lines joined."""
    text = re.sub(r"\\\n", " ", (CLUSTERS / "Dockerfile").read_text())
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_image_has_the_versions_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w-]+)(?:\[.*?\])?==([\w.]+)$", "\n".join(project["dependencies"]), re.M))
    installs = [line for line in dockerfile() if "pip install" in line]
    assert f"torch=={pins['torch']}" in installs[0] and "torch" not in " ".join(installs[1:])
    assert f"ray[default]=={pins['ray']}" in installs[1]
    assert all("-c source/constraints.txt" in line for line in installs)
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", "\n".join(dockerfile()), re.M)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (base,) = re.findall(r"^FROM python:(\d+\.\d+)-", "\n".join(dockerfile()), re.M)
    assert base == "3.11"
    for name in ("raycluster", "rayjob"):
        spec = document(name)["spec"]
        assert spec.get("rayClusterSpec", spec)["rayVersion"] == pins["ray"]
    images = {
        image
        for name in (*LAUNCHER, "raycluster", "rayjob")
        for image in re.findall(r"\S+/atlas-ray:(\d\S+)", path_of(name).read_text())
    }
    assert images == {project["version"]}


def test_the_image_runs_as_a_user_and_holds_no_secret():
    lines = dockerfile()
    assert [line for line in lines if line.startswith("USER ")] == ["USER ray"]
    assert "useradd --create-home --uid ${UID}" in " ".join(lines)
    assert not [line for line in lines if line.startswith("ADD ")]
    assert not [line for line in lines if re.search(r"https?://", line)]
    given = " ".join(line for line in lines if line.startswith(("ARG ", "ENV ")))
    assert not re.search(r"\w*(KEY|TOKEN|PASSWORD|SECRET)\w*=", given)
    assert "RAY_AUTH_MODE=token" in given


def test_the_image_is_made_of_files_that_are_there():
    kept = {
        line[1:] for line in (CLUSTERS / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {
        word
        for line in dockerfile()
        if line.startswith("COPY")
        for word in line.split()[1:-1]
        if not word.startswith("--")
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


# what a machine asks when Ray starts on it


def shell(lines):
    return subprocess.run(
        ["bash", "-euc", 'eval "$1"; printenv HF_TOKEN', "-", lines], capture_output=True, text=True, check=True
    )


def test_a_secret_becomes_environment_whatever_is_in_it():
    value = "a'b\"c $HOME `id` \\ d"
    assert shell(node.exports(json.dumps({"HF_TOKEN": value}))).stdout == f"{value}\n"


@pytest.mark.parametrize("secret", ["hunter2", '["hunter2"]', '{"A": 1, "B": "hunter2"}', '{"a; hunter2": "x"}'])
def test_a_secret_of_another_form_is_refused_and_not_shown(secret):
    with pytest.raises(SystemExit) as stopped:
        node.exports(secret)
    assert "the secret" in str(stopped.value) and "hunter2" not in str(stopped.value)
