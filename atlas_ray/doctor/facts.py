"""What :mod:`atlas_ray.doctor.checks` judges: this machine, as it can be seen without starting anything large."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import envs
from ..cluster import address as cluster
from ..cluster import container
from ..cluster.container import cgroup_cpu_quota, memory_limit, read_number, visible_cpus
from ..errors import AtlasError
from .packages import COMPANIONS, PACKAGE, Packages, look

RAY_PORTS = {6379: "GCS", 8265: "dashboard", 10001: "Ray client"}

_ANSWER, _REPLY = 20.0, 3.0  # seconds
_ALL_GPUS = 120.0  # seconds until each has said something to all others
_SUM = """
import torch
from torch.cuda import nccl
ones = [torch.ones(1 << 20, device=f"cuda:{i}") for i in range(torch.cuda.device_count())]
sums = [torch.zeros_like(each) for each in ones]
nccl.all_reduce(ones, sums)
wrong = [i for i, each in enumerate(sums) if float(each.min()) != len(ones) or float(each.max()) != len(ones)]
assert not wrong, f"the sum is wrong on GPU {wrong}"
print(*nccl.version(), sep=".")
"""


@dataclass(frozen=True)
class Facts:
    """What was found. Sizes are in bytes; None stands for what cannot be told here.

    Attributes:
        python: version.
        python_needed: what the package's metadata says.
        packages: what is installed, and whether it goes together.
        torch_cuda: CUDA version of torch's build; None: a build for the CPU.
        broken: error of each package of :data:`COMPANIONS` that is installed and cannot be imported.
        java: version; None: there is none.
        gpus: names of NVIDIA's GPUs.
        gpu_trouble: what nvidia-smi, or torch of a CUDA build beside GPUs, complains about.
        driver_cuda: newest CUDA version that the driver serves; None where it does not say.
        nccl, nccl_trouble: version of the NCCL with which torch summed over all GPUs, and why it could not; both empty
            with fewer than two.
        cpus, cpu_quota: that the kernel shows, and that a container may use.
        memory, memory_limit: free now, and of the container.
        shm: free in ``/dev/shm``.
        disks: free bytes and share of each place that is written to; None where it cannot be written to.
        files: most open files that this process may ask for.
        listening: hosts at which Ray's usual ports are taken.
        environment: variables that Ray reads.
        token, token_open: a token for Ray is there, and who else may read its file.
        address_trouble: why a run cannot go to ``RAY_ADDRESS``; empty where it can.
        dashboard, dashboard_says: of a Ray that takes jobs, and the HTTP status with which it answers without a token
            and with this machine's.
        folder_trouble: why Ray cannot put its files where it would by itself; empty where it can.
        cache, cache_writable: where models of the hub go.
        families, missing: environments that can run here, and why others cannot.
    """

    python: str
    python_needed: str
    packages: Packages
    torch_cuda: str | None
    broken: dict[str, str]
    java: str | None
    gpus: list[str]
    gpu_trouble: str
    driver_cuda: str | None
    nccl: str
    nccl_trouble: str
    cpus: int
    cpu_quota: float | None
    memory: int | None
    memory_limit: int | None
    shm: int | None
    disks: dict[str, tuple[int, float] | None]
    files: int
    listening: dict[int, str]
    environment: dict[str, str] = field(repr=False)
    token: bool
    token_open: str | None
    address_trouble: str
    dashboard: str | None
    dashboard_says: tuple[int, int] | None
    folder_trouble: str
    cache: str
    cache_writable: bool
    families: dict[str, int]
    missing: dict[str, str]


def gather() -> Facts:
    """Look at this machine.

    Raises:
        AtlasError: the package was not installed, so it has no metadata.
    """
    try:
        packages = look()
    except importlib.metadata.PackageNotFoundError:
        raise AtlasError("the package is used without being installed: pip install -e .") from None
    needed = str(importlib.metadata.metadata(PACKAGE)["Requires-Python"])
    gpus, trouble = _gpus()
    cuda = _torch_cuda()
    if gpus and cuda and not trouble:
        trouble = _imports("torch; torch.zeros(1, device='cuda')")
    nccl, nccl_trouble = _nccl() if len(gpus) > 1 and cuda and not trouble else ("", "")
    used = {name: os.environ[name] for name in ("RAY_ADDRESS", "RAY_AUTH_MODE") if os.environ.get(name)}
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    listening = _listening()
    dashboard = _dashboard(os.environ, listening)
    families: dict[str, int] = {}
    for name in envs.ids():
        family = name.partition("/")[0]
        families[family] = families.get(family, 0) + 1
    return Facts(
        python=platform.python_version(),
        python_needed=needed,
        packages=packages,
        torch_cuda=cuda,
        broken={name: why for name in COMPANIONS if name in packages.versions and (why := _imports(name))},
        java=java_version(),
        gpus=gpus,
        gpu_trouble=trouble,
        driver_cuda=_driver_cuda() if gpus else None,
        nccl=nccl,
        nccl_trouble=nccl_trouble,
        cpus=visible_cpus(),
        cpu_quota=cgroup_cpu_quota(),
        memory=_memory(),
        memory_limit=memory_limit(),
        shm=shutil.disk_usage("/dev/shm").free if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108
        disks={str(place): _disk(place) for place in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir())))},
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        listening=listening,
        environment=used,
        token=bool(os.environ.get("RAY_AUTH_TOKEN")) or token_file.is_file(),
        token_open=str(token_file) if _open_to_others(token_file) else None,
        address_trouble=cluster.trouble(given) if (given := cluster.address()) else "",
        dashboard=dashboard,
        dashboard_says=_says(dashboard, _token(token_file)) if dashboard else None,
        folder_trouble=cluster.folder_trouble(cluster.usual_folder()),
        cache=str(cache),
        cache_writable=_writable(cache),
        families=families,
        missing=envs.missing(),
    )


def _torch_cuda() -> str | None:
    """Read, not imported: that would take seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return found.group(1) if found else None


def _run(*command: str, patience: float = _ANSWER) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)  # noqa: S603
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {patience:g} seconds"
    except OSError as error:
        return 1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip()


def _imports(module: str) -> str:
    """The last line of the error with which ``import module`` ends in a process of its own; empty when it works."""
    code, said = _run(sys.executable, "-c", f"import {module}")
    return said.splitlines()[-1] if code and said else "it ended without a word" if code else ""


def java_version() -> str | None:
    """Version of the Java on the PATH, from the file beside it where there is one: no JVM is started."""
    found = shutil.which("java")
    if found is None:
        return None
    release = Path(found).resolve().parent.parent / "release"
    if release.is_file() and (match := re.search(r'JAVA_VERSION="([^"]+)"', release.read_text(encoding="utf-8"))):
        return match.group(1)
    told = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)  # noqa: S603
    match = re.search(r'version "([^"]+)"', told.stderr)
    return match.group(1) if match else None


def _gpus() -> tuple[list[str], str]:
    if shutil.which("nvidia-smi") is None:
        return [], ""
    code, said = _run("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if code:
        return [], f"nvidia-smi: {said.splitlines()[0] if said else 'no answer'}"
    return [line.strip() for line in said.splitlines()], ""


def _driver_cuda() -> str | None:
    """From the head of nvidia-smi's own table: no query gives it."""
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*([\d.]+)", _run("nvidia-smi")[1])
    return found.group(1) if found else None


def _nccl() -> tuple[str, str]:
    """Let torch sum over all GPUs: the version of NCCL, and why it could not."""
    code, said = _run(sys.executable, "-c", _SUM, patience=_ALL_GPUS)
    last = said.splitlines()[-1] if said else "it ended without a word"
    return ("", last) if code else (last, "")


def _memory() -> int | None:
    """Free, within the limit of a container too; what the kernel only caches counts as free."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    free = int(re.findall(r"MemAvailable:\s+(\d+)", text)[0]) * 1024
    limit = memory_limit()
    used = read_number("memory.current", "memory/memory.usage_in_bytes")
    if limit is None or used is None:
        return free
    stats = (container.CGROUP_ROOT / name for name in ("memory.stat", "memory/memory.stat"))
    stat = next((path for path in stats if path.is_file()), None)
    text = stat.read_text(encoding="ascii") if stat else ""
    cached = re.findall(r"^(?:total_)?inactive_file (\d+)", text, re.MULTILINE) or ["0"]
    return max(0, min(free, limit - used + int(cached[-1])))


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())


def _writable(path: Path) -> bool:
    return os.access(_existing(path), os.W_OK | os.X_OK)


def _disk(path: Path) -> tuple[int, float] | None:
    try:  # (a quota, or too many files, show only so)
        with tempfile.TemporaryFile(dir=_existing(path)) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError:
        return None
    usage = shutil.disk_usage(_existing(path))
    return usage.free, usage.free / usage.total


def _listening() -> dict[int, str]:
    """Where Ray's usual ports are listened to, the most public host of each."""
    found: dict[int, str] = {}
    for path, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        if not os.path.exists(path):
            continue
        for line in Path(path).read_text(encoding="ascii").splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            host, port = local.rsplit(":", 1)
            if state == "0A" and int(port, 16) in RAY_PORTS:
                words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]  # little-endian words
                name = socket.inet_ntop(family, b"".join(words))
                if is_loopback(found.get(int(port, 16), "127.0.0.1")):
                    found[int(port, 16)] = name
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    return host in ("localhost", "::1", "local", "auto", "") or host.removeprefix("::ffff:").startswith("127.")


def _dashboard(environment: Mapping[str, str], listening: dict[int, str]) -> str | None:
    """Where `ray job` would send a job: the address in the environment, else a head on this machine."""
    given = environment.get("RAY_API_SERVER_ADDRESS") or environment.get("RAY_ADDRESS", "")
    if given.startswith(("http://", "https://")):
        return given.rstrip("/")
    return "http://127.0.0.1:8265" if 8265 in listening else None


def _token(path: Path) -> str:
    try:
        return os.environ.get("RAY_AUTH_TOKEN") or path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _says(dashboard: str, token: str) -> tuple[int, int] | None:
    """HTTP status without a token and with it; None where no dashboard answers."""
    import httpx

    found = []
    try:
        # (proxies know nothing of this machine)
        elsewhere = not is_loopback(httpx.URL(dashboard).host)
        known = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or None)
        with httpx.Client(verify=known, trust_env=elsewhere, timeout=_REPLY) as client:
            for headers in ({}, {"Authorization": f"Bearer {token}".strip()}):
                found.append(client.get(f"{dashboard}/api/version", headers=headers).status_code)
    except (OSError, httpx.HTTPError, httpx.InvalidURL, ImportError, ValueError):
        return None
    return found[0], found[1]


def _open_to_others(path: Path) -> bool:
    """Whether other users of this machine can get at the file."""
    try:
        return bool(path.stat().st_mode & 0o044) and all(folder.stat().st_mode & 0o011 for folder in path.parents)
    except OSError:
        return False
