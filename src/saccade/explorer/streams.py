"""A job's answer as server-sent events: how far it is, then what it found.

event: progress        {"share": 0.4, "what": "reading"}; the latest only, a few in a second
event: result          a parcel in base64: the format carries text
event: error           {"message": a sentence}
: still here           a comment, where nothing else was sent for a while: a connection that is gone is noticed so
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

HEARTBEAT_SECONDS = 10.0
PACE_SECONDS = 0.05  # between two reports of progress


class News:
    """How far a job is: told by the thread that works, read by the one that streams. To be made on the latter."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._latest: tuple[float, str] | None = None

    def tell(self, share: float, what: str) -> None:
        """Say how far it is, from any thread."""
        self._latest = share, what
        self.wake()

    def wake(self) -> None:
        """Let `next` return, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._changed.set)

    async def next(self, seconds: float) -> tuple[float, str] | None:
        """How far it is, when that has changed; None if it did not change in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()
        latest, self._latest = self._latest, None
        return latest


class Events(Response):
    """The response that streams them.

    Args:
        work: what the job will have found, as base64.
        news: how far it is.
        waits: whether it has to wait for others first.
        watch: what runs the stream while it is wanted: (stream, receive), raising if it is not wanted any more.
        explain: the sentence for what went wrong.
    """

    def __init__(
        self,
        work: asyncio.Future[str],
        news: News,
        *,
        waits: bool,
        watch: Callable[[Any, Receive], Any],
        explain: Callable[[Exception], str],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store"}, media_type="text/event-stream")
        self._work, self._news, self._waits, self._watch, self._explain = work, news, waits, watch, explain
        work.add_done_callback(lambda _: news.wake())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        del scope
        headers = [header for header in self.raw_headers if header[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await self._watch(self._tell(send), receive)
            last = _event("result", self._work.result())
        except Exception as error:  # noqa: BLE001  `explain` reports those that are nobody's fault but ours
            last = _event("error", json.dumps({"message": self._explain(error)}))
        finally:
            self._work.cancel()  # takes it out of the line
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _tell(self, send: Send) -> None:
        """Send how far the job is, until it is done."""
        if self._waits:
            await _send(send, _progress(0, "waiting for other computations to end"))
        while not self._work.done():
            latest = await self._news.next(HEARTBEAT_SECONDS)
            if latest is not None:
                await _send(send, _progress(*latest))
                await asyncio.wait({self._work}, timeout=PACE_SECONDS)
            elif not self._work.done():
                await _send(send, b": still here\n\n")


async def _send(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})


def _progress(share: float, what: str) -> bytes:
    return _event("progress", json.dumps({"share": share, "what": what}))


def _event(name: str, data: str) -> bytes:
    """`data` has no line breaks."""
    return f"event: {name}\ndata: {data}\n\n".encode()
