"""Texts from files, and their recording: what `saccade record` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saccade.adapters.huggingface import attention_sites
from saccade.adapters.observation import Call
from saccade.adapters.pretrained import Encoded, Pretrained, encode
from saccade.errors import ArgumentError, TraceExistsError
from saccade.trace.metadata import Source
from saccade.trace.recorder import Recording
from saccade.trace.recording import record
from saccade.trace.trace import Trace

FORMATS = ("auto", "text", "lines", "jsonl")
JSON_LINES = frozenset({".jsonl", ".ndjson"})
STDIN = "-"


@dataclass(frozen=True)
class Text:
    """A text and what it is called."""

    name: str
    text: str


# ---------------------------------------------------------------------------------------- reading


def read_texts(
    files: Sequence[str], read: Callable[[str], str], *, form: str = "auto", field: str = "text"
) -> list[Text]:
    """The texts in some files.

    Args:
        files: their names; "-" for standard input.
        read: gives a file's content.
        form: "text": a file is one text; "lines": each line that is not blank is one; "jsonl": each line is a JSON
            object, or a string; "auto": "jsonl" for .jsonl and .ndjson, else "text".
        field: the member of a JSON object that holds the text; its member "id", if there is one, names it.

    Raises:
        ArgumentError: a file holds no text, or a line is not what it should be.
    """
    if form not in FORMATS:
        raise ArgumentError(f"format {form!r}: expected one of {', '.join(FORMATS)}")
    found = [text for name in files for text in _texts(name, read(name), form, field)]
    if not found:
        raise ArgumentError("there is no text in what was given; expected at least one word")
    return found


def _texts(name: str, content: str, form: str, field: str) -> Iterator[Text]:
    called = "standard input" if name == STDIN else name
    form = form if form != "auto" else "jsonl" if Path(name).suffix.lower() in JSON_LINES else "text"
    if form == "text":
        yield Text(called, content.strip())
        return
    for number, line in enumerate(content.split("\n"), 1):  # not at U+2028, which JSON allows in a string
        if line.strip():
            place = f"{called}:{number}"
            yield Text(place, line.strip()) if form == "lines" else _from_json(place, line, field)


def _from_json(place: str, line: str, field: str) -> Text:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{place} is no JSON: {error}") from None
    text = value.get(field) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ArgumentError(f"{place}: expected a string, or an object whose member {field!r} is one (--field)")
    name = value.get("id") if isinstance(value, dict) else None
    called = place if name is None else str(name)
    if any("\ud800" <= character <= "\udfff" for character in text + called):
        raise ArgumentError(f"{place} holds half of a character (a lone surrogate), which is no text")
    return Text(called, text)


# ---------------------------------------------------------------------------------------- recording


@dataclass(eq=False)
class Progress:
    """How far a recording is: told to whoever shows it.

    Attributes:
        tokens, total: read so far (in the layers' share of a forward), and all.
        entries, of: forwards that are done, and all.
    """

    total: int
    of: int
    tokens: float = 0.0
    entries: int = 0


def record_texts(
    pretrained: Pretrained,
    texts: Sequence[Text],
    *,
    batch: int = 1,
    truncate: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Trace:
    """Have a model read texts and keep what it attends to, one entry for each batch.

    Args:
        pretrained: the model with its tokenizer.
        texts: what to read.
        batch: texts in one forward; shorter ones are padded at their end.
        truncate: cut texts that are too long for the model.
        resume: leave out the batches that the trace at `to` has already.
        on_progress: told how far it is, several times in a forward.
        stop: asked after each entry whether that was the last one.
        options: of `record`.

    Raises:
        ArgumentError: a text is empty or too long.
        TraceExistsError: the trace that is to be gone on with was made of other texts.
        TraceError, SaccadeError: as of `record`.
    """
    if batch < 1:
        raise ArgumentError(f"batch = {batch}: expected at least 1")
    encoded = [_encode(pretrained, text, truncate=truncate) for text in texts]
    batches = [slice(i, i + batch) for i in range(0, len(texts), batch)]
    progress = Progress(sum(len(one.tokens) for one in encoded), len(batches))
    calls = len(attention_sites(pretrained.model))
    with record(pretrained.model, pretrained.tokenizer, resume=resume, name=pretrained.name, **options) as trace:
        _check_sources(trace, [texts[part] for part in batches])
        for part in batches:
            size = sum(len(one.tokens) for one in encoded[part])
            if progress.entries >= len(trace):
                _forward(pretrained, trace, texts[part], encoded[part], _steps(progress, size / calls, on_progress))
            progress.entries += 1
            progress.tokens = sum(len(one.tokens) for one in encoded[: part.stop])
            on_progress(progress)
            if stop():
                break
    return trace


def _encode(pretrained: Pretrained, text: Text, *, truncate: bool) -> Encoded:
    try:
        return encode(pretrained, text.text, truncate=truncate)
    except ArgumentError as error:
        raise ArgumentError(f"{text.name}: {error}") from None


def _check_sources(trace: Recording, batches: Sequence[Sequence[Text]]) -> None:
    """Refuse to go on with a trace of other texts."""
    for entry in trace.entries:
        known = [source.sha256 for source in entry.metadata.sources]
        texts = batches[entry.index] if entry.index < len(batches) else []
        if known != [Source.of(text.name, text.text).sha256 for text in texts]:
            raise TraceExistsError(
                f"entry {entry.index} was made of other texts ({', '.join(entry.sources) or 'not named'}): give "
                "the same files in the same order and with the same batch, or choose another name"
            )


def _steps(progress: Progress, step: float, on_progress: Callable[[Progress], None]) -> Callable[[Call], None]:
    """What to do after each attention call: its share of the forward's tokens is read."""

    def on_call(call: Call) -> None:
        del call
        progress.tokens += step
        on_progress(progress)

    return on_call


def _forward(
    pretrained: Pretrained,
    trace: Recording,
    texts: Sequence[Text],
    encoded: Sequence[Encoded],
    on_call: Callable[[Call], None],
) -> None:
    trace.next(texts=[text.text for text in texts], sources=[text.name for text in texts])
    trace.coming.on_call = on_call
    with torch.no_grad():
        pretrained.model(**_padded(pretrained, encoded))


def _padded(pretrained: Pretrained, encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The inputs of several texts, all as long as the longest."""
    length = max(len(one.tokens) for one in encoded)
    tokenizer = pretrained.tokenizer
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    found = {}
    for name in encoded[0].inputs:
        rows = [one.inputs[name] for one in encoded]
        fill = pad if name == "input_ids" else 0
        found[name] = torch.cat([torch.nn.functional.pad(row, (0, length - row.shape[1]), value=fill) for row in rows])
    if len(encoded) > 1 and "attention_mask" not in found:
        lengths = torch.tensor([len(one.tokens) for one in encoded], device="cpu")
        found["attention_mask"] = (torch.arange(length, device="cpu") < lengths[:, None]).long()
    return found
