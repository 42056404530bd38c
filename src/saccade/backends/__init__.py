"""One contract, several answers: which backend computes a problem, and why."""

from __future__ import annotations

from saccade.backends.contract import Backend, Forward, Gradients, Inputs
from saccade.backends.cpu import CPU
from saccade.backends.gpu import GPU
from saccade.backends.reference import Reference
from saccade.backends.tiled import Tiled
from saccade.errors import BackendError
from saccade.scores import Problem

__all__ = ["BACKENDS", "Backend", "Forward", "Gradients", "Inputs", "choose", "get"]

# In the order of preference.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (CPU(), GPU(), Tiled(), Reference())}


def get(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendError: there is none.
    """
    try:
        return BACKENDS[name]
    except KeyError:
        raise BackendError(f"backend {name!r} does not exist: expected one of {', '.join(BACKENDS)}") from None


def choose(problem: Problem, inputs: Inputs, wanted: str | None = None) -> tuple[Backend, str]:
    """The backend for a problem, and the reason for the choice.

    Args:
        problem: the checked problem.
        inputs: its tensors.
        wanted: a backend's name, or None for the first that can serve the problem.

    Raises:
        BackendError: the wanted backend does not exist or refuses the problem.
    """
    if wanted is not None:
        backend = get(wanted)
        refusal = backend.refuses(problem, inputs)
        if refusal:
            raise BackendError(f"backend {wanted!r} cannot serve this problem: {refusal}")
        return backend, "asked for by name"
    refusals: list[str] = []
    for backend in BACKENDS.values():
        refusal = backend.refuses(problem, inputs)
        if refusal is None:
            return backend, "; ".join(refusals) or "the first choice serves it"
        refusals.append(f"{backend.name}: {refusal}")
    raise BackendError(f"no backend can serve this problem: {'; '.join(refusals)}")
