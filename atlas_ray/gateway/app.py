"""The server of a gateway."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from ..errors import InputError
from ..recipe.loading import Recipe
from ..rundir.progress import say

HOST = "127.0.0.1"
_EXTRA = "the gateway needs the extra 'gateway': pip install 'atlas-ray[gateway]'"


def require_extra() -> None:
    """Refuse to begin without the packages of the extra.

    Raises:
        InputError: one is missing.
    """
    try:
        import prometheus_client  # noqa: F401
        import sqlalchemy  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"{_EXTRA} ({error.name} is missing)") from None


def serve(recipe: Recipe, run_dir: Path, host: str = HOST, port: int = 8008) -> None:
    """Be a gateway until a signal ends it. Requests on their way then have three seconds.

    Args:
        recipe: one with a ``[gateway]`` table.
        run_dir: where its store lies.
        host: the address; another than this machine's own needs ``token_variable``.
        port: 0 takes a free one.

    Raises:
        InputError: a field or an option cannot be used, or the extra is missing.
    """
    require_extra()
    import uvicorn

    from .limits import PatientProtocol, tokens_of
    from .opening import open_gateway
    from .routes import build

    variable = recipe.gateway.token_variable if recipe.gateway else None
    tokens, near = tokens_of(variable), is_loopback(host)
    if not near and not tokens:
        raise InputError(
            f"{host} can be reached from elsewhere: name a variable with bearer tokens in gateway.token_variable",
            None, None, "--host",
        )  # fmt: skip
    with listen(host, port) as sock, open_gateway(recipe, run_dir) as (answering, recorder):
        assert recipe.gateway is not None
        names, limits = ", ".join(model.model for model in recipe.gateway.models), answering.admission.limits
        where = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/v1"
        say(f"gateway on {where}: londi is {recipe.gateway.switch} over {names}; a session may spend: {limits}")
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


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
