"""`saccade senses`: what a word means, by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saccade import errors
from saccade.cli.app import app, command
from saccade.cli.reading import AsJson, ModelName, OutFile, check_doors, content
from saccade.cli.screen import give, progress

if TYPE_CHECKING:
    from saccade.analysis.senses import Senses

EXAMPLES = """Examples:

  saccade senses bank

  saccade senses spring sentences.tsv --out paths.png

A line of FILE is a sense, a tab, and a sentence; a line without a tab is a sentence whose sense is not known.
"""
SHAPE = """A line of FILE is a sense, a tab, and a sentence; without a tab, a sentence whose sense is not known:

season<TAB>The birds come back in spring.
season<TAB>It rained all spring.
coil<TAB>A spring in the mattress broke.
coil<TAB>The spring pulls the door shut.
He waited for the spring."""


@app.command(epilog=EXAMPLES.replace("\n\n", "\n\n\b\n", 1))
@command
def senses(
    word: Annotated[str, typer.Argument(help="The word; its regular inflections count as well.")],
    file: Annotated[
        str | None,
        typer.Argument(help="Sentences: sense, tab, sentence; - for standard input.", show_default=False),
    ] = None,
    model: ModelName = None,
    out: OutFile = None,
    as_json: AsJson = False,
) -> None:
    """Show how a model tells the senses of a word apart, layer by layer. "bank" needs no file."""
    check_doors(out, as_json=as_json)
    sentences = built_in(word) if file is None else read_sentences(content(file), file)
    found = _compare(word, sentences, model)
    from saccade.analysis.senses.page import render

    give(found, out, lambda console: render(console, found), as_json=as_json)


def _compare(word: str, sentences: dict[str | None, list[str]], model: str | None) -> Senses:
    with progress("reading the model"):
        from saccade.adapters import pretrained
        from saccade.analysis.senses import senses as compare

        loaded = pretrained.load(model)
    with progress("comparing"), pretrained.quiet():
        return compare(loaded, word, sentences)


def built_in(word: str) -> dict[str | None, list[str]]:
    """The sentences that come with Saccade."""
    from saccade.analysis.senses.examples import EXAMPLES as KNOWN

    if word not in KNOWN:
        raise errors.ArgumentError(
            f"there are no built-in sentences with {word!r}, only with {', '.join(KNOWN)}: give a FILE, or - for "
            f"standard input. {SHAPE}"
        )
    return KNOWN[word]


def read_sentences(text: str, name: str) -> dict[str | None, list[str]]:
    """Sentences by sense. Empty lines and those that begin with # are skipped."""
    found: dict[str | None, list[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        sense, tab, sentence = line.partition("\t")
        if tab and not sentence.strip():
            raise errors.ArgumentError(f"{name}:{number}: there is no sentence after the tab. {SHAPE}")
        known = sense.strip() if tab and sense.strip() != "?" else ""
        found.setdefault(known or None, []).append(sentence.strip() if tab else line.strip())
    if not found:
        raise errors.ArgumentError(f"{name} holds no sentence. {SHAPE}")
    return found
