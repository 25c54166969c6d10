"""Verifiers turned round: it asks a model for every turn, and here the model is whoever steps the environment.

An endpoint of chat completions on 127.0.0.1, in a thread with verifiers' own event loop, keeps each request until there
is an action. Written after ``verifiers`` 0.4.0 (Apache-2.0). Needs the extra `verifiers`.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import secrets
import sys
import threading
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import verifiers.v1 as vf
from aiohttp import web
from verifiers.v1.configs.agent import agent_config_fields

from . import verifiers_chat
from .core import EnvironmentDiedError
from .verifiers import outcome

LARGEST_REQUEST = 4 * 2**20
"""Bytes of a conversation; a longer one loses the episode."""
_HARNESS = "atlas_ray_chat"
_HEADER = "X-Atlas-Ray"
_END = 10.0


class Game:
    """One verifiers environment and the episode that is played in it.

    Args:
        package: its id.
        taskset: settings of its taskset.
        timeout: seconds that its next word may take.

    Raises:
        ValueError: the package is not installed, is no taskset, refuses a setting, or needs what cannot be given:
            tools, a container, several agents.
    """

    def __init__(self, package: str, taskset: Mapping[str, Any], timeout: float) -> None:
        sys.modules[_HARNESS] = verifiers_chat  # verifiers finds a harness by the name of a module
        self._timeout = timeout
        try:
            kind = vf.env_config_type(package)
            self.role = _role(package, kind)
            agent = {"harness": {"id": _HARNESS}, "runtime": {"type": "subprocess"}}
            config = kind.model_validate({"taskset": {"id": package, **taskset}, self.role: agent})
            self._env = vf.load_environment(config)
            _check(package, self._env)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"verifiers:{package}: {error}") from None
        self.unending = not self._env.taskset.bounded
        self._tasks: list[Any] = []
        self._left = iter(self._env.taskset)
        self._words: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._token = ""
        self._answer: asyncio.Future[str] | None = None
        self._playing: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        self._port = self._next("port")

    def tasks(self, most: int) -> int:
        """How many tasks there are, counted no further than ``most``."""
        self._tasks += itertools.islice(self._left, max(most - len(self._tasks), 0))
        return len(self._tasks)

    def begin(self, number: int) -> list[dict[str, Any]]:
        """Start the episode of a task; the conversation that the player is shown first.

        Raises:
            EnvironmentDiedError: it does not begin.
        """
        self.tasks(number + 1)
        self._submit(self._start(self._tasks[number]))
        return self._next("asked")

    def act(self, action: str) -> list[dict[str, Any]] | Any:
        """Answer the player's turn: the conversation then, or the finished trace.

        Raises:
            EnvironmentDiedError: the episode is lost.
        """
        self._submit(self._reply(action))
        return self._next("asked", "trace")

    def close(self) -> None:
        """End the episode, the endpoint and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_END)
        if not self._thread.is_alive():
            self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_END)

    def _next(self, *kinds: str) -> Any:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                kind, said = self._words.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise EnvironmentDiedError(f"verifiers says nothing for {self._timeout:g} seconds") from None
            if kind in kinds:
                return said
            if kind == "lost" or (kind == "trace" and "trace" not in kinds):
                raise EnvironmentDiedError(f"verifiers: {said if kind == 'lost' else 'an episode without a turn'}")

    # ---- in the thread ----------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        app = web.Application(client_max_size=LARGEST_REQUEST)
        app.router.add_post("/v1/chat/completions", self._asked)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        try:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            async with self._env.serving():
                self._words.put(("port", runner.addresses[0][1]))
                await self._stop.wait()
                await self._abandon()
        except Exception as error:  # whatever keeps a package from serving is told to who waits
            self._words.put(("lost", f"{type(error).__name__}: {error}"))
        finally:
            await runner.cleanup()

    async def _abandon(self) -> None:
        """End what is played, without an outcome."""
        if self._answer is not None:
            self._answer.cancel()
        if self._playing is not None:
            self._playing.cancel()
            await asyncio.gather(self._playing, return_exceptions=True)
        self._playing = self._answer = None
        while not self._words.empty():
            self._words.get_nowait()

    async def _start(self, task: Any) -> None:
        await self._abandon()
        self._token = secrets.token_hex(16)  # a late request of the episode before is nobody's turn
        self._playing = asyncio.get_running_loop().create_task(self._play(task))

    async def _play(self, task: Any) -> None:
        client = vf.EvalClientConfig(
            base_url=f"http://127.0.0.1:{self._port}/v1", api_key_var="ATLAS_RAY_NO_KEY", headers={_HEADER: self._token}
        )
        try:
            episode = await self._env.run_episode(task, vf.ModelContext(model="atlas-ray", client=client))
            self._words.put(outcome(episode, self.role))
        except Exception as error:  # the code of a package may raise anything
            self._words.put(("lost", f"{type(error).__name__}: {error}"))

    async def _asked(self, request: web.Request) -> web.Response:
        if not self._token or request.headers.get(_HEADER) != self._token:
            return web.json_response({"error": {"message": "not for you"}}, status=401)
        body = await request.json()
        if self._answer is not None:
            return web.json_response({"error": {"message": "one turn at a time"}}, status=400)
        self._answer = answer = asyncio.get_running_loop().create_future()
        self._words.put(("asked", body["messages"]))
        try:
            text = await answer
        finally:
            if self._answer is answer:
                self._answer = None
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        made = {
            "id": secrets.token_hex(8),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": "atlas-ray",
        }
        return web.json_response({**made, "choices": [choice], "usage": usage})

    async def _reply(self, action: str) -> None:
        if self._answer is None or self._answer.done():
            self._words.put(("lost", "no turn waits for an action"))
        else:
            self._answer.set_result(action)


def _role(package: str, kind: type[Any]) -> str:
    """The agent that is not another model's."""
    roles = {name: agent for name, agent in agent_config_fields(kind.model_construct()).items()}
    free = [name for name, agent in roles.items() if agent.model is None]
    if len(free) != 1:
        raise ValueError(f"it has {len(free)} agents to be played ({', '.join(free) or 'none'}), and one can be")
    return free[0]


def _check(package: str, env: Any) -> None:
    taskset, kind = env.taskset, type(env.taskset).task_type()
    if type(taskset).toolsets(taskset.config) or kind.toolsets(taskset.config.task):
        raise ValueError("it hands its agent tools, which cannot be played")
    if kind.NEEDS_CONTAINER:
        raise ValueError("its tasks need a container")
