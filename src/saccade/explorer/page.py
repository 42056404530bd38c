"""The built page (web/, made by `make page`): where it is, and which of its files is meant by an address.

It ships in released packages. A checkout without Node.js has none; all else works there, and who opens the page is told
what is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from saccade.errors import SaccadeError

BUILT = Path(__file__).parent / "page"
FIRST = "index.html"

# The names that the page's files have. No dot in front, so no hidden file and no way up.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# Not from `mimetypes`: that asks the system, and some systems call JavaScript plain text, which browsers refuse to run.
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes:
        content: its bytes.
        kind: its media type.
        lasting: whether its name changes when its content does.
    """

    content: bytes
    kind: str
    lasting: bool


def find(path: str, folder: Path) -> PageFile | None:
    """The file of the page in a folder that an address means: "", "assets/index-4f.js"; None if there is none.

    Nothing but a plain file inside the folder is ever found: no symbolic link, no way up, no hidden file.
    """
    names = (path or FIRST).split("/")
    if not all(_NAME.fullmatch(name) for name in names):
        return None
    root = folder.resolve()
    file = root.joinpath(*names)
    kind = _KINDS.get(file.suffix)
    if kind is None or file.resolve() != file or not file.is_file():
        return None
    return PageFile(file.read_bytes(), kind, lasting=names[0] == "assets")


def check_built(folder: Path) -> None:
    """See that there is a page in a folder.

    Raises:
        SaccadeError: it is not; the message says how to make it.
    """
    if not (folder / FIRST).is_file():
        raise SaccadeError(
            f"the page is not built: there is no {folder / FIRST}. Released packages bring it. In a checkout, install "
            "Node.js 20 or later, then run: make page"
        )
