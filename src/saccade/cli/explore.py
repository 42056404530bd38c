"""`saccade explore`: look around in a browser."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import webbrowser
from contextlib import closing, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import INTERRUPTED, app, command
from saccade.cli.reading import ModelName, TextFile, read_text
from saccade.cli.screen import progress
from saccade.explorer.opening import example_texts, is_trace

if TYPE_CHECKING:
    from socket import socket

    from saccade.explorer.explorer import Explorer
    from saccade.explorer.server import Server

EXAMPLES = """Examples:

  saccade explore

  saccade explore "He left the roses by the bank." --model gpt2

  saccade explore runs/story.zarr

Ctrl-C ends it.
"""


@app.command(epilog=EXAMPLES.replace("\n\n", "\n\n\b\n", 1))
@command
def explore(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            help="A trace (a folder or a URL), a text, or both; - for standard input.",
            metavar="TRACE|TEXT",
            show_default=False,
        ),
    ] = None,
    file: TextFile = None,
    model: ModelName = None,
    host: Annotated[str, typer.Option(help="Listen there; beyond this machine only with --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Listen on this port; 0: a free one.", min=0, max=65535)] = 0,
    token: Annotated[
        str | None, typer.Option(help="The secret in the link. Default: a new one.", show_default=False)
    ] = None,
    browse: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the page in a browser. Default: where there is a screen."),
    ] = None,
) -> None:
    """Look around in a browser: every head, every weight, live text."""
    trace, text = sort_out(what or [])
    said = read_text(text, file) if text is not None or file is not None else None
    if trace is not None and said is not None and model is None:
        raise errors.ArgumentError(
            f"the text has to be read by a model: expected --model, the one that {trace} was recorded from"
        )
    check_parts()
    token = check_token(host, token)
    from saccade.explorer import page
    from saccade.explorer.guard import link
    from saccade.explorer.server import Server, listen

    with closing(listen(host, port)) as listening:
        explorer = _opened(trace, said, model)
        address = link(host, listening.getsockname()[1], token)

        def started() -> None:
            typer.echo(address)
            if browse or (browse is None and _has_screen()):
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        _serve(Server(explorer, listening, host=host, token=token, folder=page.BUILT, started=started), listening)


def sort_out(what: list[str]) -> tuple[str | None, str | None]:
    """Which argument is the trace, and which the text."""
    traces = [one for one in what if is_trace(one)]
    texts = [one for one in what if not is_trace(one)]
    if len(traces) > 1 or len(texts) > 1:
        raise errors.ArgumentError(
            f"expected one trace, one text, or one of each; came {len(traces)} and {len(texts)}. A text of several "
            'words needs quotes: saccade explore "some words"'
        )
    return next(iter(traces), None), next(iter(texts), None)


def check_parts() -> None:
    """See, before anything slow is done, that all that serves is there.

    Raises:
        MissingExtraError: a package is missing.
        SaccadeError: the page is.
    """
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise errors.MissingExtraError(package, "explore")
    from saccade.explorer import page

    page.check_built(page.BUILT)


def check_token(host: str, token: str | None) -> str:
    """The token, or a new one. Beyond this machine it has to be chosen: who opens a door knows that they do."""
    from saccade.explorer.guard import LOOPBACK, weakness

    if token is None:
        if host in LOOPBACK:
            return secrets.token_urlsafe(32)
        raise errors.ArgumentError(
            f"--host {host} can be reached from other machines: expected --token SECRET as well, such as "
            f"{secrets.token_urlsafe(24)}. Or leave --host out, and forward a port: ssh -L PORT:localhost:PORT ..., "
            "saccade explore --port PORT"
        )
    wrong = weakness(token)
    if wrong is not None:
        raise errors.ArgumentError(f"--token: {wrong}")
    if host not in LOOPBACK:
        typer.echo(
            f"saccade: warning: {host} can be reached from other machines. Whoever has the link, or reads along (there "
            "is no encryption), can see these texts and have the model read others.",
            err=True,
        )
    return token


def _opened(trace: str | None, text: str | None, model: str | None) -> Explorer:
    """An explorer of what was asked for; of some sentences with the default model, if that is nothing."""
    from saccade.explorer.explorer import Explorer

    opened = reader = None
    if trace is not None:
        with progress(f"opening {trace}"):
            from saccade.trace import open_trace

            opened = open_trace(trace)
    if trace is None or model is not None:
        with progress("reading the model"):
            from saccade.adapters import pretrained

            reader = pretrained.load(model)
    explorer = Explorer(opened, reader)
    with progress("reading the text"):
        for one in [text] if text is not None else example_texts() if trace is None else []:
            explorer.run("read", {"text": one})
    return explorer


def _serve(server: Server, listening: socket) -> None:
    """Serve until interrupted; then end the process at once.

    Python would wait for threads that are in a forward, which cannot be told to stop, and take a second to take torch
    apart. Nothing that was computed is kept anywhere.
    """
    with suppress(KeyboardInterrupt):  # whether an interrupted server says so depends on its version
        server.run(sockets=[listening])
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def _has_screen() -> bool:
    """Whether a person sits here, before more than a terminal."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in {"darwin", "win32"} or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
