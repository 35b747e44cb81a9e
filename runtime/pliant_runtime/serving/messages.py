"""Answers and refusals as plain values: what is between the wire and the rest."""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json"
OCTETS = "application/octet-stream"

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Response:
    """One HTTP answer; the length of the body is added when it is sent."""

    status: int
    body: bytes = b""
    kind: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """All headers."""
        return {"Content-Type": self.kind, "Content-Length": str(len(self.body)), **self.headers}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Args:
        body: most bytes of one body.
        json: most bytes of JSON in it: reading 4 MiB holds the event loop up for tens of milliseconds.
        rows: most samples of one request.
        connections: most open connections of one process.
        body_s: seconds within which a request must have come in whole.
        idle_s: seconds a connection may stay open between requests.
    """

    body: int = 32 << 20
    json: int = 4 << 20
    rows: int = 1024
    connections: int = 256
    body_s: float = 30.0
    idle_s: float = 75.0


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        reason: what was wrong and what would be right.
        headers: more headers.
    """

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.reason, self.headers = status, reason, dict(headers or {})
        super().__init__(reason)

    def response(self) -> Response:
        """The answer."""
        return answered({"error": self.reason}, status=self.status, headers=self.headers)


def answered(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON data as an answer."""
    return Response(status, json.dumps(data, separators=(",", ":")).encode(), JSON, dict(headers or {}))


async def deliver(response: Response, send: Send) -> None:
    """Send an answer the ASGI way."""
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.fields().items()]
    await send({"type": "http.response.start", "status": response.status, "headers": pairs})
    await send({"type": "http.response.body", "body": response.body})
