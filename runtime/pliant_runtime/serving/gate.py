"""What every request passes first: its body is read to the end within limits, and its answer is counted.

Bodies are read before any refusal: a client that is still sending would see a reset instead of the answer.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pliant_runtime.serving.messages import Limits, Message, Refusal, Send, deliver
from pliant_runtime.serving.service import Service, log

BODY = "pliant.body"
"""Where routes find the whole body in the scope."""
CUT = "pliant.cut"
"""In the scope where the client closed its side in the middle of the body."""
HEAD_BYTES = 16 << 10
LINGER_S, LINGER_BYTES = 2.0, 64 << 20

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_CLOSE = {"Connection": "close"}


class Gate:
    """ASGI middleware.

    Args:
        app: what answers.
        service: what counts, and knows whether it drains.
        limits: what one client may ask for.
    """

    def __init__(self, app: Application, service: Service, limits: Limits) -> None:
        self._app, self._service, self._limits = app, service, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; never raises for what a client did."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._service.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            body = await self._body(scope, receive)
            if body is None:
                return  # the client went away
            scope[BODY] = body
            await self._app(scope, receive, sending)
        except Refusal as refusal:
            await deliver(refusal.response(), sending)
        except Exception as error:  # whatever it is, the next request must be served
            log("error", level="error", path=scope["path"][:200], error=f"{type(error).__name__}: {error}"[:500])
            if not status:
                await deliver(Refusal(500, "internal error; the server's log has more").response(), sending)
        inference = status == 200 and scope["path"].endswith("/infer")
        self._service.metrics.answered(status, time.perf_counter() - begun if inference else None)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        size, length, hosts, expected = len(scope["path"]) + len(scope["query_string"]), 0, 0, False
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name == b"content-length":
                length, expected = int(value), True
            elif name == b"transfer-encoding":
                expected = True
            elif name == b"host":
                hosts += 1
        refusal = None
        if size > HEAD_BYTES:
            refusal = Refusal(431, f"address and headers have at most {HEAD_BYTES} bytes", _CLOSE)
        elif length > self._limits.body:
            refusal = self._too_large()
        elif hosts != 1 and scope.get("http_version") == "1.1":
            refusal = Refusal(400, f"a request of HTTP/1.1 has one Host, got {hosts}", _CLOSE)
        if not expected:
            if refusal is not None:
                raise refusal
            return b""
        try:
            async with asyncio.timeout(self._limits.body_s if refusal is None else LINGER_S):
                body = await self._read(receive, refusal)
        except TimeoutError:
            reason = f"the request did not come in within {self._limits.body_s:g} s"
            raise refusal or Refusal(408, reason, _CLOSE) from None
        if CUT in scope:
            raise Refusal(400, "the body ended before it was whole", _CLOSE)
        return body

    async def _read(self, receive: Receive, refusal: Refusal | None) -> bytes | None:
        """The body; one that is refused is read too, and forgotten."""
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            size += len(piece)
            if refusal is None:
                pieces.append(piece)
                if size > self._limits.body:
                    refusal = self._too_large()
                    pieces.clear()
            if not message.get("more_body", False) or size > LINGER_BYTES + self._limits.body:
                if refusal is not None:
                    raise refusal
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"a body has at most {self._limits.body} bytes", _CLOSE)
