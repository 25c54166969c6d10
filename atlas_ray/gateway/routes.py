"""The routes of the gateway; see docs/gateway.md. Needs the extra ``gateway``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..errors import StorageError
from ..serving.bodies import BodyLimits
from .answering import Answering
from .limits import LARGEST_BODY, Guard, refuse
from .recording import Recorder
from .replies import ApiError, dumped
from .requests import read_json, read_request

EVERY = 2.0
"""Seconds between two looks at what is to be recorded or forgotten."""
_FORGET_EVERY = 30
_GRACE = 3.0
_log = logging.getLogger(__name__)


def build(
    answering: Answering,
    recorder: Recorder,
    tokens: tuple[str, ...],
    hosts: list[str],
    page: Callable[[], Awaitable[bytes]] | None = None,
) -> Starlette:
    """The application.

    Args:
        answering: what answers.
        recorder: what writes sessions down.
        tokens: of clients; none lets everybody in.
        hosts: by which names it may be asked; empty: any.
        page: what Prometheus gets, by default this gateway's own numbers.
    """

    @contextlib.asynccontextmanager
    async def living(_: Starlette) -> AsyncIterator[None]:
        keeping = asyncio.create_task(_keep_house(answering, recorder))
        yield
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        with contextlib.suppress(Exception):
            while await answering.call(recorder.write):
                pass
        await answering.close(_GRACE)

    app = Starlette(lifespan=living)
    app.add_middleware(BodyLimits, largest=LARGEST_BODY, answer=refuse)
    app.add_middleware(Guard, tokens=tokens, hosts=hosts)
    metrics = answering.metrics

    async def complete(request: Request) -> Response:
        with metrics.open.track_inprogress():
            try:
                asked = read_request(await request.body(), request.headers)
                reply = await answering.answer(asked, request.scope["atlas_key"])
            except ApiError as error:
                metrics.requests.labels(error.status).inc()
                raise
            except Exception as error:
                metrics.requests.labels(500).inc()
                _log.exception("a request has failed")
                raise ApiError(500, "the gateway has failed; its log says why", "gateway_failed") from error
        metrics.requests.labels(200).inc()
        if isinstance(reply.body, bytes):
            return Response(reply.body, media_type=reply.media_type, headers=reply.headers)
        return StreamingResponse(reply.body, media_type=reply.media_type, headers=reply.headers)

    async def models(_: Request) -> Response:
        names = ("londi", "quick", "deepthink")
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "atlas-ray"} for name in names]
        return Response(dumped({"object": "list", "data": listed}), media_type="application/json")

    async def health(_: Request) -> Response:
        await answering.call(answering.admission.check)
        return Response(b'{"status": "ok"}', media_type="application/json")

    async def numbers(_: Request) -> Response:
        found = metrics.page() if page is None else await page()
        return Response(found, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def outcome(request: Request) -> Response:
        given = read_json(await request.body())
        score, success = given.get("score"), given.get("success")
        sound = score is None or (isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1)
        if not sound or not isinstance(success, bool | None) or given.keys() - {"score", "success"}:
            why = 'must be {"score": 0..1, "success": true or false}, either may be left out'
            raise ApiError(400, why, "invalid_value")
        about = (request.path_params["session"], request.scope["atlas_key"])
        number = None if score is None else float(score)
        await answering.call(recorder.outcome, *about, number, success, time.time())
        return Response(status_code=204)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return Response(error.body, error.status, error.headers, "application/json")

    async def unknown(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = {404: "there is nothing at this path", 405: "this path takes another method"}
        made = ApiError(error.status_code, said.get(error.status_code, str(error.detail)))
        return Response(made.body, made.status, error.headers, "application/json")

    async def crashed(_: Request, __: Exception) -> Response:
        made = ApiError(500, "the gateway has failed; its log says why", "gateway_failed")
        return Response(made.body, made.status, None, "application/json")

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(HTTPException, unknown)
    app.add_exception_handler(Exception, crashed)
    app.add_route("/v1/chat/completions", complete, methods=["POST"])
    app.add_route("/v1/models", models, methods=["GET"])
    app.add_route("/v1/atlas/sessions/{session}/outcome", outcome, methods=["POST"])
    app.add_route("/healthz", health, methods=["GET"])
    app.add_route("/metrics", numbers, methods=["GET"])
    return app


async def _keep_house(answering: Answering, recorder: Recorder) -> None:
    """Write down sessions and forget old answers, for ever."""
    turn = 0
    while True:
        await asyncio.sleep(EVERY)
        try:
            await answering.call(answering.admission.store.owner.renew)
            while await answering.call(recorder.write):
                pass
            if turn % _FORGET_EVERY == 0:
                await answering.call(answering.admission.forget_answers)
                await answering.call(answering.admission.remove_sessions)
        except (StorageError, OSError) as error:
            _log.error("sessions could not be recorded: %s", error)
        except Exception:
            _log.exception("sessions could not be recorded")
        turn += 1
