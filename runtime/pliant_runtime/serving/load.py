"""A load generator with an open loop: requests leave when they are due, whether earlier ones were answered or not.

Latency is counted from the time a request was due, so that a server that stalls cannot hide the wait of those behind
(Tene, "How NOT to Measure Latency": coordinated omission).
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from pliant_runtime.serving.model import DATATYPES
from pliant_runtime.serving.simulate import arrivals
from pliant_runtime.serving.trace import ANSWERED, FAILED, SHED, Phase, Sample, split, summary

RULES = ("server", "largest", "smallest", "round_robin")
"""Who chooses the sub-network: the server, or the client by pinning every request."""


@dataclass(frozen=True)
class Reply:
    """Status, headers in lower case, and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON data."""
        return json.loads(self.body)


class Client:
    """HTTP/1.1 connections to one server, kept open and used again.

    Args:
        url: such as http://127.0.0.1:8000.
        connections: most that are open at once; further requests wait, and their wait counts.

    Raises:
        ValueError: no http address.
    """

    def __init__(self, url: str, *, connections: int = 128) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"give an address such as http://127.0.0.1:8000, got {url!r}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(connections)

    async def call(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """One request and its reply.

        Raises:
            OSError: no connection, or it broke.
        """
        told = {"Host": self._host, "Content-Length": str(len(body)), **(headers or {})}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in told.items())
        async with self._slots:
            while True:
                old = bool(self._free)
                if old:
                    reader, writer = self._free.pop()
                else:
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(head.encode("latin-1") + b"\r\n" + body)
                    reply = await _read(reader)
                except (OSError, asyncio.IncompleteReadError) as error:
                    writer.close()
                    # A server may close an idle connection at the very moment it is used again.
                    if old and isinstance(error, asyncio.IncompleteReadError) and not error.partial:
                        continue
                    raise ConnectionError("the connection broke") from error
                if reply.headers.get("connection", "").lower() == "close":
                    writer.close()
                else:
                    self._free.append((reader, writer))
                return reply

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._free:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in self._free), return_exceptions=True)
        self._free.clear()


async def _read(reader: asyncio.StreamReader) -> Reply:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(first.split(" ")[1]), headers, body)


@dataclass(frozen=True)
class Target:
    """A served model, as it describes itself."""

    name: str
    inputs: Sequence[Mapping[str, Any]]
    stats: Mapping[str, Any] = field(repr=False)

    @property
    def path(self) -> str:
        """Where inferences go."""
        return f"/v2/models/{quote(self.name, safe='')}/infer"

    def capacity(self, rows: int) -> float:
        """Requests per second that the largest sub-network alone can answer in one process."""
        return float(self.stats["lanes"] / (self.stats["row_seconds"][self.stats["ladder"][-1]] * rows))


async def discover(client: Client) -> Target:
    """The one model of a server.

    Raises:
        OSError: nobody answers, or no such server.
    """
    listed = await client.call("POST", "/v2/repository/index")
    if listed.status != 200:
        raise ConnectionError(f"this is no pliant server (status {listed.status} for /v2/repository/index)")
    name = listed.json()[0]["name"]
    metadata = (await client.call("GET", f"/v2/models/{quote(name, safe='')}")).json()
    return Target(name, metadata["inputs"], (await client.call("GET", "/v2/stats")).json())


def body_of(target: Target, rows: int, *, pin: int | None = None, seed: int = 0) -> tuple[bytes, dict[str, str]]:
    """A binary inference of random rows: body and headers."""
    draw = np.random.default_rng(seed)
    names = {told: dtype for dtype, told in DATATYPES.items()}
    tensors, tail = [], []
    for port in target.inputs:
        dtype = np.dtype(names[port["datatype"]])
        shape = [rows, *(1 if side == -1 else side for side in port["shape"][1:])]
        if dtype.kind == "f":
            array = draw.standard_normal(shape).astype(dtype)
        elif dtype.name == "uint8":
            array = draw.integers(0, 256, shape, dtype=np.uint8)
        else:
            array = np.zeros(shape, dtype=dtype)
        parameters = {"binary_data_size": array.nbytes}
        tensors.append({"name": port["name"], "datatype": port["datatype"], "shape": shape, "parameters": parameters})
        tail.append(array.tobytes())
    document: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if pin is not None:
        document["parameters"]["subnet"] = pin
    text = json.dumps(document, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    return text + b"".join(tail), headers


def _pins(rule: str, target: Target) -> Callable[[int], int | None]:
    ladder = target.stats["ladder"]
    rules: dict[str, Callable[[int], int | None]] = {
        "server": lambda _: None,
        "largest": lambda _: int(ladder[-1]),
        "smallest": lambda _: int(ladder[0]),
        "round_robin": lambda number: int(ladder[number % len(ladder)]),
    }
    if rule not in rules:
        raise ValueError(f"no rule {rule!r}; there are {', '.join(rules)}")
    return rules[rule]


async def drive(
    client: Client, target: Target, phases: Sequence[Phase], *, rows: int = 1, rule: str = "server", seed: int = 0,
    patience_s: float = 60.0,
) -> list[Sample]:  # fmt: skip
    """Send the requests of all phases and return what became of each.

    Args:
        client: connections to the server.
        target: the model.
        phases: the load.
        rows: samples per request.
        rule: see `RULES`.
        seed: of arrivals and data.
        patience_s: seconds after which a request that was not answered has failed.

    Raises:
        ValueError: an unknown rule.
    """
    pin = _pins(rule, target)
    bodies = {p: body_of(target, rows, pin=p, seed=seed) for p in {pin(n) for n in range(len(target.stats["ladder"]))}}
    samples: list[Sample] = []
    begun = time.perf_counter()

    async def one(due: float, number: int) -> None:
        body, headers = bodies[pin(number)]
        outcome, subnet = FAILED, None
        try:
            async with asyncio.timeout(patience_s):
                reply = await client.call("POST", target.path, body, headers)
            outcome = ANSWERED if reply.status == 200 else SHED if reply.status == 503 else FAILED
            subnet = int(reply.headers["x-subnet"]) if outcome == ANSWERED else None
        except OSError:
            pass
        samples.append(Sample(due, max(0.0, time.perf_counter() - begun - due), outcome, subnet))

    tasks = set()
    for number, due in enumerate(arrivals(phases, seed)):
        while (ahead := begun + due - time.perf_counter()) > 0:
            await asyncio.sleep(ahead)
        tasks.add(task := asyncio.create_task(one(due, number)))
        task.add_done_callback(tasks.discard)
        if number % 16 == 0:
            await asyncio.sleep(0)
    if tasks:
        await asyncio.wait(tasks)
    return sorted(samples, key=lambda sample: sample.at)


def told(samples: Sequence[Sample], phases: Sequence[Phase], target: Target) -> dict[str, Any]:
    """Figures of a run as JSON data, whole and per phase."""
    quality = dict(enumerate(target.stats["quality"]))
    slo_s = float(target.stats["slo_s"])
    parts = [summary(part, slo_s, quality) for part in split(samples, phases)]
    return summary(samples, slo_s, quality) | {"phases": parts}
