"""What a person sees while a command runs and when it is done."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 40  # columns; a terminal that claims fewer is written to as if it had these


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say on a terminal what takes so long; nothing remains of it."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} …"):
        yield


def console_of_stdout() -> Console:
    """A console of standard output, at least `NARROWEST` wide."""
    from rich.console import Console

    class Quiet(Console):
        """Rich would exit with 1 by itself when its reader leaves."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = Quiet(soft_wrap=False, highlight=False, emoji=False, markup=False)
    console.width = max(console.width, NARROWEST)
    return console


def harmless(text: str) -> str:
    """What somebody else wrote, without characters that would do something to a terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def give(found: Any, out: Path | None, render: Callable[[Console], None], *, as_json: bool) -> None:
    """A result by the door that was asked for: a file, JSON on standard output, or the terminal."""
    if as_json:
        typer.echo(found.to_json())
    elif out is None:
        render(console_of_stdout())
    else:
        with progress(f"writing {out}"):
            remarks = found.save(out)
        typer.echo(f"wrote {out}")
        for remark in remarks:
            typer.echo(f"saccade: {remark}", err=True)


@contextmanager
def stoppable() -> Iterator[list[int]]:
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
def progress_bar() -> Iterator[Callable[[Any], None]]:
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
