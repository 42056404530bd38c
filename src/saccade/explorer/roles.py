"""Job `roles`: what each head does in a text.

With the model at hand it reads the text again, and repeated random tokens, on which duplicates and induction show
whatever the text (see `saccade.analysis.heads`). Without it the roles are scored on the queries and keys of the trace,
one attention call at a time; of a batch, all its texts together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from saccade.adapters.pretrained import Pretrained, encode
from saccade.analysis.roles import HeadRoles, heads
from saccade.errors import ArgumentError, NotRecordedError
from saccade.explorer.parameters import read
from saccade.explorer.parcel import Answer
from saccade.explorer.reading import Steps, calls_of, run_of_model
from saccade.explorer.work import Asked, go_on
from saccade.trace import Trace
from saccade.trace.metadata import EntryMetadata, TraceMetadata
from saccade.trace.storage import Arrays, Index, Values

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer, Progress
    from saccade.explorer.library import Text

# Weights of a stored text that are formed at most, some minutes' work.
MOST_WEIGHTS = 1 << 36

MEANINGS = {
    "previous": "Looks at the token before.",
    "next": "Looks at the token after.",
    "first": "Looks at the first token, where a head puts weight that it has no other use for.",
    "separators": "Looks at punctuation and at tokens that stand for the end of a text.",
    "duplicate": "Looks at other places where the same token stands.",
    "induction": "Looks at what followed the same token earlier.",
    "local": "Looks at the tokens around, at most four away.",
    "global": "Looks at tokens farther than four away.",
}


@dataclass(frozen=True)
class OfText:
    """Parameters of the job."""

    text: str


def roles(explorer: Explorer, parameters: Mapping[str, Any], progress: Progress, cancelled: Asked) -> Answer:
    """What each head does: RolesAnswer.

    Raises:
        ArgumentError: there is no such text, or it is too long to be scored from its trace.
        NotRecordedError: there is no model, and no queries and keys, or no tokens.
        Cancelled: nobody waits for it any more.
    """
    text = explorer.text(read(OfText, parameters).text)
    string = None if explorer.reader is None else _as_read(explorer.reader, text)
    if string is None:
        found = dict(_by_trace(text, progress, cancelled))
    else:
        found = _by_model(explorer, string, progress, cancelled)
    told = [found.get(info["name"]) or [("", 0.0)] * len(info["heads"]) for info, _ in text.sites]
    return {
        "roles": [[role for role, _ in of_site] for of_site in told],
        "shares": [[share for _, share in of_site] for of_site in told],
        "meanings": MEANINGS,
    }


# The role and the share of each head that was kept, by site.
Told = dict[str, list[tuple[str, float]]]


def _told(found: HeadRoles) -> Told:
    strongest = found.strongest
    return {
        site: [
            (str(role), float(found.scores[str(role)][layer, place]) if role else 0.0)
            for place, role in enumerate(strongest[layer])
        ]
        for layer, site in enumerate(found.sites)
    }


# ---------------------------------------------------------------------------------------- by the model


def _as_read(reader: Pretrained, text: Text) -> str | None:
    """The text, if the model makes of it the very tokens that it is shown with; else None."""
    tokens = text.entry.tokens
    if tokens is None or tokens.texts is None or not tokens.texts.text[text.batch].strip():
        return None
    string = tokens.texts.text[text.batch]
    ids = encode(reader, string, truncate=True).inputs["input_ids"][0].tolist()
    return string if ids == tokens.ids[text.batch][tokens.visible[text.batch]].tolist() else None


def _by_model(explorer: Explorer, string: str, progress: Progress, cancelled: Asked) -> Told:
    assert explorer.reader is not None
    steps = Steps(progress, cancelled)
    steps.begin(2 * calls_of(explorer.reader.model), "the model reads, to see what its heads do")
    with run_of_model(explorer, steps):
        return _told(heads(explorer.reader, string))


# ---------------------------------------------------------------------------------------- by the trace


def _by_trace(text: Text, progress: Progress, cancelled: Asked) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """The roles in each site whose queries and keys are the same tokens."""
    _check_exact(text)
    names, skipped = text.entry.sites, ""
    for number, name in enumerate(names):
        go_on(cancelled)
        progress(number / len(names), f"what the heads of {text.sites[number][0]['label']} do")
        try:
            told = _told(heads(Trace(_OneCall.of(text, number))))
        except NotRecordedError as error:
            skipped = str(error)
            continue
        yield name, told[name]
    if skipped and all(info["query_tokens"] is None for info, _ in text.sites):
        raise NotRecordedError(skipped)


def _check_exact(text: Text) -> None:
    if not all(info["exact"] for info, _ in text.sites):
        raise NotRecordedError(
            "what heads do is seen in their queries and keys, which this trace does not have: record with keep='qk' "
            "(saccade record --keep qk), or open it together with the model"
        )
    weights = sum(
        stack.batch * len(stack.sites) * stack.heads * stack.queries * stack.keys for stack in text.entry.stacks
    )
    if weights > MOST_WEIGHTS:
        raise ArgumentError(
            f"to see what the heads do in this text, {weights:,} weights would have to be formed; at most "
            f"{MOST_WEIGHTS:,} are: ask it of a shorter text"
        )


@dataclass(eq=False)
class _OneCall:
    """A library whose only entry is one attention call of an entry.

    Attributes:
        metadata: the trace's.
        finished: that entry.
    """

    metadata: TraceMetadata
    finished: list[Arrays]

    @classmethod
    def of(cls, text: Text, number: int) -> _OneCall:
        """The library of a call by its number among the sites of a text."""
        arrays = text.entry._arrays  # noqa: SLF001  our own
        metadata = replace(arrays.metadata, sites=arrays.metadata.sites[number : number + 1])
        return cls(text.trace.metadata, [_Part(metadata, arrays)])


@dataclass(eq=False)
class _Part:
    """The arrays of an entry, of which only some calls are told."""

    metadata: EntryMetadata
    whole: Arrays

    def read(self, path: str, index: Index = ()) -> Values:
        """See `Arrays`."""
        return self.whole.read(path, index)
