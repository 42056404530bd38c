"""`saccade heads`: what each head of a model does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import app, command
from saccade.cli.reading import AsJson, ModelName, OutFile, TextFile, check_doors, read_text
from saccade.cli.screen import give, progress

if TYPE_CHECKING:
    from saccade.analysis.roles import HeadRoles


@app.command()
@command
def heads(
    text: Annotated[
        str | None,
        typer.Argument(help="What to read; - for standard input; nothing: repeated random tokens.", show_default=False),
    ] = None,
    model: ModelName = None,
    file: TextFile = None,
    sort: Annotated[str, typer.Option(help="A role, distance, entropy, or strongest.", metavar="ROLE")] = "strongest",
    top: Annotated[int, typer.Option(help="How many heads the table shows.")] = 20,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut a text that is too long for the model.")] = False,
    as_json: AsJson = False,
    out: OutFile = None,
) -> None:
    """Say what each head of a model does: who looks back, at the first token, at repetitions."""
    _check(sort, top)
    check_doors(out, as_json=as_json)
    said = None if text is None and file is None else read_text(text, file)
    roles = _score(model, said, truncate=truncate)
    from saccade.analysis.roles.page import render

    give(roles, out, lambda console: render(console, roles, sort, top), as_json=as_json)


def _check(sort: str, top: int) -> None:
    """Refuse what cannot be served, before anything slow is done for it."""
    from saccade.analysis.roles.page import role_names

    if sort not in role_names():
        raise errors.ArgumentError(f"--sort {sort}: expected one of {', '.join(role_names())}")
    if top < 1:
        raise errors.ArgumentError(f"--top {top}: expected at least 1")


def _score(model: str | None, text: str | None, *, truncate: bool) -> HeadRoles:
    with progress("reading the model"):
        from saccade.adapters import pretrained

        loaded = pretrained.load(model)
    with progress("looking"), pretrained.quiet():
        from saccade.analysis.roles import heads as score

        return score(loaded, text, truncate=truncate)
