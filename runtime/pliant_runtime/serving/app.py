"""What the server answers to which path: plain values in and out, no sockets; `asgi` offers it to ASGI servers."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any
from urllib.parse import unquote

from pliant_runtime.serving import protocol
from pliant_runtime.serving.messages import Limits, Refusal, Request, Response, answered
from pliant_runtime.serving.service import Service, log

VERSION = "0.1.0"
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters", "statistics")


class App:
    """The routes.

    Args:
        service: what computes.
        limits: what one client may ask for.
    """

    def __init__(self, service: Service, limits: Limits) -> None:
        self.service, self.limits = service, limits
        self._page = resources.files("pliant_runtime.serving").joinpath("page.html").read_bytes()
        self._fixed: dict[str, tuple[str, Callable[[], Response]]] = {
            "/": ("GET", lambda: Response(200, self._page, "text/html; charset=utf-8", _PAGE_HEADERS)),
            "/v2": ("GET", self._server),
            "/v2/health/live": ("GET", lambda: answered({"live": True})),
            "/v2/health/ready": ("GET", self._ready),
            "/v2/stats": ("GET", lambda: answered(service.stats())),
            "/v2/repository/index": ("POST", self._index),
            "/metrics": ("GET", self._metrics),
        }

    async def respond(self, request: Request) -> Response:
        """The answer; never raises."""
        begun = time.perf_counter()
        seconds = None
        try:
            response, inference = await self._routed(request)
            seconds = time.perf_counter() - begun if inference else None
        except Refusal as refusal:
            response = refusal.response()
        except Exception as error:  # whatever it is, the next request must be served
            log("error", level="error", path=request.path[:200], error=f"{type(error).__name__}: {error}"[:500])
            response = answered({"error": "internal error; the server's log has more"}, status=500)
        self.service.metrics.answered(response.status, seconds)
        return response

    async def _routed(self, request: Request) -> tuple[Response, bool]:
        path = request.path.partition("?")[0]
        path = path.rstrip("/") or "/"
        if path in self._fixed:
            method, answer = self._fixed[path]
            _only(request, method)
            return answer(), False
        parts = path.split("/")[1:]
        if len(parts) >= 3 and parts[:2] == ["v2", "models"]:
            return await self._model(request, parts[2:])
        if len(parts) == 5 and parts[:3] == ["v2", "repository", "models"]:
            self._known(parts[3])
            _only(request, "POST")
            return await self._repository(parts[4]), False
        raise Refusal(404, f"nothing lies at {path[:200]!r}; see GET /v2")

    async def _model(self, request: Request, parts: list[str]) -> tuple[Response, bool]:
        self._known(parts[0])
        rest = parts[1:]
        if rest[:1] == ["versions"] and len(rest) >= 2:
            if rest[1] not in (self.service.model.version, "1"):
                raise Refusal(404, f"no version {rest[1][:60]!r}; this is {self.service.model.version}")
            rest = rest[2:]
        match rest:
            case []:
                _only(request, "GET")
                return answered(self._metadata()), False
            case ["ready"]:
                _only(request, "GET")
                return self._ready(), False
            case ["stats"]:
                _only(request, "GET")
                return answered(self.service.stats()), False
            case ["infer"]:
                _only(request, "POST")
                return await self._infer(request), True
        raise Refusal(404, f"a model has ready, stats and infer, not {'/'.join(rest)[:100]!r}")

    def _known(self, name: str) -> None:
        if unquote(name) != self.service.model.name:
            raise Refusal(404, f"no model {unquote(name)[:60]!r}; this server has {self.service.model.name!r}")

    async def _infer(self, request: Request) -> Response:
        engine = self.service.engine  # the same for reading, computing and answering, whatever is loaded meanwhile
        asked = protocol.read(request.headers, request.body, engine.model, self.limits)
        outputs, subnet = await self.service.infer(engine, asked.arrays, asked.promise_s, asked.pin)
        return protocol.write(asked, outputs, subnet, engine.model)

    async def _repository(self, verb: str) -> Response:
        if verb == "load":
            await self.service.reload()
            return answered({})
        if verb == "unload":
            raise Refusal(400, "the one model of this server cannot be unloaded; stop the server with SIGTERM")
        raise Refusal(404, f"a repository has load and unload, not {verb[:60]!r}")

    def _ready(self) -> Response:
        ready = not self.service.draining
        return answered({"ready": ready}, status=200 if ready else 503)

    def _server(self) -> Response:
        return answered({"name": "pliant", "version": VERSION, "extensions": list(EXTENSIONS)})

    def _index(self) -> Response:
        model = self.service.model
        return answered([{"name": model.name, "version": model.version, "state": "READY", "reason": ""}])

    def _metrics(self) -> Response:
        text = self.service.metrics.text(len(self.service.model.table))
        return Response(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _metadata(self) -> dict[str, Any]:
        model = self.service.model
        return {
            "name": model.name,
            "versions": [model.version],
            "platform": "pliant",
            "inputs": [port.metadata() for port in model.inputs],
            "outputs": [port.metadata() for port in model.outputs],
            "parameters": {
                "subnets": len(model.table),
                "slo_ms": self.service.settings.slo_s * 1e3,
                "max_rows": self.limits.rows,
                "classes": list(model.family.signature.classes),
            },
        }


_PAGE_HEADERS = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}


def _only(request: Request, method: str) -> None:
    if request.method != method:
        raise Refusal(405, f"{request.path[:100]} takes {method}, got {request.method[:20]}", {"Allow": method})


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def asgi(app: App) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """The same routes as an ASGI application, for servers such as uvicorn or hypercorn."""

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        body, more = b"", True
        while more and len(body) <= app.limits.body:
            message = await receive()
            body += message.get("body", b"")
            more = bool(message.get("more_body", False))
        if len(body) > app.limits.body:
            response = Refusal(413, f"a body has at most {app.limits.body} bytes").response()
        else:
            response = await app.respond(Request(scope["method"], scope["path"], headers, body))
        told = {"content-type": response.kind, "content-length": str(len(response.body)), **response.headers}
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
        await send({"type": "http.response.start", "status": response.status, "headers": pairs})
        await send({"type": "http.response.body", "body": response.body})

    return application
