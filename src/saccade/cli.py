"""The command line: reads arguments, calls the library, turns its errors into messages.

Commands import what they need when they run, so that ``--help`` and ``--version`` answer at once.
Exit codes: 0 done, 1 what was to be verified is wrong, 2 the request cannot be served as it stands (the message says
why), 130 interrupted, 141 whoever read our output left.
"""

from __future__ import annotations

import codecs
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from saccade import errors
from saccade._version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from saccade.views import AttentionView

WRONG, BAD_REQUEST, INTERRUPTED, READER_LEFT = 1, 2, 130, 141
NARROWEST = 40  # columns; a terminal that claims fewer is written to as if it had these
ENDINGS = (".png", ".svg", ".json", ".csv")
MEAN = "mean"
UNWRITABLE = frozenset({errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.EBADF})
# What stands in, cell for cell, for characters that a terminal's encoding lacks.
PLAIN = dict(zip("░▒▓█×·–—…‘’“”␣⇥↵▀", ".:+#x.--.''\"\"_>/ ", strict=True))  # noqa: RUF001  meant

ModelName = Annotated[
    str | None, typer.Option("--model", "-m", help="A hub name or a folder. Default: the small pretrained model.")
]
TracePlace = Annotated[str, typer.Argument(help="A trace: a folder or a URL.")]

EXAMPLES = """Examples:

  saccade show "He left the roses by the bank."

  saccade show "He left the roses by the bank." --token bank

  saccade show --file poem.txt --layer 1 --head 4 --out head.png

  echo "Some text" | saccade show --model gpt2 --out weights.csv

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
        lines = [_harmless(line) for line in message.split("\n")]
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


# ---------------------------------------------------------------------------------------- show


@app.command(epilog=EXAMPLES)
@command
def show(
    text: Annotated[
        str | None,
        typer.Argument(help="What to read; - or nothing: standard input.", show_default=False),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this file (UTF-8).")] = None,
    model: ModelName = None,
    layer: Annotated[str | None, typer.Option(help="A layer's number, from 0, or mean.")] = None,
    head: Annotated[str | None, typer.Option(help="A head's number, from 0, or mean.")] = None,
    words: Annotated[bool, typer.Option("--words/--tokens", help="Merge subwords into words, or not.")] = True,
    token: Annotated[
        str | None,
        typer.Option(help="One word's view; WORD:2 is the second such word.", metavar="WORD"),
    ] = None,
    special: Annotated[
        bool,
        typer.Option("--special/--no-special", help="Show tokens such as [CLS], or only their share."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a file: .png, .svg, .json or .csv.")] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut a text that is too long for the model.")] = False,
) -> None:
    """Show where a model looked in a text."""
    _check_ending(out)
    chosen = _number("layer", layer), _number("head", head)
    said = _read(text, file)
    view = _look(said, model, "words" if words else "tokens", truncate=truncate).select(*chosen)
    view = view if special else view.without_special()
    focus = None if token is None else view.find(token)
    if out is None:
        _print(view, focus)
    else:
        _write(view, out, focus)


def _check_ending(out: Path | None) -> None:
    """Refuse a file that could not be written, before anything slow is done for it."""
    if out is None:
        return
    if out.suffix.lower() not in ENDINGS:
        raise errors.ArgumentError(f"--out {out}: the ending says the format; expected one of {', '.join(ENDINGS)}")
    from saccade.views.files import check_writable

    check_writable(out)


def _number(what: str, value: str | None) -> int | str | None:
    if value is None or value == MEAN:
        return value
    if not value.isdecimal():
        raise errors.ArgumentError(f"--{what} {value}: expected a number from 0, or {MEAN}")
    return int(value)


def _read(text: str | None, file: Path | None) -> str:
    """The text from the argument, the file, or standard input."""
    if text not in {None, "-"} and file is not None:
        raise errors.ArgumentError("expected a text or --file, not both")
    said = _decoded(*_bytes(text, file))
    if not said.strip():
        raise errors.ArgumentError("the text is empty; expected at least one word")
    return said.strip()


def _bytes(text: str | None, file: Path | None) -> tuple[bytes, str]:
    """The text as bytes, and where it came from."""
    if file is not None:
        try:
            return file.read_bytes(), str(file)
        except OSError as error:
            raise errors.ArgumentError(f"--file {file}: {error.strerror}") from error
    if text not in {None, "-"}:
        return os.fsencode(text or ""), "the text"
    if sys.stdin is None and text is not None:
        raise errors.ArgumentError("standard input is closed; there is no text")
    if text is None and (sys.stdin is None or sys.stdin.isatty()):
        raise errors.ArgumentError('there is no text: saccade show "some words", --file FILE, or pipe it in')
    return sys.stdin.buffer.read(), "standard input"


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.ArgumentError(
            f"{source} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}"
        ) from error


def _look(text: str, model: str | None, kind: str, *, truncate: bool) -> AttentionView:
    with _progress("reading the model"):
        from saccade.adapters import pretrained

        loaded = pretrained.load(model)
    with _progress("looking"), pretrained.quiet():
        from saccade.views import look

        return look(loaded, text, kind=kind, truncate=truncate)


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Say on a terminal what takes so long; nothing remains of it."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield


def _print(view: AttentionView, focus: int | None) -> None:
    from saccade.views import terminal

    console = _console()
    if focus is None:
        terminal.render(console, view)
    else:
        terminal.render_word(console, view, focus)


def _console() -> Console:
    from rich.console import Console

    class Quiet(Console):
        """Rich would exit with 1 by itself when its reader leaves."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = Quiet(soft_wrap=False, highlight=False, emoji=False, markup=False)
    console.width = max(console.width, NARROWEST)
    return console


def _write(view: AttentionView, out: Path, focus: int | None) -> None:
    from saccade.views import export, picture

    ending = out.suffix.lower()
    remarks: list[str] = []
    with _progress(f"writing {out}"):
        if ending in {".png", ".svg"}:
            remarks = picture.write_picture(view, out, focus)
        else:
            (export.write_json if ending == ".json" else export.write_csv)(view, out, focus)
            if export.detail(view) == "statistics":
                more = "; --layer and --head bring all weights of one head" if view.weights is not None else ""
                remarks = [f"a long text: statistics and the heaviest keys of each query{more}"]
    if view.hidden and view.typed:
        remarks = [*remarks, view.remark_on_typed()]
    typer.echo(f"wrote {out}")
    for remark in remarks:
        typer.echo(f"saccade: {remark}", err=True)


# ---------------------------------------------------------------------------------------- traces


@app.command()
@command
def record(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to read; - or nothing: standard input.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The trace to write: a new folder.")] = None,
    model: ModelName = None,
    keep: Annotated[
        str,
        typer.Option(help="statistics; qk: queries and keys too, for exact patterns; qkv: values as well."),
    ] = "statistics",
    layers: Annotated[str | None, typer.Option(help="Only these layers: 0,3-5.", metavar="NUMBERS")] = None,
    heads: Annotated[str | None, typer.Option(help="Only these heads: 0,3-5.", metavar="NUMBERS")] = None,
    batch: Annotated[int, typer.Option(help="Texts in one forward.")] = 1,
    hidden: Annotated[bool, typer.Option("--hidden/--no-hidden", help="Keep hidden states, or not.")] = True,
    form: Annotated[
        str,
        typer.Option("--format", help="text: a file is a text; lines; jsonl; auto: by the file's ending."),
    ] = "auto",
    field: Annotated[str, typer.Option(help="The member of a JSON line that holds the text.")] = "text",
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long for the model.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a recording that was stopped.")] = False,
) -> None:
    """Keep on disk where a model looks while it reads texts. Ctrl-C finishes the current entry."""
    if out is None:
        raise errors.ArgumentError("expected --out FOLDER.zarr, where the trace is to be written")
    chosen: dict[str, Any] = {"layers": _numbers("layers", layers), "heads": _numbers("heads", heads)}
    from saccade.trace.corpus import read_texts, record_texts
    from saccade.trace.shards import need_codecs

    need_codecs()
    texts = read_texts(files or ["-"], _content, form=form, field=field)
    with _progress("reading the model"):
        from saccade.adapters import pretrained

        loaded = pretrained.load(model)
    with _stoppable() as stopped, _bar() as show_progress:
        trace = record_texts(
            loaded, texts, to=out, keep=keep, batch=batch, hidden=hidden, truncate=truncate, resume=resume,
            on_progress=show_progress, stop=lambda: bool(stopped), **chosen,
        )  # fmt: skip
    done, of = len(trace), -(-len(texts) // batch)
    entries = "1 entry" if of == 1 else f"{of} entries"
    typer.echo(f"wrote {out}: {done} of {entries}" if done < of else f"wrote {out}: {entries}")
    if done < of:
        typer.echo("saccade: stopped; the same command with --resume goes on", err=True)
        sys.exit(INTERRUPTED)


def _numbers(what: str, value: str | None) -> list[int] | None:
    """Numbers and ranges of numbers: 0,3-5."""
    if value is None:
        return None
    found: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise errors.ArgumentError(f"--{what} {value}: expected numbers and ranges from 0, as 0,3-5")
        found += range(int(first), int(last if dash else first) + 1)
    return found


def _content(name: str) -> str:
    """A file's text; - for standard input."""
    if name == "-":
        return _decoded(*_bytes("-", None))
    try:
        return _decoded(Path(name).read_bytes(), name)
    except OSError as error:
        raise errors.ArgumentError(f"{name}: {error.strerror}") from error


def _harmless(text: str) -> str:
    """What somebody else wrote, without characters that would do something to a terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """Ctrl-C or a polite kill is noted in a list, which then is not empty; a second one interrupts at once."""
    stopped: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)
        typer.echo("\nsaccade: finishing this entry; again to stop at once", err=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar() -> Iterator[Callable[[Any], None]]:
    """A progress bar on a terminal: tokens, tokens in a second, time left. Nothing elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("entry {task.fields[entry]}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=0, visible=False, entry="", speed="")

        def show(progress: Any) -> None:
            done = min(progress.entries + 1, progress.of)
            speed = bar.tasks[0].speed
            said = f"{speed:,.0f} tokens/s" if speed else ""
            entry = f"{done} of {progress.of}"
            bar.update(task, completed=progress.tokens, total=progress.total, visible=True, entry=entry, speed=said)

        yield show


@app.command()
@command
def info(
    trace: TracePlace,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """Say what is in a trace."""
    from saccade.trace import open_trace
    from saccade.trace.summary import describe, summarize

    found = summarize(open_trace(trace), trace)
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for line in describe(found):
        typer.echo(_harmless(line))


@app.command()
@command
def verify(trace: TracePlace) -> None:
    """Check all of a trace against its specification: metadata, checksums, shapes, numbers."""
    from saccade.trace.verification import verify as check

    with _progress(f"verifying {trace}"):
        verdict = check(trace)
    for finding in verdict.findings:
        typer.echo(_harmless(f"sentence {finding.sentence.replace(' ', ', ')}: {finding.message} [{finding.where}]"))
    if verdict.complete is False:
        entry = "" if verdict.unfinished is None else f"; entry {verdict.unfinished} is incomplete"
        typer.echo(f"{trace} was not closed: it is being recorded, or its recorder was killed{entry}")
    checked = f"{verdict.entries} entries, {verdict.arrays} arrays, {verdict.numbers:,} numbers"
    if not verdict.right:
        typer.echo(f"{trace}: {len(verdict.findings)} wrong ({checked})")
        sys.exit(WRONG)
    typer.echo(f"{trace}: all right ({checked})")


# ---------------------------------------------------------------------------------------- doctor


@app.command()
@command
def doctor() -> None:
    """Say what is installed, what is missing, and which backend computes attention, and why."""
    from saccade.views import diagnosis

    for title, lines in diagnosis.examine().items():
        typer.echo(title)
        for name, value in lines:
            typer.echo(f"  {name:<14}{value}")


if __name__ == "__main__":
    main()
