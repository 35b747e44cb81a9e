"""The server in this process, over real sockets: answers, limits, malformed bytes, reload, drain, load."""

import asyncio
import json
import random
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from pliant_runtime import load
from pliant_runtime.serving import http
from pliant_runtime.serving.app import create_app
from pliant_runtime.serving.controller import Settings
from pliant_runtime.serving.http import Server
from pliant_runtime.serving.load import Client, body_of, discover, drive, told
from pliant_runtime.serving.messages import Limits
from pliant_runtime.serving.metrics import Metrics
from pliant_runtime.serving.model import Model
from pliant_runtime.serving.service import Service
from pliant_runtime.serving.trace import Phase
from tests.serve.servers import TABLE

X = [[10, 200, 30, 4, 5, 6]]
PATH = "/v2/models/Net/infer"
CHUNK = b"7530\r\n" + b"x" * 30_000 + b"\r\n"


class Running:
    """A server that runs, and a client of it."""

    def __init__(self, server: Server, service: Service, address: tuple[str, int]) -> None:
        self.server, self.service, self.address = server, service, address
        self.client = Client(f"http://{address[0]}:{address[1]}")

    async def raw(self, sent: bytes, *, then_close: bool = True) -> bytes:
        """Everything that comes back on one connection."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(sent)
        if then_close:
            writer.write_eof()
        found = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        return found


def serving(
    artifact: Path, test: Callable[[Running], Awaitable[None]], *, slo_s: float = 30.0, limits: Limits | None = None
) -> None:
    async def main() -> None:
        model = Model(load(artifact), TABLE)
        service = Service(artifact, model, Settings(slo_s=slo_s), metrics=Metrics(slo_s))
        server = Server(service, limits or Limits(body=100_000, rows=64), drain_s=0.3)
        listening = socket.create_server(("127.0.0.1", 0))
        address = listening.getsockname()
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        running = Running(server, service, address)
        try:
            await test(running)
        finally:
            await running.client.close()
            server.should_exit = True
            await asyncio.wait_for(task, 20)

    asyncio.run(main())


def document(**more: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 6], "data": X}], **more}).encode()


def test_an_inference_is_what_the_runtime_answers(artifact: Path) -> None:
    want = load(artifact).run(np.array(X, np.uint8), entry=1)

    async def test(running: Running) -> None:
        reply = await running.client.call("POST", PATH, document(parameters={"subnet": 1}))
        found = reply.json()
        assert reply.status == 200, reply.body
        assert found["outputs"][0]["shape"] == [1, 3]
        np.testing.assert_allclose(found["outputs"][0]["data"], want[0], rtol=1e-5)
        assert (found["parameters"]["subnet"], reply.headers["x-subnet"]) == (1, "1")
        free = await running.client.call("POST", PATH, document())
        assert free.headers["x-subnet"] == "2"  # idle: the largest
        versioned = await running.client.call("POST", "/v2/models/Net/versions/1/infer", document())
        assert versioned.status == 200

    serving(artifact, test)


def test_everything_about_the_server(artifact: Path) -> None:
    async def test(running: Running) -> None:
        call = running.client.call
        await call("POST", PATH, document())
        await asyncio.sleep(0.1)
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/Net/ready", "/v2/models/Net/stats"):
            assert (await call("GET", path)).status == 200, path
        metadata = (await call("GET", "/v2/models/Net")).json()
        assert metadata["inputs"] == [{"name": "input", "datatype": "UINT8", "shape": [-1, 6]}]
        assert (await call("POST", "/v2/repository/index")).json()[0]["state"] == "READY"
        page = await call("GET", "/")
        assert page.headers["content-type"].startswith("text/html")
        assert b"http://" not in page.body
        assert b"https://" not in page.body  # no outside asset
        text = (await call("GET", "/metrics")).body.decode()
        assert 'pliant_rows_total{subnet="2"} 1' in text
        assert "pliant_latency_seconds_count 1" in text
        assert 'pliant_latency_seconds_bucket{le="+Inf"} 1' in text
        stats = (await call("GET", "/v2/stats")).json()
        assert stats["counters"]["rows"] == [0, 0, 1]

    serving(artifact, test)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", PATH, 405), ("POST", "/metrics", 405), ("GET", "/v2/models/Other", 404),
        ("POST", "/v2/models/Net/versions/9/infer", 404), ("POST", "/v2/repository/models/Net/unload", 400),
        ("POST", "/v2/models/Net/else", 404), ("HEAD", "/v2", 405),
    ],
)  # fmt: skip
def test_wrong_addresses(artifact: Path, method: str, path: str, status: int) -> None:
    async def test(running: Running) -> None:
        sent = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        found = await running.raw(sent)
        head, _, body = found.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"error" in body or method == "HEAD"

    serving(artifact, test)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET /v2 HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n", 413),
        (b"POST /v2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK * 4 + b"0\r\n\r\n", 413),
    ],
    ids=["noise", "version", "no-host", "length", "two-lengths", "chunk", "cut", "header", "declared", "chunked"],
)  # fmt: skip
def test_malformed_bytes_get_an_answer(artifact: Path, sent: bytes, status: int) -> None:
    async def test(running: Running) -> None:
        found = await running.raw(sent)
        assert found.startswith(f"HTTP/1.1 {status} ".encode()), found[:100]
        assert b'"error"' in found
        assert (await running.client.call("GET", "/v2/health/live")).status == 200

    serving(artifact, test)


def test_pipelined_requests_are_answered_in_order_and_half_closed_ones_too(artifact: Path) -> None:
    async def test(running: Running) -> None:
        one = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
        other = b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n"
        found = await running.raw(one + other + one)
        assert [part[:3] for part in found.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"]

    serving(artifact, test)


def test_without_httptools_h11_reads_the_wire(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "find_spec", lambda name: None)

    async def test(running: Running) -> None:
        assert issubclass(running.server.config.http_protocol_class, H11Protocol)
        assert (await running.client.call("POST", PATH, document())).status == 200
        half_closed = await running.raw(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert half_closed.startswith(b"HTTP/1.1 200 ")
        for sent, status in (
            (b"\x00\x01\r\n\r\n", 400),
            (b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", 400),
            (b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n", 413),
            (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        ):
            found = await running.raw(sent)
            assert found.startswith(f"HTTP/1.1 {status} ".encode()), found[:100]
            assert b'"error"' in found

    serving(artifact, test)


def test_random_bytes_never_silence_the_server(artifact: Path) -> None:
    draw = random.Random(0)
    body, right = document(), f"POST {PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n".encode()
    whole = right + f"Content-Length: {len(body)}\r\n\r\n".encode() + body

    def damaged() -> bytes:
        sent = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8))):
            place = draw.randrange(len(sent))
            sent[place : place + draw.randrange(4)] = draw.randbytes(draw.randrange(4))
        return bytes(sent)

    async def test(running: Running) -> None:
        for _ in range(150):
            found = await running.raw(damaged())
            status = int(found[9:12]) if found else 400
            assert status < 500 or status == 503, found[:300]
            assert status < 400 or not found or b'"error"' in found
        assert (await running.client.call("POST", PATH, body)).status == 200
        assert len(running.server.server_state.connections) <= 2

    serving(artifact, test)


def test_silence_and_slowness_end(artifact: Path) -> None:
    async def test(running: Running) -> None:
        slow = await running.raw(b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc", then_close=False)
        assert slow.startswith(b"HTTP/1.1 408 ")
        assert await running.raw(b"", then_close=False) == b""

    serving(artifact, test, limits=Limits(body_s=0.2, idle_s=0.2))


def test_connections_beyond_the_limit_get_a_503(artifact: Path) -> None:
    async def test(running: Running) -> None:
        held = [await asyncio.open_connection(*running.address) for _ in range(3)]
        await asyncio.sleep(0.05)
        found = await running.raw(b"", then_close=False)
        assert found.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in found
        for _, writer in held:
            writer.close()
            await writer.wait_closed()

    serving(artifact, test, limits=Limits(connections=3))


def test_what_would_be_late_is_refused(artifact: Path) -> None:
    async def test(running: Running) -> None:
        reply = await running.client.call("POST", PATH, document(parameters={"timeout": 10}))
        assert reply.status == 503
        assert "the promise is 0.01 ms" in reply.json()["error"]
        stats = (await running.client.call("GET", "/v2/stats")).json()
        assert stats["counters"]["shed"] == 1

    serving(artifact, test)


def test_a_burst_is_batched_and_everybody_gets_their_own_answer(artifact: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 256, (1, 6), dtype=np.uint8) for _ in range(60)]
    family = load(artifact)

    async def test(running: Running) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        replies = await asyncio.gather(*(running.client.call("POST", PATH, row.tobytes(), headers) for row in rows))
        for row, reply in zip(rows, replies, strict=True):
            want = family.run(row, entry=int(reply.headers["x-subnet"]))
            np.testing.assert_allclose(np.frombuffer(reply.body, np.float32), want[0], rtol=1e-4, atol=1e-5)
        counters = (await running.client.call("GET", "/v2/stats")).json()["counters"]
        assert sum(counters["rows"]) == 60
        assert sum(counters["batches"]) < 60

    serving(artifact, test)


def test_one_input_the_network_refuses_does_not_fail_its_neighbours(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Model.run

    def moody(self: Model, subnet: int, requests: Any) -> Any:
        if any(request[0][0, 0] == 255 for request in requests):
            raise ValueError("index 255 is out of bounds\nmore")
        return run(self, subnet, requests)

    monkeypatch.setattr(Model, "run", moody)

    async def test(running: Running) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        bodies = [bytes([255 if n == 3 else n, 1, 2, 3, 4, 5]) for n in range(10)]
        replies = await asyncio.gather(*(running.client.call("POST", PATH, body, headers) for body in bodies))
        assert [reply.status for reply in replies] == [400 if n == 3 else 200 for n in range(10)]
        assert replies[3].json()["error"] == "the network refused this input: index 255 is out of bounds"

    serving(artifact, test)


def test_reload_swaps_without_errors_and_a_damaged_artifact_changes_nothing(artifact: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(artifact, tmp_path / "net.pliant"))

    async def test(running: Running) -> None:
        before = running.service.engine
        sent = [asyncio.create_task(running.client.call("POST", PATH, document())) for _ in range(20)]
        assert (await running.client.call("POST", "/v2/repository/models/Net/load")).status == 200
        assert {reply.status for reply in await asyncio.gather(*sent)} == {200}
        after = running.service.engine
        assert after is not before
        (copied / "weights.bin").write_bytes(b"nothing")
        broken = await running.client.call("POST", "/v2/repository/models/Net/load")
        assert broken.status == 400
        assert "weights.bin" in broken.json()["error"]
        assert running.service.engine is after
        assert (await running.client.call("POST", PATH, document())).status == 200

    serving(copied, test)


def test_draining_is_told_and_what_is_under_way_is_answered(artifact: Path) -> None:
    async def test(running: Running) -> None:
        sent = [asyncio.create_task(running.client.call("POST", PATH, document())) for _ in range(20)]
        await asyncio.sleep(0.01)
        running.server.drain()
        await asyncio.sleep(0.05)
        ready = await running.client.call("GET", "/v2/health/ready")
        assert ready.status == 503
        assert ready.headers["connection"] == "close"
        assert (await running.client.call("GET", "/v2/health/live")).status == 200
        assert {reply.status for reply in await asyncio.gather(*sent)} == {200}
        await asyncio.sleep(0.6)
        with pytest.raises(ConnectionError):
            await running.client.call("GET", "/v2")

    serving(artifact, test)


def test_the_load_generator_counts_everything(artifact: Path) -> None:
    async def test(running: Running) -> None:
        target = await discover(running.client)
        assert target.capacity(1) > 0
        phases = [Phase(100, 0.5), Phase(200, 0.5)]
        samples = await drive(running.client, target, phases, rule="round_robin")
        figures = told(samples, phases, target)
        assert 100 < figures["offered"] < 200
        assert figures["answered"] == figures["offered"]
        assert set(figures["subnets"]) == {"0", "1", "2"}
        assert [part["offered"] for part in figures["phases"]] == [
            sum(sample.at < 0.5 for sample in samples), sum(sample.at >= 0.5 for sample in samples)
        ]  # fmt: skip
        body, headers = body_of(target, 2)
        reply = await running.client.call("POST", target.path, body, headers)
        split = int(reply.headers["inference-header-content-length"])
        assert len(reply.body) - split == 2 * 3 * 4

    serving(artifact, test)


def test_a_dead_server_is_failures_not_an_exception(artifact: Path) -> None:
    async def test(running: Running) -> None:
        target = await discover(running.client)
        gone = Client("http://127.0.0.1:9")
        samples = await drive(gone, target, [Phase(100, 0.2)])
        assert {sample.outcome for sample in samples} == {"failed"}

    serving(artifact, test)
    with pytest.raises(ValueError, match="give an address"):
        Client("localhost:8000")


def test_the_routes_under_another_asgi_server(artifact: Path) -> None:
    async def main() -> None:
        service = Service(artifact, Model(load(artifact), TABLE), Settings(slo_s=30.0), metrics=Metrics(30.0))
        transport = httpx2.ASGITransport(create_app(service, Limits(body=1000)))
        async with httpx2.AsyncClient(transport=transport, base_url="http://a") as client:
            reply = await client.post(PATH, content=document())
            assert reply.status_code == 200
            assert reply.headers["x-subnet"] == "2"
            assert (await client.post(PATH, content=b"x" * 2000)).status_code == 413
        await service.close()

    asyncio.run(main())
