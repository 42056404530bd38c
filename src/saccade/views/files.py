"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saccade.errors import ArgumentError


def check_writable(path: Path) -> None:
    """Say early that a file cannot be written, before anything slow is done for it.

    Raises:
        ArgumentError: its folder does not exist or may not be written to, or the path is a folder.
    """
    folder = path.parent
    if path.is_dir():
        raise ArgumentError(f"--out {path}: that is a folder; expected a file")
    if not folder.is_dir():
        raise ArgumentError(f"--out {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"--out {path}: the folder {folder} may not be written to")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to beside `path`: it takes its place when all went well, else it is removed.

    Raises:
        ArgumentError: the file cannot be written.
    """
    check_writable(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise ArgumentError(f"--out {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise ArgumentError(f"--out {path} was not written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
