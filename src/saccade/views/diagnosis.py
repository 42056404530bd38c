"""What `saccade doctor` says: what is installed or missing, and which backend is chosen and why.

The optional parts are read from the package's own metadata, so that this list is never another one.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator

from saccade._version import __version__

Section = list[tuple[str, str]]


def examine() -> dict[str, Section]:
    """Every section's title and its lines, (name, finding)."""
    return {
        "Versions": _versions(),
        "Backends": _backends(),
        "Machine": _machine(),
        "Optional parts": [*_extras(), _pretrained()],
    }


def _versions() -> Section:
    names = ("torch", "transformers", "tokenizers")
    python = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    return [
        ("saccade", __version__),
        ("python", python),
        *((name, _installed(name) or "not installed") for name in names),
    ]


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backends() -> Section:
    """Each backend, and why it is chosen or not, for an ordinary problem on each kind of device there is."""
    import torch

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [line for device in devices for line in _backends_on(device)]


def _backends_on(device: str) -> Section:
    import torch

    from saccade import backends
    from saccade.scores import Problem

    x = torch.zeros(1, 1, 8, 8, device=device)
    problem, inputs = Problem(scale=1.0), backends.Inputs(x, x, x)
    chosen, reason = backends.choose(problem, inputs)
    lines = []
    for name, backend in backends.BACKENDS.items():
        refusal = backend.refuses(problem, inputs)
        passed_over = f"not chosen: {refusal or f'{chosen.name} comes first'}"
        lines.append((name, f"{device}: {f'chosen: {reason}' if backend is chosen else passed_over}"))
    return lines


def _machine() -> Section:
    import torch

    threads = f"{torch.get_num_threads()} for torch, of {os.cpu_count()} logical processors"
    return [("threads", threads), ("cpu kernels", _kernels()), ("gpu", _gpu())]


def _kernels() -> str:
    """Which of the compiled variants runs, or why none does."""
    from saccade.backends import native

    library = native.load()
    if isinstance(library, str):
        return library
    others = ", ".join(name for name in library.variants if name != library.variant)
    return f"{library.variant} ({native.VARIANT} chooses another: {others})"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"{', '.join(names)} (CUDA {torch.version.cuda}); {_tiles()}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    built = torch.version.cuda or torch.version.hip
    return f"none found; torch is built for {built}" if built else "none; this torch is built for the CPU only"


def _tiles() -> str:
    """Where the tiles of the GPU kernels come from."""
    import torch

    from saccade.backends import gpu, gpu_tiles

    device = torch.device("cuda", torch.cuda.current_device())
    if gpu.unavailable(device) is not None:
        return "no kernels of ours"
    count = len(gpu_tiles.tuned(device))
    return f"tiles tuned here: {count}" if count else "tiles from the table: saccade tune measures them"


def _extras() -> Iterator[tuple[str, str]]:
    """For each extra its packages, and the command for those that are missing."""
    extras: dict[str, list[str]] = {}
    for requirement in _requirements():
        named = re.match(r"""([\w.-]+).*extra\s*==\s*['"]([\w-]+)['"]""", requirement)
        if named and named[1] != "saccade":
            extras.setdefault(named[2], []).append(named[1])
    if not extras:
        yield (
            "extras",
            "not known: this is a source tree that was not installed; pip install -e '.[all]'",
        )
    for extra, packages in extras.items():
        found = {package: _installed(package) for package in dict.fromkeys(packages)}
        missing = [package for package, version in found.items() if version is None]
        have = ", ".join(f"{package} {version}" for package, version in found.items() if version)
        lack = f"{', '.join(missing)} missing: pip install 'saccade[{extra}]'" if missing else ""
        yield extra, "; ".join(filter(None, (have, lack)))


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("saccade") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _pretrained() -> tuple[str, str]:
    from saccade.adapters import pretrained

    version = _installed(pretrained.PACKAGE)
    have = f"{pretrained.DEFAULT_MODEL} ({pretrained.PACKAGE} {version})"
    return "default model", have if version else f"missing: {pretrained.PACKAGE_INSTALL}"
