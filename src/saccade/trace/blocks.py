"""The layers of a model: which module a site is in, and what hidden state goes in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from saccade.adapters import huggingface
from saccade.adapters.observation import Running


class Blocks:
    """Which module is the layer of an attention site, and the layer's number.

    A layer is what is numbered: of the numbers in a site's path the last one that tells sites of its kind apart. So
    ``decoder.block.3.layer.1.EncDecAttention`` is in layer 3, whose hidden state is that of ``decoder.block.3``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths = [path for path, _ in model.named_modules()]
        self._of: dict[str, tuple[str, int | None]] = {}
        self.modules = self._modules()

    def _modules(self) -> dict[nn.Module, str]:
        """The layers of all attention sites that can be known before the model runs, by module."""
        sites: list[str] = []
        for model in huggingface.huggingface_models(self._model):
            prefix = next(path for path, module in self._model.named_modules() if module is model)
            sites += [f"{prefix}.{site}".lstrip(".") for site in huggingface.attention_sites(model)]
        modules = dict(self._model.named_modules())
        return {modules[block]: block for block in dict.fromkeys(self.of(site)[0] for site in sites)}

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


def state_given(running: Running) -> Tensor | None:
    """The hidden state ``(B, N, width)`` that a layer was given."""
    given = running.kwargs.get("hidden_states", running.args[0] if running.args else None)
    return _hidden(given)


def state_returned(output: Any) -> Tensor | None:
    """The hidden state that a layer or a model gave back, by itself or as the first of several."""
    several = isinstance(output, tuple | list | Mapping) and len(output) > 0
    return _hidden(
        next(iter(output.values())) if isinstance(output, Mapping) and several else output[0] if several else output
    )


def _hidden(x: Any) -> Tensor | None:
    return x if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3 else None  # noqa: PLR2004


def kind_of_path(path: str) -> str:
    """A path without its numbers: the same for all layers."""
    return re.sub(r"\d+", "*", path)
