"""The command line as a whole: its name, its errors, its exit codes."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Annotated, Any, NoReturn

import typer

from saccade import errors
from saccade._version import __version__
from saccade.cli.screen import harmless

WRONG, BAD_REQUEST, INTERRUPTED, READER_LEFT = 1, 2, 130, 141
UNWRITABLE = frozenset({errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF})
# What stands in, cell for cell, for characters that a terminal's encoding lacks.
PLAIN = dict(zip("░▒▓█×·–—…‘’“”␣⇥↵▀", ".:+#x.--.''\"\"_>/ ", strict=True))  # noqa: RUF001  meant

EXAMPLES = """Examples:

  saccade show "He left the roses by the bank."

  saccade show "He left the roses by the bank." --token bank

  saccade show --file poem.txt --layer 1 --head 4 --out head.png

  echo "Some text" | saccade show --model gpt2 --out weights.csv

  saccade senses bank

  saccade heads --model gpt2

  saccade record story.txt --keep qk --out runs/story.zarr

  saccade info runs/story.zarr

  saccade doctor
"""

app = typer.Typer(
    name="saccade",
    help="Attention for PyTorch that can say where every token looked.",
    epilog=EXAMPLES.replace("\n\n", "\n\n\b\n", 1),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """The console script."""
    codecs.register_error("saccade", _in_plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="saccade")
    with reported():
        if sys.stdout is None:
            raise errors.ArgumentError("standard output is closed; there is nowhere to write to")
        app(prog_name="saccade")


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: what to write for characters that the encoding lacks, as wide as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    from rich.cells import cell_len

    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?" * cell_len(character)) for character in lacking), error.end


@contextmanager
def reported() -> Iterator[None]:
    """Turn what can go wrong into a message on stderr and an exit code; anything else is a bug and may be seen."""
    try:
        yield
        sys.stdout.flush()
    except errors.SaccadeError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _silence()
        sys.exit(READER_LEFT)
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        _silence()
        _fail(f"standard output cannot be written to: {error.strerror}")


def _fail(message: str) -> NoReturn:
    if sys.stderr is not None:
        lines = [harmless(line) for line in message.split("\n")]
        sys.stderr.write("saccade: " + "\n".join(lines) + "\n")
    sys.exit(BAD_REQUEST)


def _silence() -> None:
    """Python flushes stdout once more at exit, and would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A function as a command whose errors are reported, also where it is called without `main`."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        with reported():
            function(*args, **kwargs)

    return run


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"saccade {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    del version
