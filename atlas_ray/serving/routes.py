"""The routes of the server; see docs/serving.md. Needs the extra `serve`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from pydantic import BaseModel

from .. import __version__
from .batching import RequestBatcher
from .bodies import ActBody, BadBody, BodyLimits, M, NewEpisode, read
from .messages import ActRequest, Refused
from .sessions import SessionManager


class Json(Response):
    """JSON in ASCII: what a model wrote may hold what UTF-8 cannot."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of a value."""
        return json.dumps(content, allow_nan=False).encode()


def build(sessions: SessionManager, batcher: RequestBatcher, hosts: list[str]) -> FastAPI:
    """The application. ``hosts``: by which names it may be asked."""
    app = FastAPI(title="atlas-ray", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimits)
    # a page in a browser may lead its own name here
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        if isinstance(error, BadBody):
            return Json({"detail": error.problems}, error.status)
        if error.where:
            problem = {"type": "value_error", "loc": ["body", *error.where], "msg": error.message}
            return Json({"detail": [problem]}, error.status)
        return Json({"detail": error.message}, error.status)

    app.add_exception_handler(Refused, refused)

    async def about() -> Response:
        return Json(
            {
                "policy": sessions.name,
                "models": sessions.models,
                "budget": sessions.budget,
                "max_sessions": sessions.max_sessions,
                "places": sessions.max_sessions,  # its name in version 0.1
            }
        )

    async def begin(request: Request) -> Response:
        body = await _body(request, NewEpisode)
        key = await batcher.call(sessions.open, body.instruction, body.max_steps)
        return Json({"id": key, "max_steps": body.max_steps, "calls_left": sessions.calls}, 201)

    async def act(key: str, request: Request) -> Response:
        body = await _body(request, ActBody)
        asked = ActRequest(body.observation, body.actions, body.step, may_repeat=True)
        return Json(asdict(await batcher.act(key, asked)))

    async def look(key: str) -> Response:
        return Json(await batcher.call(sessions.about, key))

    async def end(key: str) -> Response:
        await batcher.call(sessions.close, key)
        return Response(status_code=204)

    app.add_api_route("/", about, methods=["GET"])
    app.add_api_route("/episodes", begin, methods=["POST"], status_code=201, openapi_extra=_takes(NewEpisode))
    app.add_api_route("/episodes/{key}/act", act, methods=["POST"], openapi_extra=_takes(ActBody))
    app.add_api_route("/episodes/{key}", look, methods=["GET"])
    app.add_api_route("/episodes/{key}", end, methods=["DELETE"], status_code=204)
    return app


async def _body(request: Request, model: type[M]) -> M:
    return read(await request.body(), request.headers.get("content-type", ""), model)


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """What /openapi.json says of a body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}}
