"""The explorer's server: the page, and answers for it, over HTTP on this machine.

    GET  /, /assets/...                 the built page (page.py)
    GET  /api/QUESTION?name=value&...   a parcel (parcel.py)
    POST /api/run/JOB, a JSON object    server-sent events (streams.py)

Who may ask is settled in guard.py, before anything is looked at; how long asking may take, in connection.py. Nothing
is computed on the thread that passes bytes on (desk.py): a slow client or a long job keeps nobody else waiting. Whoever
goes away has their question given up; closing gives up all of them.

Errors are JSON: {"message": a sentence}. An error of ours is told as it is, with status 400; of anything else the
server's terminal has the traceback, and the client hears no more than that.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router

from saccade.errors import ArgumentError, SaccadeError
from saccade.explorer import page
from saccade.explorer.connection import IDLE_SECONDS, Connection
from saccade.explorer.desk import ClosedError, Desk, FullError
from saccade.explorer.explorer import JOBS, QUESTIONS, Explorer
from saccade.explorer.guard import Guard, Refusal, refused
from saccade.explorer.parcel import pack
from saccade.explorer.streams import Events, News
from saccade.explorer.work import Asked

if TYPE_CHECKING:
    from starlette.types import Receive

T = TypeVar("T")

QUESTION_THREADS, QUESTION_LINE = 4, 64
JOB_THREADS, JOB_LINE = 2, 8
LARGEST_BODY = 4 << 20  # bytes
BODY_SECONDS = 15.0  # for a body to arrive
GRACE_SECONDS = 0.5  # for computations to notice that the server closes; one may have a process of its own to end

NO_STORE = {"Cache-Control": "no-store"}
LASTING = {"Cache-Control": "private, max-age=31536000, immutable"}
CLOSING = "The server is closing."
FAILED = "Something went wrong here. The terminal that “saccade explore” was started in says what."


class Service:
    """What is served: an ASGI application, `app`, which a `Guard` has to stand before.

    Args:
        explorer: who answers.
        folder: the built page, see `page.BUILT`.
    """

    def __init__(self, explorer: Explorer, folder: Path) -> None:
        self._explorer, self._folder = explorer, folder
        self._questions = Desk("question", threads=QUESTION_THREADS, line=QUESTION_LINE)
        self._jobs = Desk("job", threads=JOB_THREADS, line=JOB_LINE)
        self._closing = asyncio.Event()
        api = [Route("/{question}", self._answer, methods=["GET"]), Route("/run/{job}", self._run, methods=["POST"])]
        self.app = Starlette(
            routes=[
                Mount("/api", Router(api, redirect_slashes=False)),
                Route("/{path:path}", self._file, methods=["GET"]),
            ],
            exception_handlers=dict.fromkeys((Refusal, SaccadeError, HTTPException, Exception), _explained),
        )

    def close(self) -> None:
        """Give up all that is being computed, and take no more. To be called on the event loop."""
        self._closing.set()
        self._questions.close()
        self._jobs.close()

    def join(self, seconds: float) -> None:
        """Wait for the computations to end, after `close`, and no longer than that."""
        self._questions.join(seconds / 2)
        self._jobs.join(seconds / 2)

    async def _file(self, request: Request) -> Response:
        found = page.find(request.path_params["path"], self._folder)
        if found is not None:
            return Response(found.content, media_type=found.kind, headers=LASTING if found.lasting else NO_STORE)
        try:
            page.check_built(self._folder)
        except SaccadeError as error:
            return PlainTextResponse(f"saccade: {error}\n", HTTPStatus.SERVICE_UNAVAILABLE, NO_STORE)
        raise Refusal(HTTPStatus.NOT_FOUND, "The page has no such file.")

    async def _answer(self, request: Request) -> Response:
        question = _known("question", request.path_params["question"], QUESTIONS)
        parameters = _parameters(request)
        given_up = threading.Event()

        def work(cancelled: Asked) -> bytes:
            return pack(self._explorer.answer(question, parameters, cancelled))

        content = await self._watched(given_up, _taken(self._questions, work, given_up), request.receive)
        return Response(content, media_type="application/octet-stream", headers=NO_STORE)

    async def _run(self, request: Request) -> Response:
        job = _known("job", request.path_params["job"], JOBS)
        parameters = await _body(request)
        given_up, news = threading.Event(), News()

        def work(cancelled: Asked) -> str:
            return base64.b64encode(pack(self._explorer.run(job, parameters, news.tell, cancelled))).decode()

        waits = self._jobs.busy
        taken = _taken(self._jobs, work, given_up)
        return Events(taken, news, waits=waits, watch=partial(self._watched, given_up), explain=_sentence)

    async def _watched(self, given_up: threading.Event, work: Awaitable[T], receive: Receive) -> T:
        """What some work finds; it is given up as soon as the client is gone or the server closes.

        Raises:
            Refusal: it was given up.
        """
        working = asyncio.ensure_future(work)
        tasks = (working, asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self._closing.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._closing.is_set() or not working.done():
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, CLOSING)  # a client that is gone does not hear it
            return working.result()
        finally:
            given_up.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _known(kind: str, name: str, names: Collection[str]) -> str:
    if name not in names:
        raise Refusal(HTTPStatus.NOT_FOUND, f"There is no {kind} {name[:100]!r}; expected one of {', '.join(names)}.")
    return name


def _taken(desk: Desk, work: Callable[[Asked], T], given_up: threading.Event) -> asyncio.Future[T]:
    try:
        return desk.take(work, given_up)
    except FullError:
        raise Refusal(
            HTTPStatus.TOO_MANY_REQUESTS, "Too much is being computed already. Try again when some of it is done."
        ) from None
    except ClosedError:
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, CLOSING) from None


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


# ------------------------------------------------------------------------------------------------ what comes


def _parameters(request: Request) -> Mapping[str, str]:
    """A question's parameters, from the link."""
    try:
        pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The parameters are not UTF-8, percent-encoded.") from error
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise Refusal(HTTPStatus.BAD_REQUEST, "A parameter is given twice.")
    return parameters


async def _body(request: Request) -> Mapping[str, Any]:
    """A job's parameters, from the body."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _read(request)
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"The body did not arrive in {BODY_SECONDS:g} s.") from None
    try:
        parameters = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"The body is no JSON: {_short(error)}.") from error
    if not isinstance(parameters, dict):
        raise Refusal(HTTPStatus.BAD_REQUEST, "The body is no JSON object; expected the job's parameters by name.")
    return parameters


async def _read(request: Request) -> bytes:
    too_large = Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is too large; expected at most {LARGEST_BODY:,} bytes."
    )
    length = request.headers.get("content-length", "0")
    if len(length) > len(str(LARGEST_BODY)) or int(length) > LARGEST_BODY:
        raise too_large
    content = bytearray()
    try:
        async for chunk in request.stream():
            content += chunk
            if len(content) > LARGEST_BODY:
                raise too_large
    except ClientDisconnect:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The body was cut off.") from None
    return bytes(content)


def _short(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200]


# ------------------------------------------------------------------------------------------ what went wrong


async def _explained(request: Request, error: Exception) -> Response:
    """An error as an answer."""
    del request
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return refused(Refusal(_status(error), _sentence(error)), headers)


def _status(error: Exception) -> HTTPStatus:
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, HTTPException):
        return HTTPStatus(error.status_code)
    return HTTPStatus.BAD_REQUEST if isinstance(error, SaccadeError) else HTTPStatus.INTERNAL_SERVER_ERROR


def _sentence(error: Exception) -> str:
    """What the client is told; what only we should know goes to the terminal."""
    if isinstance(error, Refusal | SaccadeError):
        return str(error)
    if isinstance(error, HTTPException):
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return "Questions are asked with GET, jobs are begun with POST."
        return "There is nothing at this address."
    traceback.print_exception(error, file=sys.stderr)
    return FAILED


# ---------------------------------------------------------------------------------------------- the server


class Server(uvicorn.Server):
    """A server for one explorer; `run(sockets=[listening])` serves until it is interrupted or `should_exit` is set.

    Args:
        explorer: who answers.
        listening: a socket, see `listen`.
        host: what `listen` was given.
        token: what each question has to show.
        folder: the built page, see `page.BUILT`.
        started: called when questions are answered from now on.
    """

    def __init__(
        self,
        explorer: Explorer,
        listening: socket.socket,
        *,
        host: str,
        token: str,
        folder: Path,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self.service = Service(explorer, folder)
        guard = Guard(self.service.app, token=token, host=host, port=listening.getsockname()[1])
        config = uvicorn.Config(
            guard,
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,  # nobody stands before us, so whoever says that they do lies
            server_header=False,
            log_config=None,
            log_level="critical",  # what goes wrong is said by `_sentence`
            access_log=False,
            timeout_keep_alive=int(IDLE_SECONDS),
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and say so: from here on an interruption is an end, not an error."""
        await super().startup(sockets)
        self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give up what is being computed, so that no answer has to be waited for, and close."""
        self.service.close()
        await super().shutdown(sockets)
        self.service.join(GRACE_SECONDS)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; on a free port, if that is 0.

    Raises:
        ArgumentError: there is no such host here, or the port is not to be had.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ArgumentError(f"--host {host}: this machine knows no such host") from error
    try:
        return socket.create_server(where, family=family)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)  # `strerror` is Python's, and long
        raise ArgumentError(f"--host {host} --port {port} cannot be listened on: {why}") from error
