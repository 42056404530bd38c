"""Who may ask the server: the person who was given its link, in the page that came from it, and nobody else.

A server on loopback can be reached by every program of the machine, and through the browser by every site that is open
in it. So each request has to show

    the token            in its Authorization header, which no other site's page and no other user knows
    a Host of ours       a name that somebody points at 127.0.0.1 (DNS rebinding) is refused
    an Origin of ours    if it has one; and Sec-Fetch-Site, which browsers add, must not say that another site asks

and the page may fetch from here only (Content-Security-Policy), whatever gets into it. The page's own files hold no
secret and need no token: a browser could not send it for them.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104  to know them when they are asked for
SHORTEST_TOKEN = 16  # characters
LONGEST_TARGET = 8192  # bytes; a question's parameters take a tenth of it

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

API = "/api/"


class Refusal(Exception):  # noqa: N818  a refused request is no fault of ours
    """A request that is not served: the status and a sentence that says why."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Lets requests through to an application, or refuses them; adds `HEADERS` to every answer.

    Args:
        app: what is guarded.
        token: what a question has to show.
        host: the host that the server was told to bind.
        port: the port that it has.
    """

    def __init__(self, app: ASGIApp, *, token: str, host: str, port: int) -> None:
        self.app = app
        self._token = token.encode()
        self._hosts = Hosts(host, port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *RAW_HEADERS]}
            await send(message)

        try:
            self._check(scope)
        except Refusal as refusal:
            await refused(refusal)(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        if len(scope["raw_path"]) + len(scope["query_string"]) > LONGEST_TARGET:
            raise Refusal(
                HTTPStatus.REQUEST_URI_TOO_LONG, f"The address is too long; expected at most {LONGEST_TARGET:,} bytes."
            )
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if host not in self._hosts:
            raise Refusal(HTTPStatus.FORBIDDEN, self._hosts.why_not(host))
        asks = scope["path"].startswith(API)
        _check_site(headers, host, visits=not asks and scope["method"] == "GET")
        if asks:
            self._check_token(headers.get(b"authorization", ""))

    def _check_token(self, authorization: str) -> None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(token.strip().encode("latin-1"), self._token):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "The token is missing or wrong. Open the whole link that “saccade explore” printed.",
            )


def _check_site(headers: dict[bytes, str], host: str, *, visits: bool) -> None:
    """Refuse what another site's page asks for; a person may follow its link to our page."""
    origin = headers.get(b"origin")
    if origin is not None and origin != f"http://{host}":
        raise Refusal(HTTPStatus.FORBIDDEN, "A page from elsewhere asks; this server answers its own page only.")
    site, mode = headers.get(b"sec-fetch-site", "none"), headers.get(b"sec-fetch-mode")
    if site not in {"none", "same-origin"} and not (visits and mode == "navigate"):
        raise Refusal(HTTPStatus.FORBIDDEN, "Another site asks; this server answers its own page only.")


def refused(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that says so."""
    more = {"WWW-Authenticate": "Bearer"} if refusal.status == HTTPStatus.UNAUTHORIZED else {}
    return JSONResponse(
        {"message": str(refusal)}, refusal.status, {"Cache-Control": "no-store", **more, **(headers or {})}
    )


class Hosts:
    """The values that a request's Host header may have.

    On loopback: its names, with our port. Elsewhere also the host that was bound, this machine's name, and any address
    in digits: rebinding needs a name.
    """

    def __init__(self, host: str, port: int) -> None:
        self.port = port
        self.anywhere = host not in LOOPBACK
        self.names = LOOPBACK | ({host.lower(), socket.gethostname().lower()} if self.anywhere else set())

    def __contains__(self, host: str) -> bool:
        name, port = _parted(host)
        return port == self.port and (name in self.names or (self.anywhere and _is_address(name)))

    def why_not(self, host: str) -> str:
        """What to say to a request with another Host."""
        name, _ = _parted(host)
        if name in self.names:
            return (
                f"The request came by another port than {self.port}. To look from another machine, forward the same "
                f"port: ssh -L {self.port}:localhost:{self.port} ..."
            )
        return f"The request is addressed to another host; expected one of {self._expected()}."

    def _expected(self) -> str:
        return ", ".join(sorted(address(name, self.port) for name in self.names))


def _parted(host: str) -> tuple[str, int | None]:
    """Name and port of a Host header; ("", None) if it is none."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname or "", parts.port or 80
    except ValueError:
        return "", None
    rebuilt = {address(name, port), *([_bracketed(name)] if port == 80 else [])}  # noqa: PLR2004  HTTP's
    return (name, port) if host.lower() in rebuilt else ("", None)


def address(host: str, port: int) -> str:
    """Host and port as in a link."""
    return f"{_bracketed(host)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def weakness(token: str) -> str | None:
    """Why a token does not keep others out, or cannot stand in a link; None if nothing is wrong with it."""
    if len(token) < SHORTEST_TOKEN:
        return f"it has {len(token)} characters; expected at least {SHORTEST_TOKEN}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", token):
        return "expected letters, digits, - and _ only"
    return None


def link(host: str, port: int, token: str) -> str:
    """The address of the page, as its reader needs it."""
    name = socket.gethostname() if host in WILDCARDS else host
    return f"http://{address(name, port)}/?token={token}#/heads"
