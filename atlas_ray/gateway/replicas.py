"""The gateway as deployments of Ray Serve: replicas that share a store, and each local model by itself.

``atlas-ray gateway ... --ray`` runs them until a signal, and ``serve run`` builds them by :func:`app`. A replica keeps
nothing that matters, so requests of a session may go to any of them. A local model has kept the beginnings of
conversations, so a session goes to the same replica of it as long as that lives. Needs the extra ``gateway-ray``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from .. import ray_private
from ..cluster import address
from ..cluster.workers import ensure_ray
from ..errors import InputError, WorkerFailedError
from ..recipe.gateway import GatewayModel
from ..recipe.loading import Recipe, load
from ..rundir.layout import RunLayout
from .app import HOST, listen
from .limits import is_loopback, tokens_of
from .local import Dialogue, Played
from .metrics import merged
from .opening import check_gateway, open_gateway, recipe_of_gateway
from .proxy import LAYERS, VARIABLE, require_layers
from .replies import ApiError
from .routes import build
from .store import Store
from .upstream import UpstreamError

APP, GATEWAY = "atlas-ray", "gateway"
"""Names of the application and of its deployment that answers HTTP."""
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_END_SECONDS = 10.0


class GatewayReplica:
    """One of the gateways.

    Args:
        recipe: with a ``[gateway]`` table.
        run_dir: where the store lies, unless the table names another.
        near: whether only this machine may ask.
        folder: in which relative paths of the recipe begin.
        models: the deployments of the local models, in their order.
    """

    def __init__(self, recipe: Recipe, run_dir: str, near: bool, folder: str, *models: DeploymentHandle) -> None:
        _enter(folder)
        check_nodes(recipe)
        self._recipe, self._run_dir, self._near = recipe, Path(run_dir), near
        self._models = iter(models)

    def __serve_build_asgi_app__(self) -> Starlette:
        """See ``ray.serve.ingress``."""
        assert self._recipe.gateway is not None
        tokens, opened = tokens_of(self._recipe.gateway.token_variable), ExitStack()
        made = open_gateway(self._recipe, self._run_dir, lambda _: RemotePlayer(next(self._models)))
        answering, recorder = opened.enter_context(made)
        self._metrics = answering.metrics
        hosts = [HOST, "localhost", "[::1]"] if self._near or not tokens else []
        app = build(answering, recorder, tokens, hosts, self._numbers)
        living = app.router.lifespan_context

        @asynccontextmanager
        async def until_closed(app: Starlette) -> AsyncIterator[None]:
            async with living(app):
                yield
            opened.close()

        app.router.lifespan_context = until_closed
        return app

    async def families(self) -> tuple[str, list[Any]]:
        """This replica's name and its numbers."""
        return serve.get_replica_context().replica_id.unique_id, self._metrics.families()

    async def _numbers(self) -> bytes:
        handle = serve.get_deployment_handle(GATEWAY, serve.get_replica_context().app_name)
        return merged(await handle.broadcast("families").results_async(timeout_s=10))


class ModelReplica:
    """A local model.

    Args:
        recipe: says how models act.
        number: of the model in the ``[gateway]`` table.
        folder: in which relative paths of the recipe begin.
    """

    def __init__(self, recipe: Recipe, number: int, folder: str) -> None:
        import torch

        from .player import Player

        _enter(folder)
        torch.set_num_threads(max(1, int(recipe.engine.cpus)))
        assert recipe.gateway is not None
        thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._player = Player(recipe, thread, recipe.gateway.models[number])

    async def play(self, name: str, dialogue: Dialogue) -> Played | UpstreamError:
        """See :class:`atlas_ray.gateway.local.Plays`."""
        return await self._player.play(name, dialogue)


class RemotePlayer:
    """A local model in a deployment of its own."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def play(self, name: str, dialogue: Dialogue) -> Played | UpstreamError:
        """See :class:`atlas_ray.gateway.local.Plays`."""
        sticky = self._handle.options(session_id=hashlib.sha256(name.encode()).hexdigest())
        try:
            return await sticky.play.remote(name, dialogue)
        except (ray.exceptions.RayError, RayServeException) as error:
            told = ApiError(502, f"the model's replica failed: {type(error).__name__}", "model_failed")
            return UpstreamError(told, retryable=True, free=True)

    async def close(self) -> None:
        """See :class:`atlas_ray.gateway.local.Plays`: Serve ends its deployment."""


def application(recipe: Recipe, run_dir: Path, near: bool) -> serve.Application:
    """The deployments of a gateway.

    Args:
        recipe: with a ``[gateway]`` table.
        run_dir: where the store lies, unless the table names another.
        near: whether only this machine may ask.
    """
    settings = recipe.gateway
    assert settings is not None
    folder, engine, scale = str(Path.cwd()), recipe.engine, settings.autoscaling
    models = [
        serve.deployment(ModelReplica)
        .options(
            name=f"model-{number}",
            num_replicas=max(1, engine.actors),
            max_ongoing_requests=2 * recipe.num_envs,
            ray_actor_options=_asks(engine.cpus, engine.gpus, recipe.placement.resource_request("engines")),
            request_router_config={"request_router_class": _ROUTER},
            graceful_shutdown_timeout_s=engine.timeout,
            logging_config=_LOGGING,
        )
        .bind(recipe, number, folder)
        for number, model in enumerate(settings.models)
        if not model.base_url
    ]
    gateway = serve.deployment(serve.ingress()(GatewayReplica)).options(
        name=GATEWAY,
        max_ongoing_requests=8 * scale.target_ongoing_requests,
        autoscaling_config=scale.model_dump(exclude={"num_cpus"}),
        ray_actor_options=_asks(scale.num_cpus, 0, recipe.placement.resource_request("workers")),
        # a replica that is scaled away answers what it has begun
        graceful_shutdown_timeout_s=max(_longest(model) for model in settings.models),
        logging_config=_LOGGING,
    )
    return gateway.bind(recipe, str(run_dir.absolute()), near, folder, *models)


def app(arguments: dict[str, str]) -> serve.Application:
    """The application of a Serve config, with ``import_path: atlas_ray.gateway.replicas:app``.

    Args:
        arguments: ``recipe``, a TOML file with a ``[gateway]`` table, or ``run`` and perhaps ``policy``; ``out``, where
            sessions are kept (default: the run, or ``runs/NAME``); ``version``, another one where the recipe has
            changed: Serve comes here again only when something in its config has.

    Raises:
        InputError: as at the start of ``atlas-ray gateway``; or Serve's proxies were not started with our limits.
    """
    if unknown := arguments.keys() - {"recipe", "run", "policy", "out", "version"}:
        raise InputError(f"is no argument: {min(unknown)}", field="args")
    if ("recipe" in arguments) == ("run" in arguments):
        raise InputError("needs either a recipe or a run", field="args")
    if "run" in arguments:
        run_dir = Path(arguments["run"])
        recipe = recipe_of_gateway(run_dir, arguments.get("policy"))
    else:
        recipe = load(arguments["recipe"])
        run_dir = Path("runs") / recipe.name
    require_layers()
    check_gateway(recipe)
    check_nodes(recipe)
    return application(recipe, Path(arguments.get("out", run_dir)), near=False)


def check_nodes(recipe: Recipe) -> None:
    """Refuse a store in a file for replicas on several machines.

    Raises:
        InputError: says what to set.
    """
    nodes = sum(node["Alive"] for node in ray.nodes())
    if recipe.gateway is not None and recipe.gateway.store is None and nodes > 1:
        why = f"a file is for replicas on one machine, and this cluster has {nodes}: name a postgresql://HOST/NAME"
        raise InputError(why, field="gateway.store")


@contextmanager
def deployed(recipe: Recipe, run_dir: Path, host: str, port: int) -> Iterator[None]:
    """A gateway on Ray Serve as long as the block lasts.

    Args:
        recipe: with a ``[gateway]`` table.
        run_dir: where the store lies, unless the table names another.
        host: the address of Serve's proxies.
        port: theirs.

    Raises:
        InputError: Serve runs already, or a field cannot be used.
        WorkerFailedError: a deployment could not begin.
    """
    if ray_private.serve_runs():
        raise InputError(
            "Ray Serve runs there already: put the gateway into its config (clusters/gateway-serve.yaml)", field="--ray"
        )
    check_nodes(recipe)
    near = is_loopback(host)
    where = "HeadOnly" if near else "EveryNode"
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location=where, http_options={"host": host, "port": port}, logging_config=_LOGGING)
    try:
        try:
            serve.run(application(recipe, run_dir, near), name=APP, route_prefix="/")
        except RuntimeError as error:
            raise WorkerFailedError(f"the gateway could not be deployed: {_reason() or error}") from error
        yield
    finally:
        # one that answers still does not hold up whoever ends it; its sessions are kept
        ending = threading.Thread(target=serve.shutdown, daemon=True)
        ending.start()
        ending.join(_END_SECONDS)


def serve_on_ray(recipe: Recipe, run_dir: Path, host: str, port: int, ready: Callable[[int, str], None]) -> None:
    """Be a gateway on Ray Serve until a signal ends it, on the cluster of ``RAY_ADDRESS``, else on this machine.

    Args:
        recipe: with a ``[gateway]`` table.
        run_dir: where the store lies, unless the table names another.
        host: the address.
        port: 0 takes a free one.
        ready: told the port, and how many replicas answer there.

    Raises:
        InputError: a field or an option cannot be used.
        WorkerFailedError: a deployment could not begin.
    """
    assert recipe.gateway is not None
    tokens_of(recipe.gateway.token_variable)
    with listen(host, port) as sock:  # whether it can be had
        port = sock.getsockname()[1]
    if address.address() is None:
        Store(recipe.gateway.store or RunLayout(run_dir).gateway_store).close()
    os.environ[VARIABLE] = LAYERS
    ensure_ray(_cpus(recipe), {VARIABLE: LAYERS})
    try:
        with deployed(recipe, run_dir, host, port):
            scale = recipe.gateway.autoscaling
            ready(port, f"{scale.min_replicas} to {scale.max_replicas} replicas")
            threading.Event().wait()
    finally:
        ray.shutdown()


def _cpus(recipe: Recipe) -> int:
    """CPUs that all replicas need at least, and one for Serve itself."""
    assert recipe.gateway is not None
    local = sum(not model.base_url for model in recipe.gateway.models)
    scale = recipe.gateway.autoscaling
    return int(scale.max_replicas * scale.num_cpus + local * max(1, recipe.engine.actors) * recipe.engine.cpus) + 1


def _asks(cpus: float, gpus: float, group: dict[str, float]) -> dict[str, Any]:
    return {"num_cpus": cpus, "num_gpus": gpus, "resources": group}


def _longest(model: GatewayModel) -> float:
    return model.timeout * (model.retries + 1)


def _enter(folder: str) -> None:
    if Path(folder).is_dir():
        os.chdir(folder)


def _reason() -> str:
    """The last line of what Serve says of a deployment that could not begin."""
    for found in serve.status().applications.values():
        for deployment in found.deployments.values():
            if deployment.message.strip():
                return deployment.message.strip().splitlines()[-1]
    return ""
