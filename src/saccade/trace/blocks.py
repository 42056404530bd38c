"""The layers of a model: which module an attention site is in, and its number."""

from __future__ import annotations

import re

from torch import nn


class Blocks:
    """Which module is the layer of an attention site, and the layer's number.

    A layer is what is numbered: of the numbers in a site's path the last one that tells sites of its kind apart. So
    ``decoder.block.3.layer.1.EncDecAttention`` is in layer 3, whose hidden state is that of ``decoder.block.3``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._paths = [path for path, _ in model.named_modules()]
        self._of: dict[str, tuple[str, int | None]] = {}

    def of(self, site: str) -> tuple[str, int | None]:
        """The path of a site's layer, and its number; without numbers in its path, the site and None."""
        if site not in self._of:
            self._of[site] = self._find(site)
        return self._of[site]

    def _find(self, site: str) -> tuple[str, int | None]:
        parts = site.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdecimal()]
        if not numbered:
            return site, None
        alike = re.compile(r"\.".join(r"(\d+)" if part.isdecimal() else re.escape(part) for part in parts))
        found = [match.groups() for path in self._paths if (match := alike.fullmatch(path))]
        telling = [i for k, i in enumerate(numbered) if len({numbers[k] for numbers in found}) > 1]
        at = telling[-1] if telling else numbered[0]
        return ".".join(parts[: at + 1]), int(parts[at])


def name_of_run(path: str, times: int) -> str:
    """How what a module did is called if it ran so many times before in the forward: ``path``, then ``path#1``."""
    return f"{path}#{times}" if times else path


def path_of(name: str) -> str:
    """The module's path in such a name."""
    return name.split("#", maxsplit=1)[0]


def kind_of_path(path: str) -> str:
    """A path without its numbers: the same for all layers."""
    return re.sub(r"\d+", "*", path)
