"""Run the guides as a reader would, command by command, and keep the pictures that they draw.

``python scripts/guides.py`` (`make docs`) writes docs/images anew. The tests run the same steps.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
DRAWN = ("bank",)  # guides whose pictures are in docs/images, named after them


def steps(text: str) -> list[tuple[str, str]]:
    """The blocks of a guide that are to be run, with their language. Those marked `sh` install things."""
    return re.findall(r"^```(console|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(text: str, folder: Path) -> tuple[str, str]:
    """Run a guide's blocks in a folder: its commands in order, then its Python as one program.

    Returns:
        What the commands and what the Python printed.
    """
    (folder / "docs").symlink_to(ROOT / "docs")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    found = steps(text)
    commands = [line for language, block in found if language == "console" for line in block.splitlines()]
    said = [_call(shlex.split(command), folder, environment) for command in commands]
    python = "\n".join(block for language, block in found if language == "python")
    return "".join(said), _call([sys.executable, "-c", python], folder, environment)


def _call(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert not done.returncode, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def main() -> None:
    """Draw the pictures of the guides."""
    for name in DRAWN:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            _, printed = run((ROOT / f"docs/guides/{name}.md").read_text(), folder)
            sys.stdout.write(printed)
            for picture in sorted((folder / name).glob("*.png")):
                shutil.copy(picture, ROOT / f"docs/images/{name}-{picture.name}")
                sys.stdout.write(f"drew docs/images/{name}-{picture.name}\n")


if __name__ == "__main__":
    main()
