"""The same server on Ray Serve: its replicas without ray, and a local cluster where ray is installed."""

import asyncio
import http.client
import importlib.util
import json
import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve: fastapi is not installed")
pytest.importorskip("prometheus_client", reason="needs the extra serve: prometheus-client is not installed")

from pliant_runtime import load
from pliant_runtime.serving.ray_adapter import Refused, Replica, application

RAY = importlib.util.find_spec("ray") is not None and importlib.util.find_spec("ray.serve") is not None
ROWS = np.arange(18, dtype=np.uint8).reshape(3, 6)


@pytest.fixture(scope="module")
def replica(original: Path) -> Replica:
    return Replica(str(original), 60.0)


def _request(method: str, path: str, body: bytes = b"") -> Any:
    from starlette.requests import Request

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers, "root_path": ""}
    return Request(scope, receive)


def _infer(name: str) -> bytes:
    given = {"name": name, "shape": [3, 6], "datatype": "UINT8", "data": ROWS.ravel().tolist()}
    return json.dumps({"inputs": [given], "parameters": {"subnet": 0}}).encode()


def test_a_replica_answers_as_the_family_does(replica: Replica, original: Path) -> None:
    family = load(original)

    async def ask() -> None:
        outputs, subnet = await replica.infer([ROWS])
        np.testing.assert_allclose(outputs[0], family.run(ROWS, entry=subnet), rtol=1e-5, atol=1e-6)
        for entry in range(len(family)):
            outputs, subnet = await replica.infer([ROWS], subnet=entry)
            assert subnet == entry
            np.testing.assert_allclose(outputs[0], family.run(ROWS, entry=entry), rtol=1e-5, atol=1e-6)
        assert (await replica.stats())["slo_s"] == 60.0

    asyncio.run(ask())


def test_a_replica_has_the_routes_of_the_server(original: Path) -> None:
    replica = Replica(str(original), 60.0)
    family = load(original)

    async def ask() -> None:
        ready = await replica(_request("GET", "/v2/health/ready"))
        assert (ready.status_code, json.loads(ready.body)) == (200, {"ready": True})
        name = family.signature.inputs[0].name
        answer = await replica(_request("POST", f"/v2/models/{family.name}/infer", _infer(name)))
        assert answer.status_code == 200
        assert answer.headers["x-subnet"] == "0"
        found = json.loads(answer.body)["outputs"][0]
        wanted = family.run(ROWS, entry=0)
        np.testing.assert_allclose(np.reshape(found["data"], found["shape"]), wanted, rtol=1e-5, atol=1e-6)
        assert (await replica(_request("GET", "/nothing"))).status_code == 404

    asyncio.run(ask())


def test_a_replica_refuses_what_is_no_input(original: Path) -> None:
    replica = Replica(str(original), 60.0)
    wrong: list[tuple[list[np.ndarray[Any, Any]], dict[str, Any], str]] = [
        ([], {}, "takes 1 inputs, got 0"),
        ([ROWS.astype(np.float32)], {}, r"is uint8\[-1, 6\], got float32\[3, 6\]"),
        ([ROWS[:, :5]], {}, r"got uint8\[3, 5\]"),
        ([ROWS[:0]], {}, r"from 1 to 1024 rows"),
        ([ROWS], {"subnet": 9}, "subnet must be from 0 to 1, got 9"),
    ]

    async def ask() -> None:
        for arrays, more, message in wrong:
            with pytest.raises(Refused, match=message) as caught:
                await replica.infer(arrays, **more)
            assert caught.value.status == 400
        with pytest.raises(Refused) as late:
            await replica.infer([ROWS], timeout_ms=1e-6)
        assert late.value.status == 503

    asyncio.run(ask())


def test_refusals_travel_between_processes() -> None:
    found = pickle.loads(pickle.dumps(Refused(503, "too late", 2)))
    assert (found.status, found.reason, found.retry_after, str(found)) == (503, "too late", 2, "503: too late")


def test_wrong_numbers_are_refused(original: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        application(original, slo_ms=20, replicas=0)
    with pytest.raises(ValueError, match="the promise must be a positive time"):
        application(original, slo_ms=0)


@pytest.mark.skipif(RAY, reason="ray is installed")
def test_without_ray_the_way_to_install_it_is_told(original: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pliant-runtime\[scale\]'"):
        application(original, slo_ms=20)


@pytest.fixture(scope="module")
def handle(original: Path) -> Iterator[tuple[Any, int]]:
    for name in ("READY", "HEALTH"):  # Ray kills a proxy that a busy machine does not start within 5 seconds
        os.environ.setdefault(f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S", "240")
    ray = pytest.importorskip("ray", reason="needs the extra scale: ray is not installed")
    serve = pytest.importorskip("ray.serve", reason="needs the extra scale: ray[serve] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield serve.run(application(original, slo_ms=60_000, replicas=2), name="pliant", route_prefix="/"), port
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not RAY, reason="needs the extra scale: ray is not installed")
def test_a_local_cluster_serves_the_family(handle: tuple[Any, int], original: Path) -> None:
    family = load(original)
    deployed, port = handle
    for entry in range(len(family)):
        outputs, subnet = deployed.infer.remote([ROWS], subnet=entry).result(timeout_s=120)
        assert subnet == entry
        np.testing.assert_allclose(outputs[0], family.run(ROWS, entry=entry), rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="subnet must be from 0 to 1, got 9"):
        deployed.infer.remote([ROWS], subnet=9).result(timeout_s=120)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    name = family.signature.inputs[0].name
    connection.request("POST", f"/v2/models/{family.name}/infer", _infer(name), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = json.loads(answer.read())["outputs"][0]
    assert (answer.status, answer.headers["x-subnet"]) == (200, "0")
    np.testing.assert_allclose(
        np.reshape(found["data"], found["shape"]), family.run(ROWS, entry=0), rtol=1e-4, atol=1e-5
    )
    connection.request("GET", "/v2/health/ready")
    assert json.loads(connection.getresponse().read()) == {"ready": True}
    connection.close()
