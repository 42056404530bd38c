"""What a saved page is told once and for all: the answers that need Python, as files beside a trace.

A saved page has no server. What depends on numbers (a tile, a window, one row) it computes itself, from the trace
(`web/src/source/stored.ts`); what depends on a tokenizer's or a model's words, and what an analysis found, is answered
here, before it is saved:

    answers/document, answers/tokens/TEXT/SEQUENCE, answers/heads/TEXT, answers/roles/TEXT      parcels
    answers/places                                                    JSON: each text's entry and batch element
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from saccade.errors import NotRecordedError
from saccade.explorer.explorer import Explorer
from saccade.explorer.library import Text
from saccade.explorer.parcel import pack

ANSWERS = "answers"
TRACE = "trace"

# What a saved page cannot do, and what can.
WITHOUT = {
    "read": "This page was saved; saccade explore can read other texts.",
    "meaning": "This page was saved; saccade explore can compare the meanings of a word.",
    "cost": "This page was saved; saccade explore can measure what attention costs on your machine.",
}

Files = dict[str, bytes]  # by path


def document(explorer: Explorer) -> dict[str, Any]:
    """What there is to look at in a saved page."""
    about = explorer.about()
    return {**about, "abilities": {**about["abilities"], **WITHOUT}}


def answers(
    explorer: Explorer,
    progress: Callable[[float, str], None],
    *,
    roles: Callable[[Text], bool] = lambda _: True,
) -> Files:
    """The files of all answers but the document.

    Args:
        explorer: whom to ask. The entries of its texts count from 0, without a gap, in the trace that is saved.
        progress: told the share of the texts that is done, and what is being done.
        roles: of which texts to find out what each head does.
    """
    texts = explorer.library.texts
    entries = {index: number for number, index in enumerate(sorted({text.entry.index for text in texts}))}
    places = {text.id: [entries[text.entry.index], text.batch] for text in texts}
    found = {f"{ANSWERS}/places": json.dumps(places).encode()}
    for done, text in enumerate(texts):
        progress(done / len(texts), f"what the heads do in {text.info['name']}")
        for name, answer in _of_text(explorer, text, roles=roles(text)).items():
            found[f"{ANSWERS}/{name}"] = pack(answer)
    return found


def _of_text(explorer: Explorer, text: Text, *, roles: bool) -> Mapping[str, Any]:
    found = {
        f"tokens/{text.id}/{sequence}": explorer.answer("tokens", {"text": text.id, "sequence": sequence})
        for sequence in _sequences(text)
    }
    found[f"heads/{text.id}"] = explorer.answer("heads", {"text": text.id})
    if roles:
        with suppress(NotRecordedError):  # then the page says that they are not there
            found[f"roles/{text.id}"] = explorer.run("roles", {"text": text.id})
    return found


def _sequences(text: Text) -> Sequence[str]:
    """The sequences that the sites of a text name, each once."""
    sides = [info[side] for info, _ in text.sites for side in ("query_tokens", "key_tokens")]
    return list(dict.fromkeys(side for side in sides if side is not None))
