"""`saccade show`: where a model looks in a text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import EXAMPLES, app, command
from saccade.cli.reading import MEAN, ModelName, TextFile, layer_number, read_text
from saccade.cli.screen import console_of_stdout, progress

if TYPE_CHECKING:
    from saccade.explorer.library import SiteInfo
    from saccade.views import AttentionView

PAGE = ".html"
ENDINGS = (".png", ".svg", ".json", ".csv", PAGE)


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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a file: .png, .svg, .json, .csv or .html.")
    ] = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut a text that is too long for the model.")] = False,
) -> None:
    """Show where a model looked in a text."""
    check_ending(out)
    chosen = layer_number("layer", layer), layer_number("head", head)
    said = read_text(text, file)
    if out is not None and out.suffix.lower() == PAGE:
        if token is not None:
            raise errors.ArgumentError("--token is for pictures and tables; a page lets its reader choose a word")
        _write_page(
            said,
            out,
            model,
            partial(_first_look, layer=chosen[0], head=chosen[1], words=words, special=special),
            truncate=truncate,
        )
        return
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


def _first_look(
    sites: list[SiteInfo], layer: int | str | None, head: int | str | None, *, words: bool, special: bool
) -> str:
    """What a page shows first, as in its links."""
    if layer == MEAN:
        raise errors.ArgumentError("--layer mean: a page shows one layer at a time; expected a number from 0")
    if isinstance(layer, int) and layer >= len(sites):
        raise errors.ArgumentError(f"--layer {layer}: the model has layers 0 to {len(sites) - 1}")
    heads = len(sites[int(layer or 0)]["heads"])
    if isinstance(head, int) and head >= heads:
        raise errors.ArgumentError(f"--head {head}: the layer has heads 0 to {heads - 1}")
    said = {
        "site": layer,
        "head": head,
        "words": None if words else 0,
        "special": 1 if special else None,
    }
    fields = "&".join(f"{name}={value}" for name, value in said.items() if value is not None)
    view = "/heads" if layer is None and head is None else "/pattern"
    return f"{view}?{fields}" if fields else view


def _write_page(
    text: str, out: Path, model: str | None, look: Callable[[list[SiteInfo]], str], *, truncate: bool
) -> None:
    from saccade.explorer import page

    page.check_built(page.BUILT)
    with progress("reading the model"):
        from saccade.adapters import pretrained

        loaded = pretrained.load(model)
    with progress(f"writing {out}"), pretrained.quiet():
        from saccade.explorer import standalone

        explorer, dropped = standalone.reading(loaded, text, truncate=truncate)
        sites = [info for info, _ in explorer.library.texts[0].sites]
        half = standalone.write_page(explorer, out, look=look(sites))
    typer.echo(f"wrote {out}")
    if dropped:
        typer.echo(f"saccade: {dropped:,} tokens at the end were cut off", err=True)
    if half:
        typer.echo("saccade: queries, keys, values and hidden states are in half precision, to keep it small", err=True)
