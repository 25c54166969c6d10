"""The server of a gateway."""

from __future__ import annotations

import socket
from importlib import import_module
from pathlib import Path

from ..errors import InputError
from ..recipe.loading import Recipe
from ..rundir.progress import say

HOST = "127.0.0.1"


def require_extra(ray: bool = False) -> None:
    """Refuse to begin without the packages of the extra.

    Args:
        ray: whether Ray Serve is needed too.

    Raises:
        InputError: one is missing.
    """
    extra = "gateway-ray" if ray else "gateway"
    needed = ["prometheus_client", "sqlalchemy", "starlette", "uvicorn"]
    needed += ["ray.serve", "mmh3"] if ray else []
    try:
        for name in needed:
            import_module(name)
    except ImportError as error:
        why = f"the gateway needs the extra '{extra}': pip install 'atlas-ray[{extra}]' ({error.name} is missing)"
        raise InputError(why) from None


def serve(recipe: Recipe, run_dir: Path, host: str = HOST, port: int = 8008, ray: bool = False) -> None:
    """Be a gateway until a signal ends it. Requests on their way then have three seconds.

    Args:
        recipe: one with a ``[gateway]`` table.
        run_dir: where its store lies.
        host: the address; another than this machine's own needs ``token_variable``.
        port: 0 takes a free one.
        ray: whether to be several, on Ray Serve.

    Raises:
        InputError: a field or an option cannot be used, or the extra is missing.
    """
    require_extra(ray)
    import uvicorn

    from .limits import PatientProtocol, is_loopback, tokens_of
    from .opening import open_gateway
    from .routes import build

    variable = recipe.gateway.token_variable if recipe.gateway else None
    tokens, near = tokens_of(variable), is_loopback(host)
    if not near and not tokens:
        raise InputError(
            f"{host} can be reached from elsewhere: name a variable with bearer tokens in gateway.token_variable",
            None, None, "--host",
        )  # fmt: skip

    def ready(port: int, more: str) -> None:
        assert recipe.gateway is not None
        names = ", ".join(model.model for model in recipe.gateway.models)
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        say(f"gateway on {where}: londi is {recipe.gateway.switch} over {names}; {more}")

    if ray:
        from .replicas import serve_on_ray

        serve_on_ray(recipe, run_dir, host, port, ready)
        return
    with listen(host, port) as sock, open_gateway(recipe, run_dir) as (answering, recorder):
        ready(sock.getsockname()[1], f"a session may spend: {answering.admission.limits}")
        config = uvicorn.Config(
            build(answering, recorder, tokens, [HOST, "localhost", "[::1]"] if near else []),
            http=PatientProtocol,
            ws="none",
            log_config=None,  # the default closes the handlers of everybody else in the process
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            lifespan="on",
            timeout_graceful_shutdown=3,
        )
        uvicorn.Server(config).run(sockets=[sock])


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 takes a free one.

    Raises:
        InputError: the port is taken, or there is no such address here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # without the last asyncio leaves Nagle on
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(1024)
    except (OSError, OverflowError) as error:
        sock.close()
        raise InputError(f"{host}:{port}: {error}", None, None, "--port") from None
    return sock
