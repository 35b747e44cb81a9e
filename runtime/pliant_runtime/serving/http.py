"""HTTP/1.1 on asyncio. h11 reads the wire; this file keeps limits, deadlines and order.

A connection is read again only when its request was answered, bodies are read to their end before any refusal (a client
that is still sending would see a reset instead of the answer), and connections beyond the limit get a 503 at once: what
waits in sockets is invisible to the controller, so it must not grow.
"""

import asyncio
import socket
import time
from typing import Any

import h11

from pliant_runtime.serving.app import App
from pliant_runtime.serving.messages import Refusal, Request, Response
from pliant_runtime.serving.service import log

LINGER_S, LINGER_BYTES = 2.0, 64 << 20
SWEEP_S = 0.5
HEAD_BYTES = 16 << 10


class Server:
    """Accepts connections for an app.

    Args:
        app: what answers.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        app.service.connections = lambda: len(self.connections)

    async def start(self, listening: socket.socket) -> None:
        """Accept from a bound socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=listening, backlog=1024)
        self.spawn(self._sweep())
        self.spawn(self.app.service.watch())

    def spawn(self, work: Any) -> None:
        """Run a task and keep it alive."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log("task died", level="error", error=f"{type(error).__name__}: {error}")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.expire(now)

    async def drain(self, *, still_s: float, most_s: float = 10.0) -> None:
        """End well: not ready, serve for `still_s`, take no more connections, answer what is there, close.

        Args:
            still_s: seconds to go on serving while load balancers notice.
            most_s: seconds after which what is left is cut.
        """
        self.app.service.draining = True
        log("draining", seconds=still_s)
        await asyncio.sleep(still_s)
        if self._server is not None:
            self._server.close()
        until = time.monotonic() + most_s
        while any(connection.busy for connection in self.connections) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.close()
        until = time.monotonic() + 1.0  # answers on their way
        while self.connections and time.monotonic() < until:
            await asyncio.sleep(0.005)
        for connection in list(self.connections):
            connection.close(now=True)
        await asyncio.wait_for(self.app.service.close(), timeout=most_s)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Server) -> None:
        self._server, self._limits = server, server.app.limits
        self._wire = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._body, self._size = bytearray(), 0
        self._lingering, self._paused = 0, False
        self._transport: Any = None
        self.busy = self._head = False
        self._until = 0.0

    # -- asyncio -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client connects."""
        self._transport = transport
        self._until = time.monotonic() + self._limits.body_s
        open_now = len(self._server.connections)
        if open_now >= 2 * self._limits.connections:  # so many are being refused already
            transport.abort()
            return
        full = open_now >= self._limits.connections
        self._server.connections.add(self)
        if full:
            self._server.app.service.metrics.add("refused")
            self._refuse(Refusal(503, f"{self._limits.connections} connections are open already", {"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Bytes come."""
        if self._lingering:
            self._lingering += len(data)
            if self._lingering > LINGER_BYTES:
                self._transport.abort()
            return
        try:
            self._wire.receive_data(data)
        except h11.RemoteProtocolError as error:
            self._malformed(error)
            return
        if self.busy:
            self._paused = True
            self._transport.pause_reading()
        else:
            self._advance()

    def eof_received(self) -> bool:
        """The client sends no more; what it asked for is still answered."""
        if self._lingering:
            return False
        try:
            self._wire.receive_data(b"")
        except h11.RemoteProtocolError:
            return False
        if self.busy:
            return True
        self._advance()
        return self.busy

    def expire(self, now: float) -> None:
        """Close what has been silent, or has been sending, for too long."""
        if self.busy or now < self._until:
            return
        if self._lingering or self._request is None:
            self._transport.abort() if self._lingering else self._transport.close()
        else:
            self._refuse(Refusal(408, f"the request did not come in within {self._limits.body_s:g} s"))

    def close(self, *, now: bool = False) -> None:
        """Close at the end; with `now` what is not sent yet is lost."""
        if now:
            self._transport.abort()
        else:
            self._transport.close()

    # -- requests ----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        while not self.busy and not self._lingering:
            try:
                event = self._wire.next_event()
            except h11.RemoteProtocolError as error:
                self._malformed(error)
                return
            if event is h11.NEED_DATA:
                if self._wire.they_are_waiting_for_100_continue:
                    told = self._wire.send(h11.InformationalResponse(status_code=100, headers=[]))
                    self._transport.write(told)
                return
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                self._transport.close()
                return
            self._take(event)

    def _take(self, event: Any) -> None:
        if isinstance(event, h11.Request):
            self._request, self._body, self._size = event, bytearray(), 0
            self._head = event.method == b"HEAD"
            self._until = time.monotonic() + self._limits.body_s
            length = dict(event.headers).get(b"content-length", b"0")
            if event.http_version not in (b"1.0", b"1.1"):
                self._refuse(Refusal(505, "this server speaks HTTP/1.1"))
            elif len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > HEAD_BYTES:
                self._refuse(Refusal(431, f"address and headers have at most {HEAD_BYTES} bytes"))
            elif int(length) > self._limits.body:
                self._too_large()
        elif isinstance(event, h11.Data):
            self._size += len(event.data)
            if self._size > self._limits.body:
                self._too_large()
            else:
                self._body += event.data
        elif isinstance(event, h11.EndOfMessage) and self._request is not None:
            self.busy = True
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._request.headers}
            method, path = self._request.method.decode("latin-1"), self._request.target.decode("latin-1")
            self._server.spawn(self._answer(Request(method, path, headers, bytes(self._body))))
            self._body = bytearray()

    async def _answer(self, request: Request) -> None:
        response = await self._server.app.respond(request)
        self._request = None
        if not self._send(response):
            return
        self.busy = False
        if self._wire.our_state is h11.MUST_CLOSE or self._wire.their_state is not h11.DONE:
            self._transport.close()
            return
        self._wire.start_next_cycle()
        self._until = time.monotonic() + self._limits.idle_s
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        self._advance()

    def _send(self, response: Response, *, last: bool = False) -> bool:
        headers = [("Content-Type", response.kind), ("Content-Length", str(len(response.body)))]
        headers += list(response.headers.items())
        if last or self._server.app.service.draining:
            headers.append(("Connection", "close"))
        if self._transport.is_closing():
            return False
        # h11 refuses an answer where the wire is past one.
        try:
            pieces = [self._wire.send(h11.Response(status_code=response.status, headers=headers))]
            if not self._head:
                pieces.append(self._wire.send(h11.Data(data=response.body)))
            pieces.append(self._wire.send(h11.EndOfMessage()))
        except h11.LocalProtocolError:
            self._transport.close()
            return False
        self._transport.write(b"".join(piece for piece in pieces if piece))
        return True

    # -- refusals of the wire ----------------------------------------------------------------------------------------

    def _too_large(self) -> None:
        self._refuse(Refusal(413, f"a body has at most {self._limits.body} bytes"))

    def _malformed(self, error: h11.RemoteProtocolError) -> None:
        self._refuse(Refusal(error.error_status_hint, f"this is no HTTP/1.1 request: {str(error)[:200]}"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, send no more, and read what the client still sends, so that it sees the answer."""
        self._server.app.service.metrics.answered(refusal.status)
        if self._wire.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(refusal.response(), last=True)
        self._request = None
        self._lingering = 1
        self._until = time.monotonic() + LINGER_S
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
