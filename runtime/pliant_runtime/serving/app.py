"""The routes, on FastAPI: Open Inference Protocol v2 with its binary extension, metrics, figures and the live page.

An endpoint is given the request and hands back a plain answer; nothing passes through pydantic, for tensors must not.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response as Sent
from starlette.types import ASGIApp, Receive, Scope, Send

from pliant_runtime.serving import openapi, protocol
from pliant_runtime.serving.exposition import Exposition
from pliant_runtime.serving.gate import BODY, Gate
from pliant_runtime.serving.messages import Limits, Refusal, Response, answered, deliver
from pliant_runtime.serving.service import Service

VERSION = "0.1.0"
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters", "statistics")
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(service: Service, limits: Limits) -> FastAPI:
    """The server as an ASGI application; its lifespan keeps the service going and closes it.

    Args:
        service: what computes.
        limits: what one client may ask for.
    """
    app = FastAPI(
        title="pliant",
        version=VERSION,
        description="One family; which of its sub-networks answers is chosen per batch, so that the promise is kept.",
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(service),
        exception_handlers={HTTPException: _no_route},
    )
    app.add_middleware(Gate, service=service, limits=limits)
    for method, path, endpoint, told in _Routes(service, limits).table():
        summary = (endpoint.__doc__ or "").strip().rstrip(".")
        options: dict[str, Any] = {"methods": [method], "summary": summary, "openapi_extra": told}
        app.router.routes.append(_Plain(path, endpoint, **options))
    drawn: dict[str, dict[str, Any]] = {}

    def description() -> dict[str, Any]:
        model = service.model
        if model.version not in drawn:
            app.openapi_schema = None
            drawn.clear()
            drawn[model.version] = openapi.described(FastAPI.openapi(app), model, limits)
        return drawn[model.version]

    app.openapi = description  # type: ignore[method-assign]
    return app


def _lifespan(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(service.watch())
        yield
        await service.close()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    return lifespan


async def _no_route(request: Request, error: Exception) -> Sent:
    assert isinstance(error, HTTPException)  # it is registered for this one
    path = request.url.path[:200]
    told = {404: f"nothing lies at {path!r}; see GET /v2", 405: f"{path} does not take {request.method[:20]}"}
    headers = dict(error.headers or {})
    response = Refusal(error.status_code, told.get(error.status_code, str(error.detail)), headers).response()
    return Sent(response.body, response.status, response.fields())


class _Plain(APIRoute):
    """A route whose endpoint gets the request and hands back an answer: no dependencies, no validation."""

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(path, endpoint, response_model=None, response_class=Sent, **options)
        self.app = _called(endpoint)


def _called(endpoint: Endpoint) -> ASGIApp:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await endpoint(Request(scope, receive))
        except Refusal as refusal:
            response = refusal.response()
        await deliver(response, send)

    return application


class _Routes:
    """The endpoints.

    Args:
        service: what computes.
        limits: what one client may ask for.
    """

    def __init__(self, service: Service, limits: Limits) -> None:
        self.service, self.limits = service, limits
        self._page = resources.files("pliant_runtime.serving").joinpath("page.html").read_bytes()
        self._exposition = Exposition(service.metrics, lambda: len(service.model.table))

    def table(self) -> list[tuple[str, str, Endpoint, dict[str, Any]]]:
        """Method, path, endpoint and description of every route; the busiest first."""
        described, ref = openapi.operation, openapi._ref
        name, version = self.service.model.name, self.service.model.version
        stats, ready = described("Figures.", schema=ref("Stats")), described("It is.", schema=ref("Ready"))
        ready["responses"]["503"] |= {"content": {"application/json": {"schema": {"type": "object"}}}}
        found: list[tuple[str, str, Endpoint, dict[str, Any]]] = []
        for prefix, parts in (
            ("/v2/models/{name}", openapi.name_parameters(name)),
            ("/v2/models/{name}/versions/{version}", openapi.name_parameters(name, version)),
        ):
            found += [
                ("POST", f"{prefix}/infer", self.infer, openapi.inference(parts)),
                ("GET", prefix, self.metadata, _of_model(described("The model.", schema=ref("Metadata")), parts)),
                ("GET", f"{prefix}/ready", self.model_ready, _of_model(ready, parts)),
                ("GET", f"{prefix}/stats", self.model_stats, _of_model(stats, parts)),
            ]
        parts = openapi.name_parameters(name)
        loaded = _of_model(described("It serves now.", schema={"type": "object"}), parts)
        unloaded = _of_model(described("Never.", schema={"type": "object"}), parts)
        kept = described("The model.", schema=ref("Index"))
        text = described("Prometheus' text, or OpenMetrics where asked for.", kind=openapi.TEXT)
        page = described("HTML without any asset from elsewhere.", kind=openapi.PAGE)
        return [
            *found,
            ("GET", "/v2", self.server, described("The server.", schema=ref("Server"))),
            ("GET", "/v2/health/live", self.live, described("It is.", schema=ref("Live"))),
            ("GET", "/v2/health/ready", self.ready, ready),
            ("GET", "/v2/stats", self.stats, stats),
            ("POST", "/v2/repository/index", self.index, kept),
            ("POST", "/v2/repository/models/{name}/load", self.load, loaded),
            ("POST", "/v2/repository/models/{name}/unload", self.unload, unloaded),
            ("GET", "/metrics", self.metrics, text),
            ("GET", "/", self.page, page),
        ]

    async def infer(self, request: Request) -> Response:
        """Outputs for a batch of rows."""
        self._known(request)
        engine = self.service.engine  # the same for reading, computing and answering, whatever is loaded meanwhile
        asked = protocol.read(request.headers, request.scope[BODY], engine.model, self.limits)
        outputs, subnet = await self.service.infer(engine, asked.arrays, asked.promise_s, asked.pin)
        return protocol.write(asked, outputs, subnet, engine.model)

    async def metadata(self, request: Request) -> Response:
        """Inputs, outputs and sub-networks of the model."""
        self._known(request)
        model = self.service.model
        return answered(
            {
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
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether the model answers."""
        self._known(request)
        return await self.ready(request)

    async def model_stats(self, request: Request) -> Response:
        """Figures of the model."""
        self._known(request)
        return await self.stats(request)

    async def server(self, request: Request) -> Response:
        """Name, version and extensions of the server."""
        return answered({"name": "pliant", "version": VERSION, "extensions": list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        """Whether the process runs."""
        return answered({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether new requests are welcome; not once the server is about to stop."""
        ready = not self.service.draining
        return answered({"ready": ready}, status=200 if ready else 503)

    async def stats(self, request: Request) -> Response:
        """Figures of all processes, as the live page shows them."""
        return answered(self.service.stats())

    async def index(self, request: Request) -> Response:
        """The one model of this server."""
        model = self.service.model
        return answered([{"name": model.name, "version": model.version, "state": "READY", "reason": ""}])

    async def load(self, request: Request) -> Response:
        """Load the artifact again; what is queued is answered by the old one."""
        self._known(request)
        await self.service.reload()
        return answered({})

    async def unload(self, request: Request) -> Response:
        """Always refused: a server has one model."""
        self._known(request)
        raise Refusal(400, "the one model of this server cannot be unloaded; stop the server with SIGTERM")

    async def metrics(self, request: Request) -> Response:
        """Counters of all processes for Prometheus."""
        kind, text = self._exposition.text(request.headers.get("accept", ""))
        return Response(200, text, kind)

    async def page(self, request: Request) -> Response:
        """The live page."""
        policy = "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
        return Response(200, self._page, "text/html; charset=utf-8", {"Content-Security-Policy": policy})

    def _known(self, request: Request) -> None:
        model, asked = self.service.model, request.path_params
        if asked["name"] != model.name:
            raise Refusal(404, f"no model {asked['name'][:60]!r}; this server has {model.name!r}")
        version = asked.get("version", "1")
        if version not in ("1", model.version):
            raise Refusal(404, f"no version {version[:60]!r}; this is {model.version}")


def _of_model(told: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    missing = {"404": openapi._refused(404)}
    return {**told, "parameters": parts, "responses": told["responses"] | missing}
