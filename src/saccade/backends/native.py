"""The compiled kernels as Python sees them: a shared library with a C interface, called through ctypes.

ctypes lets go of Python's lock during a call, and one build serves every version of Python and torch, as only addresses
and numbers cross the border. What crosses is described once, in ``native/abi.h``; the library tells its field names and
one that was built from another list is refused.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch  # its OpenMP runtime is the one to use, so it has to be loaded first

# Chooses the instruction set by name; unset or empty: the best one that runs here.
VARIANT = "SACCADE_CPU_VARIANT"

_DONE, _OUT_OF_MEMORY, _INTERRUPTED, _NOT_FINITE = range(4)

FUNCTIONS = ("forward", "backward", "observe", "transposed", "window")

# The first fields: addresses of query, key, value and output.
POINTERS = struct.Struct("=4q")

Fields = dict[str, Any]  # numbers, by the names in native/abi.h

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class NotFiniteError(Exception):
    """An input or a score is not finite; the kernels do not serve such a call."""


class Library:
    """The loaded library.

    Attributes:
        variant: the instruction set in use.
        variants: all that were built and run on this machine, the preferred one first.
    """

    def __init__(self, path: Path) -> None:
        self._calls = ctypes.CDLL(str(path))
        self._with_lock = ctypes.PyDLL(str(path))
        for name in ("saccade_problem_fields", "saccade_statistic_fields", "saccade_variants", "saccade_use"):
            getattr(self._calls, name).restype = ctypes.c_char_p
        self._calls.saccade_peak.restype = ctypes.c_double
        self._calls.saccade_peak.argtypes = [ctypes.c_int64]
        names, self._problem = _layout(self._calls.saccade_problem_fields())
        self._statistic_fields, self._statistic = _layout(self._calls.saccade_statistic_fields())
        self._functions = {name: getattr(self._calls, f"saccade_{name}") for name in FUNCTIONS}
        self._blank: Fields = dict.fromkeys(names, 0)
        self.variants = self._calls.saccade_variants().decode().split()
        self._share_python()
        self.variant = self.use(os.environ.get(VARIANT, ""))

    def use(self, variant: str) -> str:
        """Compute with this variant from now on; an empty name means the best one. Returns the one in use.

        Raises:
            ValueError: it was not built, or does not run on this machine.
        """
        found = self._calls.saccade_use(variant.encode())
        if found is None:
            raise ValueError(
                f"{VARIANT} = {variant!r} does not run on this machine: expected one of {', '.join(self.variants)}, "
                "or nothing for the best"
            )
        self.variant = found.decode()
        return self.variant

    def peak(self, rounds: int = 1_000_000) -> float:
        """Floating-point operations per second of one core that does nothing but float32 multiply-adds; 2 each.

        What a kernel of the variant in use is measured against, on one thread. Other programs on the core lower it:
        take the largest of several.

        Args:
            rounds: how often each independent chain of multiply-adds advances; a million take some milliseconds.
        """
        return float(self._calls.saccade_peak(rounds))

    def blank(self) -> Fields:
        """The fields of a call, all 0."""
        return self._blank.copy()

    def call(self, name: str, fields: Fields, statistics: Sequence[Fields] = ()) -> None:
        """Run ``saccade_NAME`` on a problem.

        Args:
            name: which function.
            fields: filled in, from `blank`.
            statistics: records with the fields of a statistic.

        Raises:
            NotFiniteError: results were not computed.
            MemoryError: no memory for workspaces.
            KeyboardInterrupt: or whatever a signal handler raised.
        """
        if statistics:
            packed = b"".join(self._statistic.pack(*(s[name] for name in self._statistic_fields)) for s in statistics)
            records = ctypes.create_string_buffer(packed)  # lives until the call is over
            fields["statistics"] = ctypes.addressof(records)
            fields["statistics_count"] = len(statistics)
        self.call_packed(name, self.pack(fields))

    def pack(self, fields: Fields) -> bytes:
        """The fields of a call as `call_packed` takes them. The first ones are the addresses in `POINTERS`."""
        assert len(fields) == len(self._blank), f"no such fields: {fields.keys() - self._blank.keys()}"
        return self._problem.pack(*fields.values())

    def call_packed(self, name: str, packed: bytes) -> None:
        """As `call`."""
        status = self._functions[name](packed)
        if status != _DONE:
            self._raise(status)

    def _raise(self, status: int) -> NoReturn:
        if status == _NOT_FINITE:
            raise NotFiniteError
        if status == _OUT_OF_MEMORY:
            raise MemoryError("no memory for the workspaces of saccade's CPU kernels: a few MiB for each thread")
        if status == _INTERRUPTED:
            self._with_lock.saccade_raise()
        raise AssertionError(f"unknown status {status}")

    def _share_python(self) -> None:
        """Tell the library how to look for signals: during a long call Python itself cannot."""
        names = ("PyGILState_Ensure", "PyGILState_Release", "PyErr_CheckSignals", "PyErr_Fetch", "PyErr_Restore")
        self._calls.saccade_python(*(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in names))


def _layout(described: bytes) -> tuple[list[str], struct.Struct]:
    """Field names, and how they are packed: pointers and integers as 64-bit integers, doubles as they are."""
    words = described.decode().split()
    return [word[1:] for word in words], struct.Struct("=" + "".join(word[0].replace("P", "q") for word in words))


@functools.cache
def load() -> Library | str:
    """The library, or why there is none."""
    path = _find(f"saccade_native{'.dylib' if sys.platform == 'darwin' else '.so'}")
    if path is None:
        return "this installation has no compiled kernels: install saccade anew, with a C++ compiler at hand"
    try:
        return Library(path)
    except OSError as error:
        return f"the compiled kernels cannot be loaded: {error}"
    except ValueError as error:
        return str(error)


def unavailable() -> str | None:
    """Why there is no library, or None."""
    library = load()
    return library if isinstance(library, str) else None


# What torch.compiler.assume_constant_result sets, which would import the compiler: a graph takes the answer as it is.
unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


def _find(name: str) -> Path | None:
    """Beside this file; in an editable installation, where pip put what was built."""
    beside = Path(__file__).with_name(name)
    if beside.exists():
        return beside
    try:
        installed = Path(str(metadata.distribution("saccade").locate_file(f"saccade/backends/{name}")))
    except metadata.PackageNotFoundError:
        return None
    return installed if installed.exists() else None
