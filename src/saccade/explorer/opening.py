"""What one begins with: how a trace is told from a text, and what is read where nothing was said."""

from __future__ import annotations

import os


def is_trace(argument: str) -> bool:
    """Whether an argument is meant as a trace: a URL, a folder, or something of that name."""
    # Not Path.is_dir, which raises an error for a text that is too long for a name.
    return "://" in argument or argument.rstrip("/").endswith(".zarr") or os.path.isdir(argument)  # noqa: PTH112


def example_texts() -> list[str]:
    """The sentence by which attention is explained, and one of each sense of its last word."""
    from saccade.analysis.senses.examples import BANK

    return [BANK[None][0], *(sentences[0] for sense, sentences in BANK.items() if sense is not None)]
