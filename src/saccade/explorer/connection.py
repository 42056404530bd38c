"""A connection to the server: how many there may be, and how long one may keep us waiting.

uvicorn waits for ever for the first request of a connection, and for the rest of one that was begun. Whoever opens
connections and sends nothing, or a byte now and then, would use up what the process may have open.
"""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from saccade.explorer.guard import RAW_HEADERS

MOST_CONNECTIONS = 256  # a browser opens six
IDLE_SECONDS = 15.0  # between requests, and from a request's first byte to the end of its head
FLUSH_SECONDS = 60.0  # for what was answered to be taken, once nothing is asked any more


class Connection(H11Protocol):
    """HTTP/1.1 with bounds."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Someone has connected."""
        super().connection_made(transport)
        # Else the body of a short answer waits until its head is acknowledged, some 40 ms. asyncio sees to that for
        # sockets that were told their protocol; `socket.create_server` does not tell them.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Someone has sent something."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """All of an answer is on its way."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        """Have the clock run while no whole request is here, from when that began."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(IDLE_SECONDS, self._too_late)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self.transport.close()  # when what was answered has been taken
        self._deadline = self.loop.call_later(FLUSH_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as everything else is answered: with JSON."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        status = HTTPStatus.BAD_REQUEST
        content = json.dumps({"message": msg}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
            *RAW_HEADERS,
        ]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
