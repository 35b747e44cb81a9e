"""A family on Ray Serve: the same controller and the same addresses, on a cluster that somebody else runs.

    from ray import serve
    from pliant_runtime.serving.ray_adapter import application

    serve.run(application("fashion.pliant", slo_ms=20, replicas=4), route_prefix="/")

Every replica is a whole server without sockets: queue, controller, networks. Ray brings requests to it, over HTTP or a
handle, and starts and stops replicas; which sub-network answers is decided in the replica, per batch. Ray must not hold
requests back for that, so that `max_ongoing_requests` is high and the controller refuses what would be late.

Needs ray, from the extra `scale`: pip install 'pliant-runtime[scale]'. The artifact must lie at the same path on every
machine of the cluster.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pliant_runtime.serving.app import create_app
from pliant_runtime.serving.controller import Settings
from pliant_runtime.serving.messages import Limits, Message, Refusal
from pliant_runtime.serving.metrics import Metrics
from pliant_runtime.serving.model import open_model
from pliant_runtime.serving.service import Service

MOST_ONGOING = 10_000
"""Requests that Ray hands to one replica at once."""


class Refused(RuntimeError):
    """What a handle raises where a server would answer with an error; it can go from one process to another.

    Args:
        status: as in HTTP; 503 where the answer would have come too late.
        reason: what was wrong.
        retry_after: seconds after which to try again; None where nothing is known.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(status, reason, retry_after)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


class Replica:
    """One server of a family, without sockets.

    Args:
        path: the artifact.
        slo_s: promise: seconds from arrival to answer.
        policy: rule that chooses sub-networks.
        threads: threads per network.

    Raises:
        ArtifactError: the artifact is damaged.
        ValueError: the promise cannot be kept even by the smallest sub-network.
    """

    def __init__(self, path: str, slo_s: float, policy: str = "adaptive", threads: int = 1) -> None:
        settings = Settings(slo_s=slo_s)
        model = open_model(Path(path), slo_s=slo_s, threads=threads)
        self.service = Service(Path(path), model, settings, metrics=Metrics(slo_s), policy_name=policy, threads=threads)
        self.limits = Limits()
        self._app = create_app(self.service, self.limits)
        self._watching: asyncio.Task[None] | None = None

    def _started(self) -> None:
        """The guard of the event loop runs from the first request on; there is no loop before."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self.service.watch())

    async def __call__(self, request: Any) -> Any:
        """One HTTP request (a starlette `Request`) through the routes of `pliant serve`."""
        from starlette.responses import Response

        self._started()
        status, headers, body = 500, [], bytearray()

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, headers = message["status"], list(message["headers"])
            else:
                body.extend(message.get("body", b""))

        await self._app(request.scope, request.receive, send)
        response = Response(bytes(body), status)
        response.raw_headers = headers
        return response

    async def infer(
        self, arrays: Sequence[NDArray[Any]], timeout_ms: float | None = None, subnet: int | None = None
    ) -> tuple[list[NDArray[Any]], int]:
        """Outputs for a batch of rows, and the sub-network that made them.

        Args:
            arrays: one per input, as a request over HTTP would carry them, rows along axis 0.
            timeout_ms: promise for this request; the server's by default.
            subnet: exactly this sub-network.

        Raises:
            Refused: the answer would come too late, or these are no inputs of the model.
        """
        self._started()
        engine = self.service.engine
        ports = engine.model.inputs
        given = [np.asarray(array) for array in arrays]
        if len(given) != len(ports):
            raise Refused(400, f"the model takes {len(ports)} inputs, got {len(given)}")
        for port, array in zip(ports, given, strict=True):
            fits = len(port.row) == array.ndim - 1 and all(
                side in (-1, size) for side, size in zip(port.row, array.shape[1:], strict=False)
            )
            if not fits or str(array.dtype) != port.dtype:
                wanted = f"{port.dtype}{[-1, *port.row]}"
                raise Refused(400, f"input {port.name!r} is {wanted}, got {array.dtype}{list(array.shape)}")
        rows = {len(array) for array in given}
        if len(rows) != 1 or not 1 <= min(rows) <= self.limits.rows:
            raise Refused(400, f"from 1 to {self.limits.rows} rows, the same in all inputs, got {sorted(rows)}")
        if subnet is not None and not 0 <= subnet < len(engine.model.table):
            raise Refused(400, f"subnet must be from 0 to {len(engine.model.table) - 1}, got {subnet}")
        try:
            return await self.service.infer(engine, given, None if timeout_ms is None else timeout_ms / 1e3, subnet)
        except Refusal as refusal:
            after = refusal.headers.get("Retry-After")
            raise Refused(refusal.status, refusal.reason, None if after is None else int(after)) from None

    async def stats(self) -> dict[str, Any]:
        """What the live page shows, of this replica."""
        self._started()
        return self.service.stats()

    async def reload(self) -> None:
        """Load the artifact again; what is queued is answered by the old one. Raises `Refused` where it is damaged."""
        try:
            await self.service.reload()
        except Refusal as refusal:
            raise Refused(refusal.status, refusal.reason) from None


def application(
    artifact: str | Path,
    *,
    slo_ms: float,
    policy: str = "adaptive",
    threads: int = 1,
    replicas: int = 1,
    name: str = "pliant",
) -> Any:
    """An application for `ray.serve.run`.

    Args:
        artifact: folder of the artifact, at the same path on every machine.
        slo_ms: promise: milliseconds from a request's arrival at a replica to its answer.
        policy: adaptive, largest, smallest or round_robin.
        threads: threads per network, and CPUs that a replica takes of the cluster.
        replicas: how many.
        name: of the deployment.

    Returns:
        A `ray.serve.Application`; its handle has the methods of `Replica`.

    Raises:
        ModuleNotFoundError: ray is not installed.
        ValueError: a promise or a number that is not positive.
    """
    if replicas < 1 or threads < 1:
        raise ValueError(f"replicas and threads must be at least 1, got {replicas} and {threads}")
    settings = Settings(slo_s=slo_ms / 1e3)
    try:
        from ray import serve
    except ImportError as error:
        raise ModuleNotFoundError("ray is not installed: pip install 'pliant-runtime[scale]'") from error
    deployment = serve.deployment(
        Replica,
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=MOST_ONGOING,
        ray_actor_options={"num_cpus": threads},
    )
    return deployment.bind(str(Path(artifact).resolve()), settings.slo_s, policy, threads)
