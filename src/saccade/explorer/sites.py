"""What attention sites are called on screen, from the paths of their modules."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from saccade.trace.blocks import kind_of_path, path_of
from saccade.trace.metadata import EntryMetadata

# How models name the attention of a decoder to an encoder.
_CROSS = re.compile(r"cross|enc_?dec|encoder_attn", re.IGNORECASE)


def labels(entry: EntryMetadata) -> list[str]:
    """A label for each site: "layer 3", "decoder 2, cross". Where that names two alike, all their paths."""
    names = [site.name for site in entry.sites]
    numbers, parts = _numbers(names), _parts(names)
    found = [
        f"{part} {number}{', cross' if cross else ''}"
        for part, number, cross in zip(parts, numbers, crosses(entry), strict=True)
    ]
    return found if len(set(found)) == len(found) else names


def _numbers(names: Sequence[str]) -> list[int]:
    """The number of each site's layer: the last in its path that tells sites of its kind apart.

    Where none does, the layer runs again and again, or there is one: then it is which of its kind this call is.
    """
    kinds: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        kinds[kind_of_path(path_of(name))].append(i)
    found = [0] * len(names)
    for alike in kinds.values():
        in_path = [[int(n) for n in re.findall(r"\d+", path_of(names[i]))] for i in alike]
        telling = [k for k, column in enumerate(zip(*in_path, strict=True)) if len(set(column)) > 1]
        again = len({path_of(names[i]) for i in alike}) < len(alike)
        for order, (i, numbers) in enumerate(zip(alike, in_path, strict=True)):
            lone = numbers[0] if len(alike) == 1 and numbers else order
            found[i] = numbers[telling[-1]] if telling and not again else lone
    return found


def _parts(names: Sequence[str]) -> list[str]:
    """Which part of the model each site is in, where there are two."""
    parts = ["decoder" if "decoder" in name else "encoder" if "encoder" in name else "layer" for name in names]
    return parts if "decoder" in parts and "encoder" in parts else ["layer"] * len(names)


def crosses(entry: EntryMetadata) -> list[bool]:
    """Whether each site looks from one sequence at another."""
    return [
        bool(_CROSS.search(site.name))
        or (
            site.queries is not None
            and site.keys is not None
            and entry.sequences[site.queries].name != entry.sequences[site.keys].name
        )
        for site in entry.sites
    ]
