"""What a command is given: texts, numbers, files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from saccade import errors

MEAN = "mean"

ModelName = Annotated[
    str | None, typer.Option("--model", "-m", help="A hub name or a folder. Default: the small pretrained model.")
]
# What the commands that analyse have in common.
OutFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write a file: .png, .svg, .pdf, .csv, .json or .npz.")
]
AsJson = Annotated[bool, typer.Option("--json", help="All of it, as JSON.")]
TextFile = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from this file (UTF-8).")]
TracePlace = Annotated[str, typer.Argument(help="A trace: a folder or a URL.")]


def layer_number(what: str, value: str | None) -> int | str | None:
    """A number from 0, or `MEAN`."""
    if value is None or value == MEAN:
        return value
    if not value.isdecimal():
        raise errors.ArgumentError(f"--{what} {value}: expected a number from 0, or {MEAN}")
    return int(value)


def read_text(text: str | None, file: Path | None) -> str:
    """The text from the argument, the file, or standard input."""
    if text not in {None, "-"} and file is not None:
        raise errors.ArgumentError("expected a text or --file, not both")
    said = decoded(*read_bytes(text, file))
    if not said.strip():
        raise errors.ArgumentError("the text is empty; expected at least one word")
    return said.strip()


def read_bytes(text: str | None, file: Path | None) -> tuple[bytes, str]:
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


def decoded(data: bytes, source: str) -> str:
    """UTF-8 text."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.ArgumentError(
            f"{source} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}"
        ) from error


def numbers(what: str, value: str | None) -> list[int] | None:
    """Numbers and ranges of numbers: 0,3-5."""
    if value is None:
        return None
    found: list[int] = []
    for part in value.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise errors.ArgumentError(f"--{what} {value or repr(value)}: expected numbers and ranges from 0, as 0,3-5")
        found += range(int(first), int(last if dash else first) + 1)
    return found


def content(name: str) -> str:
    """A file's text; - for standard input."""
    if name == "-":
        return decoded(*read_bytes("-", None))
    try:
        return decoded(Path(name).read_bytes(), name)
    except OSError as error:
        raise errors.ArgumentError(f"{name}: {error.strerror}") from error


def check_doors(out: Path | None, *, as_json: bool) -> None:
    """Refuse two ways out at once, and a file that could not be written, before anything slow is done."""
    if out is None:
        return
    if as_json:
        raise errors.ArgumentError("expected --json or --out, not both: --out FILE.json writes JSON")
    from saccade.analysis.result import check_out

    check_out(out)
