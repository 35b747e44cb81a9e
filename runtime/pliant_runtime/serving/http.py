"""uvicorn with what it leaves open: a cap on connections, limits for heads that never end, refusals that say why.

What waits in sockets is invisible to the controller, so it must not grow: connections beyond the cap get a 503 at once.
httptools reads the wire and uvloop runs the loop where they are installed; h11 and asyncio do else.
"""

import asyncio
import contextlib
import http
import logging
import signal
import sys
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pliant_runtime.serving.app import create_app
from pliant_runtime.serving.gate import CUT, HEAD_BYTES, LINGER_BYTES, LINGER_S
from pliant_runtime.serving.messages import Limits, Refusal
from pliant_runtime.serving.service import Service, log

DRAIN_MOST_S = 10


class Server(uvicorn.Server):
    """Serves a service until SIGTERM, SIGINT or `drain`.

    Args:
        service: what answers.
        limits: what one client may ask for.
        drain_s: seconds to go on serving after the signal, while load balancers notice.
    """

    def __init__(self, service: Service, limits: Limits, *, drain_s: float = 1.0) -> None:
        self.service, self.limits, self._drain_s = service, limits, drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        config = uvicorn.Config(
            create_app(service, limits), http=type("_Connection", (Guard, _protocol()), {"guarded": self}),
            ws="none", lifespan="on", log_config=None, access_log=False, server_header=False, date_header=False,
            timeout_keep_alive=max(1, round(limits.idle_s)), timeout_graceful_shutdown=DRAIN_MOST_S, backlog=1024,
        )  # fmt: skip
        super().__init__(config)
        service.connections = lambda: len(self.server_state.connections)
        _one_log()

    async def startup(self, sockets: Any = None) -> None:
        """Accept connections."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End well. uvicorn's own would end at once and then kill the process with the same signal."""
        if sig == signal.SIGINT and self.service.draining:
            self.should_exit = self.force_exit = True
        elif self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Not ready from now on; serve for `drain_s`, take no more connections, answer what is there, end."""
        if self.service.draining:
            return
        self.service.draining = True
        log("draining", seconds=self._drain_s)
        asyncio.get_running_loop().call_later(self._drain_s, self._end)

    def _end(self) -> None:
        self.should_exit = True


def _protocol() -> type[asyncio.Protocol]:
    """uvicorn's own choice may fall on parsers that this module was never tried with."""
    if not find_spec("httptools"):
        return H11Protocol
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    return HttpToolsProtocol


class Guard(H11Protocol if TYPE_CHECKING else object):  # type: ignore[misc]
    """One client. Mixed into a protocol of uvicorn's; only what these have in common is used."""

    guarded: Server

    def connection_made(self, transport: Any) -> None:
        """A client connects."""
        self._head, self._lingering = 0, 0
        super().connection_made(transport)
        limit, now_open = self.guarded.limits.connections, len(self.connections)
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(self.guarded.limits.body_s, self._silent)
        if now_open > 2 * limit:  # so many are being refused already
            transport.abort()
        elif now_open > limit:
            self.guarded.service.metrics.add("refused")
            self._refuse(Refusal(503, f"{limit} connections are open already", {"Retry-After": "1"}))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes come."""
        if self._lingering:
            self._lingering += len(data)
            if self._lingering > LINGER_BYTES:
                self.transport.abort()
            return
        before, between = self.cycle, not self._answering
        super().data_received(data)
        if not between or self._lingering:
            return
        if self.cycle is not before:
            self._head = 0
            self._unwatch()
            return
        self._head += len(data)
        if self._head > HEAD_BYTES:
            self._refuse(Refusal(431, f"address and headers have at most {HEAD_BYTES} bytes"))
        elif self._timer is None:
            self._timer = self.loop.call_later(self.guarded.limits.body_s, self._silent)

    def eof_received(self) -> bool | None:
        """The client sends no more; what it asked for is still answered."""
        if not self._answering:
            return None
        waiting = getattr(self, "pipeline", None)  # only httptools' protocol reads ahead; the last comes first
        last = waiting[0][0] if waiting else self.cycle
        last.keep_alive = False
        if last.more_body:
            last.scope[CUT] = True
            last.more_body = False
            last.message_event.set()
        return True

    def send_400_response(self, msg: str) -> None:
        """The bytes are no HTTP; in uvicorn's protocols this ends the connection without a word of why."""
        if self._answering:
            self.cycle.keep_alive = False
            if not self.cycle.more_body:  # a right request is being answered; what follows it is dropped
                self._lingering = 1
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        why = sys.exc_info()[1]  # it is called where the parser's error is caught
        self._refuse(Refusal(400, f"this is no HTTP/1.1 request{f': {why}'[:200] if why else ''}"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.disconnected

    def _silent(self) -> None:
        """Nothing whole came for too long."""
        self._timer = None
        if self._lingering:
            self.transport.abort()
        elif self._head:
            self._refuse(Refusal(408, f"the request did not come in within {self.guarded.limits.body_s:g} s"))
        elif not self._answering:
            self.transport.close()

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, send no more, and read what the client still sends, so that it sees the answer."""
        self.guarded.service.metrics.answered(refusal.status)
        self._lingering = 1
        if self.transport.is_closing():
            return
        response = refusal.response()
        lines = [f"HTTP/1.1 {response.status} {http.HTTPStatus(response.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**response.fields(), "Connection": "close"}.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + response.body)
        if self.transport.can_write_eof():
            # The other side may have closed between the check and now.
            with contextlib.suppress(OSError):
                self.transport.write_eof()
        self._unwatch()
        self._timer = self.loop.call_later(LINGER_S, self._silent)


class _Lines(logging.Handler):
    """uvicorn's words as lines of our own log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = "" if record.exc_info is None else str(record.exc_info[1])
        log("uvicorn", level=record.levelname.lower(), said=record.getMessage().strip(), error=error[:500])


def _one_log() -> None:
    """Errors of uvicorn join our log; what clients do wrong is counted instead of logged."""
    logger = logging.getLogger("uvicorn.error")
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
