"""serve-fuzz: malformed requests against a real server: raw bytes, JSON that is nearly right, and schemathesis.

Every request must be answered with a status below 500 (or 503) or, for raw bytes, the connection be closed; the server
must live on and answer a right request again and again. What schemathesis makes of the description of the routes
(`described`) must also be answered as it says (`undescribed` counts those that are not).
"""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import requests as blocking
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Err
from schemathesis.specs.openapi import checks

from bench._common import Outcome, one_thread
from bench._serving import artifact, server
from pliant_runtime.serving.load import Client, body_of, discover

REQUIRED = ("requests", "crashes", "hangs", "server_errors", "silent", "unexplained", "undescribed")
SLO_S, LANES, PATIENCE_S, RELOAD_S = 1.0, 16, 20.0, 300.0
DESCRIBED = 0.2  # share of the requests that schemathesis makes
RELOADS = 5  # a load reads the artifact again, which takes seconds
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e308, 10**40, "", "x", "\u0000", "\ud83d", [], {}, [[]], [None], {"a": 1}, "FP32", "BYTES",
    [-1], [1, 2, 3], [2**31], [0], ["1"], [[1], [1, 2]],
)  # fmt: skip
CONFORM = [
    checks.status_code_conformance, checks.content_type_conformance, checks.response_headers_conformance,
    checks.response_schema_conformance,
]  # fmt: skip


def run(requests: int = 100_000) -> Outcome:
    """The row."""
    one_thread()
    described = round(DESCRIBED * requests)
    with server(artifact(), SLO_S) as (running, address):
        counts = asyncio.run(_fuzz(address, requests - described))
        _describe(address, described, counts)
        counts["crashes"] += int(running.poll() is not None)
    return Outcome(counts, "mutated requests", [0], settings={"lanes": LANES, "described": DESCRIBED})


def _describe(address: str, requests: int, counts: dict[str, float]) -> None:
    """Requests that schemathesis draws from /openapi.json, right and wrong ones, for every operation."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    found = []
    for result in schema.get_all_operations():
        if isinstance(result, Err):
            raise result.err()
        found.append(result.ok())
    infer = schema["/v2/models/{name}/infer"]["POST"]
    every = [(operation, mode) for operation in found for mode in schemathesis.GenerationMode]
    until = counts["requests"] + requests
    with blocking.Session() as session:
        for operation, mode in every:
            most = RELOADS if operation.path.endswith("/load") else max(1, requests // (2 * len(every)))
            _drawn(operation, mode, most, 0, _sender(address, session, counts))
        number = 0
        while counts["requests"] < until:  # operations without anything to vary leave their share to inference
            number += 1
            mode = list(schemathesis.GenerationMode)[number % 2]
            most = round(min(1000, until - counts["requests"]))
            _drawn(infer, mode, most, number, _sender(address, session, counts))


def _drawn(operation: Any, mode: Any, most: int, number: int, send: Callable[[Any], None]) -> None:
    sends = given(case=operation.as_strategy(generation_mode=mode))(lambda case: send(case))
    quiet = settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    try:
        seed(number)(quiet(sends))()
    except Unsatisfiable:
        return  # nothing about this operation can be wrong
    except blocking.ConnectionError as error:
        raise ConnectionError(f"{operation.label}: the server is gone") from error


def _sender(address: str, session: blocking.Session, counts: dict[str, float]) -> Callable[[Any], None]:
    def send(case: Any) -> None:
        counts["requests"] += 1
        counts["described"] += 1
        try:
            patience = RELOAD_S if case.path.endswith("/load") else PATIENCE_S
            reply = case.call(base_url=address, session=session, timeout=patience)
        except blocking.Timeout:
            counts["hangs"] += 1
            print(f"  no answer to {case.method} {case.path} {str(case.body)[:600]}", flush=True)
            return
        except (ValueError, blocking.exceptions.InvalidHeader):
            return  # the client itself refuses to send it
        counts["accepted" if reply.status_code < 400 else "refused"] += 1
        counts["server_errors"] += reply.status_code >= 500 and reply.status_code != 503
        counts["unexplained"] += reply.status_code >= 400 and b'"error"' not in reply.content and case.method != "HEAD"
        try:
            case.validate_response(reply, checks=CONFORM)
        except (Failure, FailureGroup) as failure:
            if not counts["undescribed"]:
                print(f"  not as described: {str(failure)[:600]}", flush=True)
            counts["undescribed"] += 1

    return send


async def _fuzz(address: str, requests: int) -> dict[str, float]:
    client = Client(address)
    target = await discover(client)
    right = body_of(target, 1)
    counts = dict.fromkeys((*REQUIRED, "refused", "accepted", "described"), 0.0)
    host, port = address.removeprefix("http://").split(":")

    async def lane(seed: int) -> None:
        draw = random.Random(seed)
        for number in range(requests // LANES):
            raw = number % 2 == 0
            make = _bytes if raw else _json
            sent = make(draw, target.path, right)
            try:
                found = await asyncio.wait_for(_exchange(host, int(port), sent), PATIENCE_S)
            except TimeoutError:
                counts["hangs"] += 1
                print(f"  no answer to {sent[:600]!r}", flush=True)
                continue
            except OSError:
                found = b""
            counts["requests"] += 1
            _count(counts, found)
            if number % 100 == 99 and (await client.call("POST", target.path, *right)).status not in (200, 503):
                counts["crashes"] += 1

    await asyncio.gather(*(lane(seed) for seed in range(LANES)))
    await client.close()
    return counts


def _count(counts: dict[str, float], found: bytes) -> None:
    if not found.startswith(b"HTTP/1.1 "):
        counts["silent"] += 1
        return
    status = int(found[9:12])
    if status >= 500 and status not in (503, 505):
        counts["server_errors"] += 1
    counts["accepted" if status < 400 else "refused"] += 1
    if status >= 400 and b'"error"' not in found and b"\r\n\r\n" in found and not found.endswith(b"\r\n\r\n"):
        counts["unexplained"] += 1


async def _exchange(host: str, port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(sent)
        writer.write_eof()
        return await reader.read(65536)
    finally:
        writer.close()


def _bytes(draw: random.Random, path: str, right: tuple[bytes, dict[str, str]]) -> bytes:
    """A right request with bytes changed, cut, doubled or put in; sometimes noise alone."""
    body, headers = right
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    sent = bytearray(head.encode() + body)
    if draw.random() < 0.1:
        return draw.randbytes(draw.randrange(1, 400))
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(min(len(sent), len(head) + 200)) if sent else 0
        match draw.randrange(5):
            case 0:
                sent[place : place + 1] = draw.randbytes(1)
            case 1:
                del sent[place : place + draw.randrange(1, 30)]
            case 2:
                sent[place:place] = draw.randbytes(draw.randrange(1, 10))
            case 3:
                sent[place:place] = sent[place : place + draw.randrange(1, 60)]
            case _:
                del sent[place:]
    return bytes(sent)


def _json(draw: random.Random, path: str, right: tuple[bytes, dict[str, str]]) -> bytes:
    """A right document with members replaced, removed or added."""
    body, headers = right
    split = int(headers["Inference-Header-Content-Length"])
    document = json.loads(body[:split])
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.choice((document, *(each for each in document.get("inputs") or [] if isinstance(each, dict)))
                            if isinstance(document.get("inputs"), list) else (document,))  # fmt: skip
        name = draw.choice([*place, "data", "outputs", "parameters", "id", "shape"])
        if draw.random() < 0.2:
            place.pop(name, None)
        else:
            extra = {
                "subnet": draw.choice(STRANGE),
                "timeout": draw.choice(STRANGE),
                "binary_data_size": draw.choice(STRANGE),
            }
            place[name] = draw.choice((*STRANGE, extra))
    text = json.dumps(document).encode()
    tail = body[split:] if draw.random() < 0.7 else draw.randbytes(draw.randrange(40))
    length = len(text) if draw.random() < 0.9 else draw.randrange(-5, 2 * len(text))
    told = {"Inference-Header-Content-Length": str(length), "Content-Type": draw.choice(("application/json", "x", ""))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    size = len(text) + len(tail)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n{lines}\r\n"
    return head.encode() + text + tail
