"""A harness for verifiers that asks the model once a turn, in this process: a text game needs no program of its own.

Verifiers' own chat loop starts a process for every turn; this one posts the conversation to the endpoint that verifiers
gives every harness. Read in ``verifiers`` 0.4.0 (Apache-2.0). Needs the extra `verifiers`.
"""

from __future__ import annotations

import ssl
from typing import Any

import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire

LONGEST_TURN = 3600.0
"""Seconds that the model may take; verifiers' own limits are shorter."""


class ChatConfig(vf.HarnessConfig):
    """It has no settings."""


class ChatHarness(vf.Harness[ChatConfig]):
    """One request of the model per turn, without tools and without a program."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
        **more: Any,
    ) -> vf.ProgramResult:
        """Ask the model to go on with the conversation; verifiers records what it says."""
        system, prompt = self.resolve_prompt(data)
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or ()]
        # to read the certificates of the system, which http needs not, would take longer than the turn
        secure = True if endpoint.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with httpx.AsyncClient(timeout=LONGEST_TURN, trust_env=False, verify=secure) as client:
            answer = await client.post(
                f"{endpoint}/chat/completions",
                headers={"Authorization": f"Bearer {secret}"},
                json={"model": ctx.model, "messages": messages},
            )
        failed = answer.status_code != 200
        return vf.ProgramResult(exit_code=int(failed), stdout="", stderr=answer.text[:2000] if failed else "")


__all__ = ["ChatConfig", "ChatHarness"]
