"""Checks of ``atlas-ray doctor`` on Ray: its ports, its token, where it is and where it puts its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..cluster.address import host_of
from .facts import RAY_PORTS, Facts, is_loopback

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Line:
    """What a check says. ``remedy`` is empty where nothing has to be done."""

    name: str
    state: State
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.name}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def ports(facts: Facts) -> Line:
    """Ray's usual ports; only a head that is started by hand needs them."""
    if not facts.listening:
        return Line("ports", "ok", f"{', '.join(map(str, RAY_PORTS))} are free")
    found = ", ".join(f"{port} ({RAY_PORTS[port]})" for port in sorted(facts.listening))
    remedy = (
        "a Ray head runs here already; a second one needs other ports (`ray start --help`), `atlas-ray` alone does not"
    )
    return Line("ports", "warning", f"{found} taken", remedy)


def authentication(facts: Facts) -> Line:
    """Ray's token: who reaches a Ray without one runs what he likes on it."""
    name, mode = "token authentication", facts.environment.get("RAY_AUTH_MODE", "").lower()
    public = [f"{host}:{port}" for port, host in sorted(facts.listening.items()) if not is_loopback(host)]
    host, _ = host_of(facts.environment.get("RAY_ADDRESS", ""))
    if not is_loopback(host):
        public.append(facts.environment["RAY_ADDRESS"])
    if mode not in ("", "token", "disabled"):
        return Line(name, "error", f"RAY_AUTH_MODE={mode} is neither token nor disabled", "unset RAY_AUTH_MODE")
    # what `ray start` does with no mode set: on where there is a token, else off
    off = mode == "disabled" or (not mode and not facts.token)
    if off and public:
        remedy = (
            "`ray stop`, unset RAY_AUTH_MODE, `ray get-auth-token --generate`, start it again with RAY_AUTH_MODE=token"
        )
        return Line(name, "error", f"off, and Ray is open to others at {', '.join(public)}", remedy)
    if disagree := _disagree(facts, mode):
        return Line(name, "error" if facts.environment.get("RAY_ADDRESS") else "warning", *disagree)
    if mode == "disabled":
        return Line(name, "warning", "off: every user of this machine can run code as you", "unset RAY_AUTH_MODE")
    if mode == "token" and not facts.token and facts.environment.get("RAY_ADDRESS"):
        return Line(
            name,
            "error",
            "on, but there is no token for the cluster",
            "copy the head's ~/.ray/auth_token here, mode 600",
        )
    if facts.token_open:
        return Line(name, "warning", f"on, but others may read {facts.token_open}", f"chmod 600 {facts.token_open}")
    if not facts.token:
        return Line(
            name, "ok", "on in what atlas-ray starts; before `ray start` by hand: ray get-auth-token --generate"
        )
    return Line(name, "ok", "on")


def _disagree(facts: Facts, mode: str) -> tuple[str, str] | None:
    """What is found, and the remedy, where a head that takes jobs and its clients here want different things."""
    if facts.dashboard_says is None:
        return None
    without, with_token = facts.dashboard_says
    head, refused = f"the head at {facts.dashboard}", (401, 403)
    if without not in refused:
        if mode == "token":
            return f"on here, but {head} asks for no token", "start it again with RAY_AUTH_MODE=token"
        return None
    if not facts.token:
        return f"{head} wants a token, and there is none here", "copy its ~/.ray/auth_token here, mode 600"
    if with_token in refused:
        return f"the token here is not that of {head}", "copy its ~/.ray/auth_token here, mode 600"
    if mode != "token":
        is_set = f"RAY_AUTH_MODE={mode}" if mode else "RAY_AUTH_MODE is not set"
        return f"{head} wants a token, and `ray job` sends none: {is_set}", "export RAY_AUTH_MODE=token"
    return None


def address(facts: Facts) -> Line:
    """``RAY_ADDRESS``, which decides where everything runs."""
    given = facts.environment.get("RAY_ADDRESS")
    if given is None or given == "local":
        return Line("ray address", "ok", "not set, Ray is started on this machine")
    if given.startswith("http"):
        remedy = "that is for `ray job`; unset it for atlas-ray itself, or give HOST:6379"
        return Line("ray address", "warning", f"RAY_ADDRESS={given} is a dashboard's", remedy)
    if facts.address_trouble:
        found, _, remedy = facts.address_trouble.partition(": ")
        return Line("ray address", "error", f"RAY_ADDRESS={given}: {found}", remedy)
    return Line("ray address", "ok", f"runs go to RAY_ADDRESS={given}")


def folder(facts: Facts) -> Line:
    """Where Ray puts its files, and its sockets, whose paths must be short."""
    name = "ray folder"
    if facts.folder_trouble:
        remedy = "runs take another one; `ray start` needs RAY_TMPDIR=/tmp/ray-$USER, a short folder of your own"
        return Line(name, "warning", facts.folder_trouble, remedy)
    return Line(name, "ok", "Ray's files fit where it puts them")
