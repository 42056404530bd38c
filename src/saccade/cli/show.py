"""`saccade show`: where a model looks in a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import EXAMPLES, app, command
from saccade.cli.reading import ModelName, TextFile, layer_number, read_text
from saccade.cli.screen import console_of_stdout, progress

if TYPE_CHECKING:
    from saccade.views import AttentionView

ENDINGS = (".png", ".svg", ".json", ".csv")


@app.command(epilog=EXAMPLES)
@command
def show(
    text: Annotated[
        str | None,
        typer.Argument(help="What to read; - or nothing: standard input.", show_default=False),
    ] = None,
    file: TextFile = None,
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
    check_ending(out)
    chosen = layer_number("layer", layer), layer_number("head", head)
    said = read_text(text, file)
    view = _look(said, model, "words" if words else "tokens", truncate=truncate).select(*chosen)
    view = view if special else view.without_special()
    focus = None if token is None else view.find(token)
    if out is None:
        _print(view, focus)
    else:
        _write(view, out, focus)


def check_ending(out: Path | None) -> None:
    """Refuse a file that could not be written, before anything slow is done for it."""
    if out is None:
        return
    if out.suffix.lower() not in ENDINGS:
        raise errors.ArgumentError(f"--out {out}: the ending says the format; expected one of {', '.join(ENDINGS)}")
    from saccade.views.files import check_writable

    check_writable(out)


def _look(text: str, model: str | None, kind: str, *, truncate: bool) -> AttentionView:
    with progress("reading the model"):
        from saccade.adapters import pretrained

        loaded = pretrained.load(model)
    with progress("looking"), pretrained.quiet():
        from saccade.views import look

        return look(loaded, text, kind=kind, truncate=truncate)


def _print(view: AttentionView, focus: int | None) -> None:
    from saccade.views import terminal

    console = console_of_stdout()
    if focus is None:
        terminal.render(console, view)
    else:
        terminal.render_word(console, view, focus)


def _write(view: AttentionView, out: Path, focus: int | None) -> None:
    from saccade.views import export, picture

    ending = out.suffix.lower()
    remarks: list[str] = []
    with progress(f"writing {out}"):
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
